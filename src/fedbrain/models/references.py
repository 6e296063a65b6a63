"""What stands beside the foundation model: a network trained from scratch, and a rule without trained parameters."""

import torch
from monai.networks.nets import resnet18
from torch import Tensor, nn
from torch.nn import functional

from fedbrain.errors import StudyError
from fedbrain.models.heads import Logits

NORMS = {"batch": "batch", "instance": ("instance", {"affine": True}), "group": ("group", {"num_groups": 8})}
ABSENT = 1e4  # stands for the distance to the centre of a class that nobody has


class ResNet18(nn.Module):
    """MONAI's 3D ResNet18 on the volume, from scratch: (B, 1, 128, 128, 128) -> (B, classes) logits.

    33,161,026 parameters and 251 GMACs as in the published study: the first convolution has stride 1.

    Args:
        downsample: mean over blocks of this many voxels a side before the network; 1 is the published network, 2 an eighth
            of the operations.
        norm: "batch" as published; the clients' running statistics are then averaged like parameters. "instance" and "group"
            (8 groups) have none, with the same number of parameters.
    """

    takes = "volume"

    def __init__(self, *, channels: int = 0, classes: int = 2, downsample: int = 1, norm: str = "batch") -> None:
        super().__init__()
        if downsample not in (1, 2, 4):
            raise StudyError(f"head resnet18: downsample must be 1, 2 or 4, it is {downsample!r}")
        if norm not in NORMS:
            raise StudyError(f"head resnet18: norm must be one of {', '.join(NORMS)}, it is {norm!r}")
        self.downsample = downsample
        self.network = resnet18(
            spatial_dims=3,
            n_input_channels=1,
            num_classes=classes,
            conv1_t_stride=1,
            bias_downsample=False,
            norm=NORMS[norm],
        )
        last = self.network.fc
        self.classify = Logits(last.in_features, classes)
        self.classify.load_state_dict(last.state_dict())
        self.network.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # (B, 1, 128, 128, 128)
        return self.classify(self.network(functional.avg_pool3d(x, self.downsample) if self.downsample > 1 else x))


class NearestClassCentre(nn.Module):
    """Which class centre is nearer in the space of pooled embeddings: nothing is trained by gradients.

    A client's part is the sum of its pooled embeddings by class and their number; the mean over clients of both (SimpleAvg) gives
    exactly the centres of the pooled scans, other rules a weighted centre (ours). The logit of a class is minus the distance to
    its centre, so the score rises with d(x, centre 0) - d(x, centre 1). A class that nobody has is far away.
    """

    def __init__(self, *, channels: int = 384, classes: int = 2) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(classes, channels))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 8, 8, 8)
        x = x.float()
        centres = self.sums / self.counts.clamp(min=1e-12)[:, None]  # (classes, C)
        distances = torch.cdist(x.mean((2, 3, 4)), centres, compute_mode="donot_use_mm_for_euclid_dist")
        return -torch.where(self.counts > 0, distances, ABSENT)

    @torch.no_grad()
    def start(self) -> None:
        """Forgets what was gathered."""
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def gather(self, x: Tensor, labels: Tensor) -> None:
        """Adds scans: x (B, C, 8, 8, 8), labels (B,)."""
        self.sums.index_add_(0, labels, x.mean((2, 3, 4)))
        self.counts += torch.bincount(labels, minlength=len(self.counts))
