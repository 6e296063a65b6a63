"""What holds for every encoder: the cut, the forgotten prefix, the places of adapters, the shape of the input.

The networks' first four blocks stand for all, since nothing here depends on how many there are.
"""

import pytest
import torch
from torch import nn

from fedbrain.models.brainiac import BrainIAC
from fedbrain.models.encoder import Encoder
from fedbrain.models.sam_med3d import ImageEncoder

BLOCKS = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[ImageEncoder, BrainIAC], ids=["sam_med3d", "brainiac"])
def network(request):
    return request.param


def short(network, seed=0):
    """The network with its first blocks only and no parameter at zero."""
    with torch.device("meta"):
        encoder = network()
    encoder.blocks = encoder.blocks[:BLOCKS]
    encoder = encoder.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return encoder


@pytest.fixture(scope="module")
def encoder(network):
    return short(network)


@pytest.fixture(scope="module")
def volume():
    values = torch.full((2, 1, 128, 128, 128), -0.7)
    values[..., 20:100, 16:110, 10:90] = torch.randn(2, 1, 80, 94, 80, generator=torch.Generator().manual_seed(1))
    return values


@pytest.fixture(scope="module")
def output(encoder, volume):
    with torch.inference_mode():
        return encoder(volume)


def test_forward_is_every_cut(encoder, volume, output):
    with torch.inference_mode():
        for cut in range(BLOCKS + 1):
            tokens = encoder.tokens(volume, cut)
            assert torch.equal(encoder.from_tokens(tokens, cut), output)
    assert output.std() > 0
    assert (output[0] - output[1]).abs().max() > 0


def test_a_forgotten_prefix_changes_neither_names_nor_results(network, volume, output):
    encoder = short(network)
    with torch.inference_mode():
        tokens = encoder.tokens(volume, 3)
    names = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    before = sum(parameter.numel() for parameter in encoder.parameters())
    encoder.drop_prefix(2)
    kept = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    assert kept.items() < names.items()
    assert f"blocks.3.{encoder.projections['qkv']}.weight" in kept
    gone = {name.split(".")[0] if "blocks" not in name else name[:8] for name in names.keys() - kept.keys()}
    assert gone == {*encoder.prefix, "blocks.0", "blocks.1"}
    assert not any(name.startswith(("blocks.0", "blocks.1", *encoder.prefix)) for name in encoder.state_dict())
    assert sum(parameter.numel() for parameter in encoder.parameters()) < before / 1.5
    assert encoder.depth == BLOCKS
    with torch.inference_mode():
        assert torch.equal(encoder.from_tokens(tokens, 3), output)


def test_a_forgotten_prefix_is_not_used_by_mistake(network, volume):
    encoder = short(network)
    encoder.drop_prefix(2)
    for call in (lambda: encoder(volume), lambda: encoder.tokens(volume, 3)):
        with pytest.raises(RuntimeError, match="forgotten what comes before block 2"):
            call()
    tokens = torch.zeros(1, 216 if network is BrainIAC else 512, 768)
    with pytest.raises(ValueError, match="forgotten the blocks before 2; it cannot start at 1"):
        encoder.from_tokens(tokens, 1)
    encoder.drop_prefix(1)  # forgets nothing more, and brings nothing back
    with pytest.raises(ValueError, match="before 2"):
        encoder.from_tokens(tokens, 1)


def test_without_its_embedding_alone_all_blocks_stay(network, volume, output):
    encoder = short(network)
    with torch.inference_mode():
        tokens = encoder.tokens(volume, 0)
        encoder.drop_prefix(0)
        assert torch.equal(encoder.from_tokens(tokens, 0), output)
    assert not any(name.startswith(encoder.prefix) for name, _ in encoder.named_parameters())


def test_the_weights_behind_the_cut_can_be_loaded_again(network):
    whole, part = short(network, 1), short(network, 2)
    part.drop_prefix(3)
    part.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if name in part.state_dict()})
    weight = f"blocks.3.{part.projections['lin2']}.weight"
    assert torch.equal(part.get_parameter(weight), whole.get_parameter(weight))


def test_each_projection_is_a_linear_layer_of_every_block(encoder):
    width = encoder.card.width
    shapes = {"qkv": (3 * width, width), "proj": (width, width), "lin1": (4 * width, width), "lin2": (width, 4 * width)}
    assert encoder.projections.keys() == shapes.keys()
    for block in encoder.blocks:
        linear = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
        assert linear == set(encoder.projections.values())  # and there is no other
        for name, path in encoder.projections.items():
            assert block.get_submodule(path).weight.shape == shapes[name]


def test_every_parameter_takes_part(network, volume):
    """What takes no part would be sent between the clients for nothing, and has no gradient."""
    encoder = short(network)
    encoder(volume[:1])[0, :, 0].square().sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("shape", [(1, 1, 96, 96, 96), (1, 2, 128, 128, 128), (128, 128, 128)])
def test_another_shape_is_refused(encoder, shape):
    with pytest.raises(ValueError, match=r"takes \(B, 1, 128, 128, 128\), not"):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize("block", [-1, BLOCKS + 1])
def test_a_block_that_is_not_there_is_refused(network, encoder, volume, block):
    for call in (encoder.drop_prefix, lambda k: encoder.tokens(volume, k), lambda k: encoder.from_tokens(None, k)):
        with pytest.raises(ValueError, match=f"block {block} is not there: this encoder has {BLOCKS}"):
            call(block)


def test_an_encoder_is_embed_blocks_and_output(volume):
    """The smallest one: what another author has to write."""

    class Means(Encoder):
        prefix = ("scale",)
        projections = {"lin": ""}

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

        def embed(self, x):
            return self.scale * x.mean(dim=(2, 3, 4))[:, None]

        def output(self, t):
            return t.view(-1, 1, 1, 1, 1)

    encoder = Means()
    expected = encoder.blocks[1](encoder.blocks[0](2 * volume.mean(dim=(1, 2, 3, 4))[:, None]))
    torch.testing.assert_close(encoder(volume).flatten(), expected.flatten())
    encoder.drop_prefix(1)
    assert [name for name, _ in encoder.named_parameters()] == ["blocks.1.weight", "blocks.1.bias"]
