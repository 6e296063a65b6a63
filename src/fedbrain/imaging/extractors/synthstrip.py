"""Brain masks by SynthStrip, with the network class of nipreps-synthstrip and the weights that its authors publish."""

import pickle
from functools import cache

import numpy as np

from fedbrain.imaging import registration
from fedbrain.imaging.brain_extraction import Extraction, checked_weights, cleaned
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.reading import Scan, ScanFailure

BORDER = 1.0  # mm outside the network's surface, as in the authors' tool
FAR = 1000.0  # mm
SIDES = (192, 256, 320)  # voxels of 1 mm that the network takes along an axis
AXES = np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # the array's axes point left, inferior, anterior


def synthstrip(scan: Scan, mask: Scan | None, *, device: str = "cpu", options=None) -> Extraction:
    """Brain by SynthStrip (Hoopes et al., NeuroImage 2022, 119474): surface distance under 1 mm, largest component.

    The head is resampled to 1 mm, axes LIA, in a box of 192, 256 or 320 voxels about the scan's centre, scaled from its
    smallest value to its 99th percentile, and the distance that the network gives is brought back linearly, as in the authors'
    tool. What lies beyond 320 mm is not seen. The network loads once per process.

    Raises ScanFailure where no brain is found, StudyError for weights that are missing or not the published ones.
    """
    import torch

    network = _network(str(checked_weights("synthstrip", options["weights"], options["sha256"])), device)
    shape, grid = _grid(scan)
    values = registration.resample(scan.values, np.linalg.inv(scan.affine) @ grid, shape)
    values -= values.min()
    top = np.percentile(values, 99)
    if not top > 0:
        raise ScanFailure("SynthStrip finds no brain; nearly all of the scan is one value")
    with torch.inference_mode():
        given = torch.from_numpy(np.clip(values / top, 0, 1))[None, None].to(device)  # (1, 1, *shape)
        distance = network(given)[0, 0].cpu().numpy()  # mm
    # Resampling gives zero beyond the box, which shall be far from the brain.
    nearness = registration.resample(FAR - distance, np.linalg.inv(grid) @ scan.affine, scan.values.shape)
    marked = nearness > FAR - BORDER
    return cleaned(marked, scan, "SynthStrip finds")


def _grid(scan: Scan) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine (voxel to scanner mm) of the box that the network gets."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in scan.values.shape])).reshape(3, -1)
    reach = np.ptp(scan.affine[:3, :3] @ corners, axis=1)  # mm along right, anterior, superior
    along = np.abs(AXES).T @ reach  # mm along the array's axes
    shape = tuple(next((side for side in SIDES if side >= length - 1e-6), SIDES[-1]) for length in along)
    grid = np.eye(4)
    grid[:3, :3] = AXES
    middle = scan.affine @ [*(0.5 * (np.array(scan.values.shape) - 1)), 1]
    grid[:3, 3] = middle[:3] - AXES @ (0.5 * (np.array(shape) - 1))
    return shape, grid


@cache
def _network(path: str, device: str):
    import torch
    from nipreps.synthstrip.model import StripModel

    card = CARDS["synthstrip"]
    network = StripModel()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
        network.load_state_dict(state)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise card.wrong(path, str(error).strip().splitlines()[0][:200]) from None
    return network.to(device).eval()
