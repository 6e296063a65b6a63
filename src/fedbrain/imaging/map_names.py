"""How files of maps are named; no reader of images at import, since the workflow asks for the names at its start."""

from fedbrain.imaging.layout import SPACE

METHODS = {"integrated_gradients": "integratedgradients", "occlusion": "occlusion", "rollout": "rollout"}  # in files
GROUPS = ("case", "control", "difference")


def map_name(of: str, description: str, kind: str = "relevance") -> str:
    """A map's file name in the manner of BIDS derivatives: ``{of}_space-..._res-1p5_desc-{description}_{kind}.nii.gz``."""
    return f"{of}_space-{SPACE}_res-1p5_desc-{description}_{kind}.nii.gz"


def group_map(group: str, method: str) -> str:
    """The file name of a group's mean map by a method."""
    return map_name(f"group-{group}", METHODS[method])
