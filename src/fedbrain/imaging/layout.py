"""Where a scan's volume, brain mask, snapshot and record lie, named as BIDS derivatives."""

from pathlib import Path

SPACE = "MNI152NLin2009aSym"  # the symmetric template that nilearn carries
_PREFIX = f"_space-{SPACE}_res-1p5"
SUFFIXES = {
    "volume": f"{_PREFIX}_desc-preproc_T1w.nii.gz",
    "mask": f"{_PREFIX}_desc-brain_mask.nii.gz",
    "snapshot": f"{_PREFIX}_desc-quality_T1w.webp",
    "sidecar": f"{_PREFIX}_desc-preproc_T1w.json",
    "failure": f"{_PREFIX}_desc-failed_T1w.json",
}


def volume_path(folder: str | Path, scan: str) -> Path:
    """The normalized volume: float32, 128 x 128 x 128 voxels of 1.5 mm."""
    return Path(folder) / f"{scan}{SUFFIXES['volume']}"


def mask_path(folder: str | Path, scan: str) -> Path:
    """The brain mask on the volume's grid: uint8, 0 or 1."""
    return Path(folder) / f"{scan}{SUFFIXES['mask']}"


def snapshot_path(folder: str | Path, scan: str) -> Path:
    """The picture for quality control (WebP): the head with its mask, the volume on the template."""
    return Path(folder) / f"{scan}{SUFFIXES['snapshot']}"


def sidecar_path(folder: str | Path, scan: str) -> Path:
    """The record of what was done to the scan (JSON). It is written last: where it is, volume and mask are whole."""
    return Path(folder) / f"{scan}{SUFFIXES['sidecar']}"


def failure_path(folder: str | Path, scan: str) -> Path:
    """Why nothing could be made of the scan (JSON), in the place of the other files."""
    return Path(folder) / f"{scan}{SUFFIXES['failure']}"
