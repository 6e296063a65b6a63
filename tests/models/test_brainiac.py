"""BrainIAC against MONAI's own network and transforms, called as the published code calls them."""

import logging

import pytest
import torch
from monai.networks.nets import ViT
from monai.transforms import Compose, NormalizeIntensity, Resize

from fedbrain.imaging.intensity import encoder_zscore
from fedbrain.models.brainiac import BrainIAC, load_brainiac, published_input


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference():
    """The published call; its attention maps are what save_attn adds. Biases are drawn too, or they would not show."""
    torch.manual_seed(0)
    network = ViT(
        in_channels=1,
        img_size=(96, 96, 96),
        patch_size=(16, 16, 16),
        hidden_size=768,
        mlp_dim=3072,
        num_layers=12,
        num_heads=12,
        save_attn=True,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if "norm" in name or name.endswith("bias"):
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return network


@pytest.fixture(scope="module")
def scan():
    """A brain-extracted volume before the z-score, background zero: an ellipsoid of several tissues and a hole."""
    axis = torch.linspace(-1, 1, 128)
    radius = ((axis[:, None, None] / 0.7) ** 2 + (axis[:, None] / 0.9) ** 2 + (axis / 0.75) ** 2).sqrt()
    noise = torch.rand(128, 128, 128, generator=torch.Generator().manual_seed(2))
    values = torch.where(radius < 1, 300 + 200 * (radius > 0.6) + 50 * noise, torch.tensor(0.0))
    values[60:68, 60:68, 60:68] = 0
    return values


@pytest.fixture(scope="module")
def volume(scan):
    """As the preprocessing writes it."""
    return torch.from_numpy(encoder_zscore(scan.numpy(), (scan > 0).numpy()))[None, None]


@pytest.fixture(scope="module")
def published(scan):
    """The published input transform of the scan itself: (1, 1, 96, 96, 96)."""
    transform = Compose(
        [Resize(spatial_size=(96, 96, 96), mode="trilinear"), NormalizeIntensity(nonzero=True, channel_wise=True)]
    )
    return transform(scan[None].clone()).as_tensor()[None]


@pytest.fixture(scope="module")
def file(reference, tmp_path_factory):
    """The published layout: a Lightning checkpoint with the backbone beside SimCLR's projection head."""
    path = tmp_path_factory.mktemp("weights") / "BrainIAC.ckpt"
    kept = {key: value for key, value in reference.state_dict().items() if "cross_attn" not in key}
    state = {f"backbone.{key}": value for key, value in kept.items()} | {
        "projection_head.layers.0.weight": torch.zeros(2)
    }
    torch.save({"epoch": 1, "state_dict": state, "optimizer_states": [{"state": {}}], "hyper_parameters": {}}, path)
    return path


def test_the_input_is_the_published_transform_of_the_scan_before_our_z_score(volume, published):
    ours = published_input(volume)
    assert ours.shape == (1, 1, 96, 96, 96)
    assert torch.equal(ours != 0, published != 0)
    torch.testing.assert_close(ours, published, rtol=0, atol=2e-5)
    inside = ours[ours != 0]
    assert abs(inside.mean()) < 1e-4
    assert abs(inside.std() - 1) < 1e-4


def test_a_scan_does_not_depend_on_the_rest_of_its_batch(volume):
    batch = torch.cat([volume, 3 * volume.flip(2) + 1, torch.full_like(volume, 4.0)])
    together = published_input(batch)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], published_input(batch[i : i + 1]))
    torch.testing.assert_close(together[1], together[0].flip(1), rtol=0, atol=1e-4)  # scale and background cancel out
    assert not together[2].any()  # an empty volume stays empty


def test_the_input_is_float32_under_autocast(volume):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = published_input(volume)
    assert torch.equal(ours, published_input(volume))


def test_the_published_file_gives_the_published_networks_tokens(file, reference, volume, published):
    encoder = load_brainiac(file)
    assert not encoder.training
    with torch.inference_mode():
        expected, _ = reference(published)  # (1, 216, 768)
        output = encoder(volume)
    assert output.shape == (1, 768, 6, 6, 6)
    torch.testing.assert_close(output.flatten(2).transpose(1, 2), expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(output[:, :, 0, 0, 0], expected[:, 0], rtol=0, atol=2e-4)  # the published feature
    assert expected.std() > 0.1


def test_axes_of_the_volume_stay_in_place():
    """The patch embedding alone, of an image that is bright in one place."""
    encoder = load_brainiac(None)
    encoder.blocks = torch.nn.ModuleList()
    torch.nn.init.zeros_(encoder.patch_embedding.position_embeddings)
    volume = torch.zeros(1, 1, 128, 128, 128)
    volume[..., 24:40, 68:84, 110:126] = 1.0  # 2 mm voxels 18 to 30, 51 to 63, 82 to 94: patch (1, 3, 5)
    with torch.inference_mode():
        output = encoder(volume)
    empty = output[:, :, 0, 0, 0, None, None, None]
    assert (output - empty).abs().sum(1)[0].gt(1e-4).nonzero().tolist() == [[1, 3, 5]]


def test_names_and_number_of_parameters_are_the_published_files(reference):
    with torch.device("meta"):
        encoder = BrainIAC()
    assert sorted(encoder.state_dict()) == sorted(key for key in reference.state_dict() if "cross" not in key)
    block = 3 * 768 * 768 + (768 * 768 + 768) + (2 * 768 * 3072 + 3072 + 768) + 2 * 2 * 768
    expected = (16**3 * 768 + 768) + 216 * 768 + 12 * block + 2 * 768
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected == 88_340_736


def test_random_weights_follow_the_seed_alone(caplog):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        first = load_brainiac(None, seed=7)
    assert "RANDOM WEIGHTS" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(456)
    again, other = load_brainiac(None, seed=7), load_brainiac(None, seed=8)
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)
