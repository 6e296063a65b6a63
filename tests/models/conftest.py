"""The encoder and the implementation that it must agree with, on the same random weights with nothing left at zero."""

import contextlib
import io
import warnings

import pytest
import torch

from fedbrain.models.sam_med3d import ImageEncoder


@pytest.fixture(scope="session")
def reference():
    """medim's image encoder, not to be changed; biases and position tables are drawn too, or the pads and the quirk would not show."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import medim

        torch.manual_seed(0)
        encoder = medim.create_model("SAM-Med3D", pretrained=False).image_encoder.eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in encoder.state_dict().items():
        if "pos" in name or name.endswith("bias"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return encoder


@pytest.fixture(scope="session")
def encoder(reference):
    encoder = ImageEncoder().eval()
    encoder.load_state_dict(reference.state_dict(), strict=True)  # the same keys and shapes
    return encoder
