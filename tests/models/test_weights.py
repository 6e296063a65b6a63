"""The published checkpoints' layouts are read; everything else is refused with a message that helps."""

import argparse
import hashlib
import logging
import sys
from collections import OrderedDict

import pytest
import torch

from fedbrain.errors import StudyError
from fedbrain.models import brainiac, sam_med3d
from fedbrain.models.cards import CARDS
from fedbrain.models.weights import read_weights, weights_identity

SHAPES = {"neck.0.weight": torch.Size([2, 3]), "neck.1.bias": torch.Size([4])}
TENSORS = {"neck.0.weight": torch.arange(6.0).view(2, 3), "neck.1.bias": torch.ones(4, dtype=torch.float16)}


class SAMMed3D:
    """The released layout: weights of the whole model beside the optimizer's state and the training arguments."""

    layout = sam_med3d.CHECKPOINT
    prefix = "image_encoder."
    container = "model_state_dict"
    said = ("blueyo0/SAM-Med3D", "sam_med3d_turbo.pth", "Apache-2.0")

    @classmethod
    def state(cls, tensors=TENSORS):
        others = {
            "prompt_encoder.no_mask_embed.weight": torch.zeros(1),
            "mask_decoder.iou_token.weight": torch.zeros(1),
        }
        return {cls.prefix + name: tensor for name, tensor in tensors.items()} | others

    @classmethod
    def checkpoint(cls, state=None, **more):
        return {
            "epoch": 3,
            "model_state_dict": cls.state() if state is None else state,
            "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 8e-5}]},
            "losses": [0.5, 0.25],
            "args": argparse.Namespace(task_name="union", lr=8e-5, gpu_ids=[0, 1], multi_gpu=True),
        } | more


class BrainIAC:
    """A Lightning checkpoint: the backbone and SimCLR's projection head, optimizer, loops, callbacks, hyper parameters."""

    layout = brainiac.CHECKPOINT
    prefix = "backbone."
    container = "state_dict"
    said = ("AIM-KannLab/BrainIAC", "BrainIAC.ckpt", "non-commercial")

    @classmethod
    def state(cls, tensors=TENSORS):
        others = {"projection_head.layers.0.weight": torch.zeros(1)}
        return OrderedDict({cls.prefix + name: tensor for name, tensor in tensors.items()} | others)

    @classmethod
    def checkpoint(cls, state=None, **more):
        return {
            "epoch": 3,
            "global_step": 1000,
            "pytorch-lightning_version": "2.3.3",
            "state_dict": cls.state() if state is None else state,
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}
            },
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}],
            "lr_schedulers": [{"T_0": 50, "_last_lr": [1e-4]}],
            "hparams_name": "config",
            "hyper_parameters": {"model": {"max_epochs": 200}, "args": argparse.Namespace(lr=1e-4)},
        } | more


@pytest.fixture(params=[SAMMed3D, BrainIAC], ids=["sam_med3d", "brainiac"])
def published(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.ckpt"


def read(path, published):
    return read_weights(path, SHAPES, published.layout)


def refusal(path, published):
    with pytest.raises(StudyError) as caught:
        read(path, published)
    message = str(caught.value)
    # Every message names the file, where to get the right one, its licence, and the config's key.
    for said in (str(path), *published.said, "encoder.weights"):
        assert said in message
    return message


def test_the_encoders_tensors_are_read_as_float32_without_their_prefix(path, published):
    torch.save(published.checkpoint(), path)
    tensors = read(path, published)
    assert tensors.keys() == SHAPES.keys()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["neck.0.weight"], torch.arange(6.0).view(2, 3))


def test_the_older_file_format_is_read_too(path, published):
    torch.save(published.checkpoint(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(read(path, published)["neck.1.bias"], torch.ones(4))


@pytest.mark.parametrize(
    ("published", "load"),
    [(SAMMed3D, sam_med3d.load_image_encoder), (BrainIAC, brainiac.load_brainiac)],
    ids=["sam_med3d", "brainiac"],
)
def test_a_whole_encoder_is_filled(path, caplog, published, load):
    network = {"sam_med3d_turbo.pth": sam_med3d.ImageEncoder, "BrainIAC.ckpt": brainiac.BrainIAC}
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network[published.said[1]]().state_dict().items()}
    # One number per tensor, expanded: the file stays small.
    values = {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    torch.save(published.checkpoint(published.state(values)), path)
    with caplog.at_level(logging.WARNING):
        encoder = load(path)
    assert not caplog.records
    assert not encoder.training
    for i, (name, parameter) in enumerate(encoder.named_parameters()):
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert (parameter == i).all(), name


def test_a_missing_file(path, published):
    assert "there is no file" in refusal(path, published)
    with pytest.raises(StudyError, match="there is no file"):
        weights_identity(path)
    with pytest.raises(StudyError, match=f"there is no file.*{published.said[1]}"):
        weights_identity(path, card=published.layout.card)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file(path, published, zipped):
    torch.save(published.checkpoint(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(0, len(content) * 9 // 10, 97):
        path.write_bytes(content[:length])
        # Where the cut goes through the name of a class, what is left of it names an unknown one.
        assert any(said in refusal(path, published) for said in ("not a readable checkpoint", "refused"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n <!DOCTYPE html><html><head><title>the weights", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"PK\x03\x04 but no archive", "not a readable checkpoint"),
    ],
)
def test_something_else_under_its_name(path, published, content, said):
    path.write_bytes(content)
    assert said in refusal(path, published)


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_other_classes_are_refused_and_not_run(path, tmp_path, published, zipped):
    target = tmp_path / "written"
    torch.save(published.checkpoint(extra=Harmful(str(target))), path, _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(path, published)
    assert not target.exists()


def test_lightnings_own_dict_is_read_without_lightning(path):
    """As its older versions wrote the hyper parameters."""
    with pytest.MonkeyPatch.context() as patch:
        module = type(argparse)("pytorch_lightning.utilities.parsing")
        module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
        for i in range(1, 4):
            name = ".".join(module.__name__.split(".")[:i])
            patch.setitem(sys.modules, name, module if i == 3 else type(argparse)(name))
        torch.save(BrainIAC.checkpoint(hyper_parameters=module.AttributeDict(lr=1e-4)), path)
    assert read(path, BrainIAC).keys() == SHAPES.keys()
    with pytest.raises(StudyError, match="refused"):  # the other encoder's authors did not use it
        read(path, SAMMed3D)


def test_the_permission_for_the_arguments_class_does_not_outlast_the_call(path, published):
    torch.save(published.checkpoint(), path)
    before = set(torch.serialization.get_safe_globals())
    read(path, published)
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("neck.1.bias", None, "neck.1.bias is missing"),
        ("patch_embed.extra", torch.zeros(1), "patch_embed.extra is not known"),
        ("neck.1.bias", torch.zeros(5), r"neck.1.bias is (5,) and not (4,)"),
        ("neck.1.bias", "text", "neck.1.bias is str and not (4,)"),
    ],
)
def test_another_networks_weights(path, published, name, value, said):
    tensors = {key: tensor for key, tensor in (TENSORS | {name: value}).items() if tensor is not None}
    torch.save(published.checkpoint(published.state(tensors)), path)
    message = refusal(path, published)
    assert said in message
    assert published.layout.card.title in message


def test_one_encoders_file_is_not_the_others(path):
    torch.save(BrainIAC.checkpoint(), path)
    assert "holds no model_state_dict" in refusal(path, SAMMed3D)
    torch.save(SAMMed3D.checkpoint(), path)
    assert "neck.0.weight is missing" in refusal(path, BrainIAC)


def test_brainiac_may_be_the_tensors_alone_and_carry_what_monai_does_not_use(path):
    """As the published code reads it; and versions of MONAI that make cross attention in each block store it."""
    spare = {"blocks.0.cross_attn.to_q.weight": torch.zeros(1), "blocks.0.norm_cross_attn.bias": torch.zeros(1)}
    torch.save(BrainIAC.state(TENSORS | spare), path)
    assert read(path, BrainIAC).keys() == SHAPES.keys()


def test_values_that_are_not_finite(path, published):
    spoiled = TENSORS | {"neck.1.bias": torch.tensor([1.0, 2.0, float("nan"), 4.0])}
    torch.save(published.checkpoint(published.state(spoiled)), path)
    assert "not finite" in refusal(path, published)


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2]])
def test_a_file_without_the_models_weights(path, content):
    torch.save(content, path)
    assert "model_state_dict" in refusal(path, SAMMed3D)


def test_identity_names_file_and_content_or_the_seed(path):
    path.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert weights_identity(path) == f"weights.ckpt sha256:{digest}"
    assert weights_identity(path, card=CARDS["brainiac"]) == f"weights.ckpt sha256:{digest}"
    assert weights_identity(None, seed=3) == "random (seed 3)"
