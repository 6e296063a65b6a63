"""Reads one scan, and says in words why it cannot be used.

A file is read once: the checksum that decides about reuse belongs to the very bytes that are decoded. What a header
claims is checked before memory is taken for it.
"""

import gzip
import hashlib
import io
import math
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

LARGEST_FILE = 2 << 30  # bytes
LARGEST_VOLUME = 1 << 28  # voxels; a whole head at 0.4 mm has about 2**27
FEWEST_VOXELS = 12  # along each axis
VOXEL_SIZE = (0.2, 12.0)  # mm
FIELD_OF_VIEW = (60.0, 600.0)  # mm along each axis


class ScanFailure(Exception):
    """This scan cannot be used. The message says why and names the mend; it is the ``reason`` in the scan's row."""


class NotPermitted(ScanFailure):
    """The account may not read the file. That says nothing about the scan: what was made of it before stays."""


@dataclass(frozen=True)
class Source:
    """A scan's file as it lies on the disk."""

    path: Path
    content: bytes
    sha256: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Scan:
    """A scan in memory, its axes ordered and flipped to lie nearest to right, anterior, superior (RAS)."""

    values: np.ndarray  # (X, Y, Z) float32
    affine: np.ndarray  # (4, 4) voxel to scanner mm

    @property
    def voxel_size(self) -> np.ndarray:
        """(3,) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def read_source(path: str | Path) -> Source:
    """The bytes of a file with their checksum.

    Raises:
        ScanFailure: where this is no file of a sane size; NotPermitted where the account may not read it.
        OSError: where the file is not there or the disk fails. Files are looked for before a study starts, so one that
            is missing now is a disk's fault (a mount, a server), not the scan's.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ScanFailure("the path is a folder, not a file; give the NIfTI file itself")
        if state.st_size > LARGEST_FILE:
            raise ScanFailure(f"the file has {state.st_size >> 20} MiB, too large for one T1w volume; check the path")
        content = path.read_bytes()
    except PermissionError:
        raise NotPermitted(
            "the file may not be read; give the account of this run read permission, "
            "delete the shard's table of volumes and run again"  # a permission changes no time stamp
        ) from None
    if not content:
        raise ScanFailure("the file is empty; copy or convert it anew")
    return Source(path, content, hashlib.sha256(content).hexdigest(), len(content), state.st_mtime_ns)


def decode(source: Source) -> Scan:
    """The volume in a NIfTI-1 or NIfTI-2 file, gzipped or not (told by content, not by the name), turned to RAS.

    Raises ScanFailure for anything but one three-dimensional, finite, not constant volume with a usable affine.
    Trailing axes of length one are dropped.
    """
    zipped = source.content[:2] == b"\x1f\x8b"
    stream = io.BytesIO(source.content)
    try:
        image = _parse(gzip.GzipFile(fileobj=stream) if zipped else stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanFailure(f"the gzip stream is damaged or cut off ({error}); copy or convert the scan anew") from None
    _check_affine(image)
    with np.errstate(all="ignore"):  # an overflow shows as a value that is not finite, below
        values = np.asarray(image.dataobj, dtype=np.float32).reshape(image.shape[:3])
    _check_values(values)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, image.affine))
    return Scan(np.ascontiguousarray(image.dataobj, dtype=np.float32), image.affine)


def _parse(stream) -> nibabel.Nifti1Image:
    head = stream.read(544)  # the longer, NIfTI-2, header and its extension flag
    if head[344:347] == b"n+1":
        kind, length = nibabel.Nifti1Image, 348
    elif head[4:7] == b"n+2":
        kind, length = nibabel.Nifti2Image, 540
    elif head[344:347] == b"ni1":
        raise ScanFailure("this is one half of a .hdr/.img pair; convert it to a single .nii.gz")
    else:
        raise ScanFailure("not a NIfTI file; convert the scan (dcm2niix for DICOM, mri_convert for .mgz)")
    try:
        header = kind.header_class.from_fileobj(io.BytesIO(head[:length]))
        shape, kind_of_number = header.get_data_shape(), header.get_data_dtype()
        offset = int(header["vox_offset"])
    except Exception as error:  # nibabel raises many kinds for a broken header
        raise ScanFailure(f"the NIfTI header is broken ({error}); convert the scan anew") from None
    _check_shape(shape)
    if kind_of_number.kind not in "iuf":
        raise ScanFailure(f"voxels are {kind_of_number}, not real numbers; give the magnitude image in grey values")
    if not length <= offset <= LARGEST_FILE:
        raise ScanFailure(f"the header says that the data begin at byte {offset}; convert the scan anew")
    expected = offset + math.prod(shape) * kind_of_number.itemsize
    content = bytearray(head)
    content += stream.read(max(0, expected - len(head)))
    stream.read(1 << 16)  # a gzip checksum is compared at the stream's end only
    if len(content) < expected:
        raise ScanFailure(f"the file ends after {len(content)} of {expected} bytes; copy or convert the scan anew")
    if offset >= length + 4:
        content[length : length + 4] = bytes(4)  # header extensions are not needed, and a broken one shall not matter
    return kind.from_bytes(bytes(content))


def _check_shape(shape: tuple[int, ...]) -> None:
    size = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape) or math.prod(shape[:3]) > LARGEST_VOLUME:
        raise ScanFailure(f"the header claims {size or 'no'} voxels; it is broken, convert the scan anew")
    if len(shape) > 3 and math.prod(shape[3:]) > 1:
        raise ScanFailure(f"{size} voxels are a series of volumes, not one; give the single T1w volume")
    if len(shape) < 3 or min(shape[:3]) < FEWEST_VOXELS:
        raise ScanFailure(
            f"{size} voxels are not a 3D head (at least {FEWEST_VOXELS} along each axis); give a 3D T1w scan"
        )


def _check_affine(image: nibabel.Nifti1Image) -> None:
    mend = "set the header's sform and qform from the original, or convert the scan anew"
    if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
        raise ScanFailure(f"neither qform nor sform is set, so left and right are unknown; {mend}")
    linear = image.affine[:3, :3]
    if not np.isfinite(image.affine).all():
        raise ScanFailure(f"the affine is not finite; {mend}")
    size = np.linalg.norm(linear, axis=0)  # (3,) mm
    if size.min() == 0 or abs(np.linalg.det(linear / size)) < 1e-3:
        raise ScanFailure(f"the affine is singular (its axes do not span space); {mend}")
    if size.min() < VOXEL_SIZE[0] or size.max() > VOXEL_SIZE[1]:
        listed = " x ".join(f"{s:.4g}" for s in size)
        raise ScanFailure(f"voxels of {listed} mm are no head's; is the header in another unit than mm? {mend}")
    extent = size * image.shape[:3]
    if extent.min() < FIELD_OF_VIEW[0] or extent.max() > FIELD_OF_VIEW[1]:
        listed = " x ".join(f"{e:.0f}" for e in extent)
        raise ScanFailure(
            f"a field of view of {listed} mm does not hold one whole head; give a whole-head scan, or {mend}"
        )


def _check_values(values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())  # a NaN anywhere makes both NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ScanFailure(f"{count} voxels are NaN or infinite; replace them (for example with fslmaths -nan)")
    if low == high:
        raise ScanFailure(f"every voxel is {low:g}; the scan is empty, export it anew")
