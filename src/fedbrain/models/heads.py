"""Classification heads over an embedding of 8 x 8 x 8 positions: two logits, for cross-entropy.

No head keeps batch statistics, so that averaging the parameters of clients averages the whole model. Layers of the
convolutional heads are our choice: the published study names them (a small and a large CNN) without saying how they are built.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedbrain.registry import build


def build_head(name: str, options: Mapping | None = None, *, channels: int = 384, classes: int = 2) -> nn.Module:
    """The head called ``name`` in the registry: (B, channels, 8, 8, 8) float32 -> (B, classes) logits.

    Its weights are drawn from torch's global generator: set ``torch.manual_seed`` before. Raises StudyError for an
    unknown name or option.
    """
    return build("head", name, options, channels=channels, classes=classes)


class Logits(nn.Linear):
    """The last layer, always in float32: rounded to bfloat16, logits of different scans become equal and ranks are lost."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.amp.is_autocast_available(x.device.type):  # the meta device, on which operations are counted
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class LinearHead(nn.Module):
    """Mean over the positions, then a linear layer: 770 parameters for 384 channels and two classes."""

    def __init__(self, *, channels: int = 384, classes: int = 2) -> None:
        super().__init__()
        self.classify = Logits(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 8, 8, 8)
        return self.classify(x.mean((2, 3, 4)))


class ConvHead(nn.Module):
    """Three 3 x 3 x 3 convolutions with group norm and GELU, mean over the positions left, a linear layer.

    The first convolution mixes channels at full resolution, the next two halve the grid (8 -> 8 -> 4 -> 2), which makes
    them cheap: the first one takes about nine tenths of the time. Ours.

    Args:
        widths: channels after each convolution; each a multiple of ``GROUPS``.
    """

    GROUPS = 8

    def __init__(self, widths: tuple[int, int, int], *, channels: int = 384, classes: int = 2) -> None:
        super().__init__()
        layers = []
        for width, stride in zip(widths, (1, 2, 2), strict=True):
            # No bias: the norm after it has one.
            layers += [nn.Conv3d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(self.GROUPS, width), nn.GELU()]
            channels = width
        self.convolve = nn.Sequential(*layers)
        self.classify = Logits(channels, classes)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, 8, 8, 8)
        return self.classify(self.convolve(x).mean((2, 3, 4)))  # over 2 x 2 x 2 positions


def conv_s(*, channels: int = 384, classes: int = 2) -> ConvHead:
    """The small CNN: 1,659,522 parameters."""
    return ConvHead((128, 64, 64), channels=channels, classes=classes)


def conv_l(*, channels: int = 384, classes: int = 2) -> ConvHead:
    """The large CNN, four times as wide: 10,619,394 parameters."""
    return ConvHead((512, 256, 256), channels=channels, classes=classes)
