"""The encoder against medim's implementation of the released model, on random weights with nothing left at zero."""

import logging

import pytest
import torch
from agreement import relative
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedbrain.models.sam_med3d import GLOBAL_BLOCKS, Block, ImageEncoder, load_image_encoder, pad_bias


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def image():
    return torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def output(encoder, image):
    with torch.inference_mode():
        return encoder(image)


def test_parameters_are_those_of_the_released_model(encoder, reference):
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 92_924_928
    assert list(encoder.state_dict()) == list(reference.state_dict())


def test_every_block_and_the_output_agree_with_the_reference(encoder, reference, image, output):
    grids = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: grids.append(out.flatten(1, 3))) for block in reference.blocks
    ]
    with torch.inference_mode():
        expected = reference(image)
        tokens = encoder.tokens(image, 0)
        for block, grid in zip(encoder.blocks, grids, strict=True):
            tokens = block(tokens)
            assert relative(tokens, grid) < 1e-5
    for hook in hooks:
        hook.remove()
    assert output.shape == (1, 384, 8, 8, 8)
    assert relative(output, expected) < 1e-5


@pytest.mark.parametrize("index", [0, GLOBAL_BLOCKS[0]], ids=["windowed", "global"])
def test_gradients_agree_with_the_reference(encoder, reference, index):
    tokens = torch.randn(1, 512, 768, generator=torch.Generator().manual_seed(3))
    towards = torch.randn(1, 512, 768, generator=torch.Generator().manual_seed(4))
    gradients = []
    for block, shape in ((reference.blocks[index], (1, 8, 8, 8, 768)), (encoder.blocks[index], (1, 512, 768))):
        block.zero_grad()
        entering = tokens.clone().requires_grad_()
        (block(entering.view(shape)).reshape(1, 512, 768) * towards).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in block.named_parameters()} | {"x": entering.grad})
        block.zero_grad()
    expected, ours = gradients
    assert expected.keys() == ours.keys()
    for name, gradient in expected.items():
        assert relative(ours[name], gradient) < 1e-4, name


def test_pad_bias_is_the_log_sum_over_all_pads():
    """Against the sum written out: 14^3 keys less the 8^3 of the grid."""
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(8, 14, generator=generator).double()  # w, kw
    b, c = torch.randn(2, 14, 14, generator=generator).double()  # kd, kw and kh, kw
    terms = a[:, None, None, :] + b[None, :, None, :] + c[None, None, :, :]  # w, kd, kh, kw
    is_pad = torch.ones(14, 14, 14, dtype=torch.bool)
    is_pad[:8, :8, :8] = False
    assert is_pad.sum() == 2_232
    torch.testing.assert_close(pad_bias(a, b, c), terms[:, is_pad].logsumexp(1))


def test_a_scan_does_not_depend_on_the_rest_of_its_batch(encoder, image):
    with torch.inference_mode():
        tokens = torch.cat([encoder.tokens(image, 0), encoder.tokens(image.flip(2), 0), encoder.tokens(-image, 0)])
        for block in (*encoder.blocks[1:3], lambda x: encoder.from_tokens(x, 12)):
            together = block(tokens)
            for i in range(3):
                assert relative(together[i], block(tokens[i : i + 1])[0]) < 1e-5


def test_a_prefix_can_be_kept(encoder, image, output):
    with torch.inference_mode():
        assert torch.equal(encoder.from_tokens(encoder.tokens(image, 10), 10), output)


@pytest.mark.parametrize("index", [0, 2], ids=["windowed", "global"])
def test_an_adapter_around_qkv_equals_its_merged_weights(encoder, index):
    """As peft wraps a linear layer; the pads must see the wrapped layer's bias."""

    class Adapted(nn.Module):
        def __init__(self, base, a, b):
            super().__init__()
            self.base, self.a, self.b = base, a, b

        def forward(self, x):
            return self.base(x) + x @ self.a.T @ self.b.T

    generator = torch.Generator().manual_seed(6)
    a = torch.randn(4, 768, generator=generator) * 0.1
    b = torch.randn(3 * 768, 4, generator=generator) * 0.1
    tokens = torch.randn(1, 512, 768, generator=generator)
    span = encoder.blocks[index].attn.span
    wrapped, merged = Block(span), Block(span)
    for block in (wrapped, merged):
        block.load_state_dict(encoder.blocks[index].state_dict())
    wrapped.attn.qkv = Adapted(wrapped.attn.qkv, a, b)
    merged.attn.qkv.weight.data += b @ a
    with torch.inference_mode():
        assert relative(wrapped(tokens), merged(tokens)) < 1e-5
        assert relative(wrapped(tokens), encoder.blocks[index](tokens)) > 1e-2  # the adapter does something


def test_forward_takes_52_billion_multiplications():
    with torch.device("meta"):
        encoder = ImageEncoder()
        image = torch.empty(1, 1, 128, 128, 128)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(image)
    assert counter.get_total_flops() / 2 == pytest.approx(52e9, rel=0.02)


def test_another_size_is_refused(encoder):
    with pytest.raises(ValueError, match=r"\(B, 1, 128, 128, 128\), not \(1, 1, 64, 128, 128\)"):
        encoder(torch.zeros(1, 1, 64, 128, 128))


def test_random_weights_follow_the_seed_alone(caplog):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = load_image_encoder(None, seed=7)
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    again, other = load_image_encoder(None, seed=7), load_image_encoder(None, seed=8)
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.pos_embed, other.pos_embed)
