"""Maps on the MNI grid of the volumes: written as NIfTI, read again."""

from pathlib import Path

import nibabel
import numpy as np

from fedbrain.errors import StudyError
from fedbrain.imaging import derivatives, registration


def write_map(values: np.ndarray, path: str | Path) -> None:
    """Writes a map (128, 128, 128) as float32; the same bytes for the same values."""
    # Private there since the text of that module decides whether volumes are made anew.
    derivatives._write_nifti(values.astype(np.float32), Path(path))


def read_map(path: str | Path) -> np.ndarray:
    """(128, 128, 128) float32. Raises StudyError where the file is damaged or not on the MNI grid."""
    try:
        image = nibabel.load(path)
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise StudyError(f"{path}: not a readable map ({type(error).__name__}); delete it and run again") from None
    if values.shape != registration.GRID_SHAPE or not np.allclose(image.affine, registration.GRID_AFFINE):
        raise StudyError(f"{path}: not on the MNI grid of the volumes; delete it and run again")
    return values
