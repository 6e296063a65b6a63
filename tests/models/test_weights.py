"""The released checkpoint's layout is read; everything else is refused with a message that helps."""

import argparse
import hashlib
import logging

import pytest
import torch

from fedbrain.errors import StudyError
from fedbrain.models.sam_med3d import ImageEncoder, load_image_encoder
from fedbrain.models.weights import read_image_encoder_weights, weights_identity

SHAPES = {"neck.0.weight": torch.Size([2, 3]), "neck.1.bias": torch.Size([4])}


def state():
    return {
        "image_encoder.neck.0.weight": torch.arange(6.0).view(2, 3),
        "image_encoder.neck.1.bias": torch.ones(4, dtype=torch.float16),
        "prompt_encoder.no_mask_embed.weight": torch.zeros(1),
        "mask_decoder.iou_token.weight": torch.zeros(1),
    }


def checkpoint(weights=None, **more):
    """The released layout: weights beside the optimizer's state and the training arguments."""
    return {
        "epoch": 3,
        "model_state_dict": state() if weights is None else weights,
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 8e-5}]},
        "losses": [0.5, 0.25],
        "args": argparse.Namespace(task_name="union", lr=8e-5, gpu_ids=[0, 1], multi_gpu=True),
    } | more


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sam_med3d_turbo.pth"


def refusal(path):
    with pytest.raises(StudyError) as caught:
        read_image_encoder_weights(path, SHAPES)
    message = str(caught.value)
    # Every message names the file, where to get the right one, and the config's key.
    assert str(path) in message
    assert "blueyo0/SAM-Med3D" in message
    assert "encoder.weights" in message
    return message


def test_the_encoders_tensors_are_read_as_float32_without_their_prefix(path):
    torch.save(checkpoint(), path)
    tensors = read_image_encoder_weights(path, SHAPES)
    assert tensors.keys() == SHAPES.keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["neck.0.weight"], torch.arange(6.0).view(2, 3))


def test_the_older_file_format_is_read_too(path):
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_image_encoder_weights(path, SHAPES)["neck.1.bias"], torch.ones(4))


def test_a_whole_encoder_is_filled(path, caplog):
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ImageEncoder().state_dict().items()}
    # One number per tensor, expanded: the file stays small.
    values = {
        f"image_encoder.{name}": torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())
    }
    torch.save(checkpoint(values), path)
    with caplog.at_level(logging.WARNING):
        encoder = load_image_encoder(path)
    assert not caplog.records
    assert not encoder.training
    for i, (name, parameter) in enumerate(encoder.named_parameters()):
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert (parameter == i).all(), name


def test_a_missing_file(path):
    assert "there is no file" in refusal(path)
    with pytest.raises(StudyError, match="there is no file"):
        weights_identity(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_file(path, zipped, part):
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert "not a readable checkpoint" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n <!DOCTYPE html><html><head><title>sam_med3d_turbo.pth", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"PK\x03\x04 but no archive", "not a readable checkpoint"),
    ],
)
def test_something_else_under_its_name(path, content, said):
    path.write_bytes(content)
    assert said in refusal(path)


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_refused_and_not_run(path, tmp_path, zipped):
    target = tmp_path / "written"
    torch.save(checkpoint(extra=Harmful(str(target))), path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(path)
    assert not target.exists()


def test_the_permission_for_the_arguments_class_does_not_outlast_the_call(path):
    torch.save(checkpoint(), path)
    read_image_encoder_weights(path, SHAPES)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_encoder.neck.1.bias": None}, "neck.1.bias is missing"),
        ({"image_encoder.patch_embed.extra": torch.zeros(1)}, "patch_embed.extra is not known"),
        ({"image_encoder.neck.1.bias": torch.zeros(5)}, r"neck.1.bias is (5,) and not (4,)"),
    ],
)
def test_another_networks_weights(path, change, said):
    weights = {key: value for key, value in (state() | change).items() if value is not None}
    torch.save(checkpoint(weights), path)
    message = refusal(path)
    assert said in message
    assert "vit_b_ori" in message


def test_values_that_are_not_finite(path):
    torch.save(checkpoint(state() | {"image_encoder.neck.1.bias": torch.tensor([1.0, 2.0, float("nan"), 4.0])}), path)
    assert "not finite" in refusal(path)


def test_a_file_without_the_models_weights(path):
    torch.save({"state_dict": state()}, path)
    assert "model_state_dict" in refusal(path)


def test_identity_names_file_and_content_or_the_seed(path):
    path.write_bytes(b"abc")
    assert weights_identity(path) == f"sam_med3d_turbo.pth sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert weights_identity(None, seed=3) == "random (seed 3)"
