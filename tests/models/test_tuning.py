"""Tunings: what is trained, that a first step changes nothing, gradients against the reference, the kept prefix."""

import copy
from dataclasses import fields

import pytest
import torch
from agreement import relative
from torch import nn
from torch.nn import functional

from fedbrain.errors import StudyError
from fedbrain.federated.data import Samples
from fedbrain.federated.sharing import Sharing
from fedbrain.federated.task import TrainingOptions, evaluate, round_generator, train
from fedbrain.models.classifier import Classifier, EncoderSource, build_classifier
from fedbrain.models.heads import LinearHead
from fedbrain.models.lora import LoRA
from fedbrain.models.sam_med3d import load_image_encoder
from fedbrain.models.tuning import Frozen, Full, LastK, Norm, start_of

BLOCK = 7_087_872  # parameters of a block without its position tables: 768 * (12 * 768 + 13)
TABLES = {"windowed": 3 * 27 * 64, "global": 3 * 15 * 64}
NECK = 768 * 384 + 2 * 384 + 27 * 384 * 384 + 2 * 384


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base():
    return load_image_encoder(None, seed=3)


def tuned(base, tuning):
    """``base`` tuned, with a head, as a cell trains it."""
    encoder = copy.deepcopy(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tuning.apply(encoder)
        cut = tuning.cut(encoder.depth)
        if (start := start_of(cut)) is not None:
            encoder.drop_prefix(start)
        return Classifier(cut, encoder, LinearHead())


def trained_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize(
    ("tuning", "cut", "count"),
    [
        (Full(), "volume", 92_924_928),
        (LastK(), "block10", 2 * BLOCK + TABLES["windowed"] + TABLES["global"] + NECK),
        (LastK(blocks=1), "block11", BLOCK + TABLES["global"] + NECK),
        (LoRA(rank=4), "block10", 2 * 4 * (768 + 3 * 768)),
        (LoRA(rank=4, targets=["q", "v"]), "block10", 2 * 4 * 3072),  # 3,072 r a block, as FLAP-SAM counts it
        (LoRA(rank=2, blocks=[5, 9], targets=["proj", "lin1", "lin2"]), "block5", 2 * 2 * (2 * 768 + 2 * 5 * 768)),
        (Norm(biases=False), "block0", 12 * 4 * 768 + 4 * 384),
        (Norm(blocks=2), "block10", 2 * (4 * 768 + 3 * 768 + 768 + 4 * 768 + 768) + 4 * 384),
        (LoRA(cached=False), "volume", 2 * 8 * 4 * 768),
    ],
)
def test_what_is_trained_is_counted_by_hand(base, tuning, cut, count):
    model = tuned(base, tuning)
    assert model.cut == cut
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == count
    shared = Sharing.of(model).select(model.state_dict(), "shared")
    assert sorted(shared) == sorted(trained_names(model))  # what travels is what is trained


def test_the_head_alone_is_the_frozen_model():
    model = build_classifier("linear", Frozen())
    assert (model.cut, model.encoder, trained_names(model)) == (
        "output",
        None,
        ["head.classify.weight", "head.classify.bias"],
    )


@pytest.mark.parametrize("targets", [["qkv"], ["q", "v"], ["q", "k", "v", "proj", "lin1", "lin2"]])
def test_before_the_first_step_lora_is_the_encoder_bit_by_bit(base, targets):
    tokens = torch.randn(2, 512, 768, generator=torch.Generator().manual_seed(3))
    model = tuned(base, LoRA(targets=targets, dropout=0.3))
    with torch.no_grad():
        expected = base.from_tokens(tokens, 10)
        assert torch.equal(model.encoder.from_tokens(tokens, 10), expected)
        assert torch.equal(model.train().encoder.from_tokens(tokens, 10), expected)


@pytest.mark.parametrize("targets", [["qkv"], ["q", "v"], ["proj", "lin1", "lin2"]])
def test_lora_is_the_encoder_with_merged_weights(base, targets):
    """W + (alpha / r) B A, written down without peft."""
    model = tuned(base, LoRA(targets=targets, rank=3, alpha=5, blocks=1))
    merged = copy.deepcopy(base)
    block, state = merged.blocks[11], model.encoder.blocks[11].state_dict()
    paths = {"qkv": "attn.qkv", "proj": "attn.proj", "lin1": "mlp.lin1", "lin2": "mlp.lin2"}
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for target in targets:
            place = f"attn.qkv.parts.{target}" if target in "qkv" and target != "qkv" else paths[target]
            a, b = state[f"{place}.lora_A.default.weight"], state[f"{place}.lora_B.default.weight"]
            b.copy_(torch.randn(b.shape, generator=generator) * 0.1)
            weight = block.get_submodule(paths["qkv" if len(target) == 1 else target]).weight
            third = {"q": slice(0, 768), "k": slice(768, 1536), "v": slice(1536, 2304)}.get(target, slice(None))
            weight[third] += 5 / 3 * b @ a
        tokens = torch.randn(1, 512, 768, generator=generator)
        assert relative(model.encoder.from_tokens(tokens, 11), merged.from_tokens(tokens, 11)) < 1e-5
        assert (
            relative(base.from_tokens(tokens, 11), merged.from_tokens(tokens, 11)) > 1e-3
        )  # the adapter does something


def test_gradients_of_every_tensor_agree_with_the_reference(reference, encoder):
    """Full and LoRA tuning in one backward pass of the whole network: all parameters, and adapters on every block."""
    from peft import LoraConfig, inject_adapter_in_model

    image = torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(2))
    names = [f"blocks.{index}.attn.qkv" for index in range(12)]
    ours, theirs = copy.deepcopy(encoder), copy.deepcopy(reference)
    LoRA(rank=2, alpha=2, blocks="all").apply(ours)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=names), theirs)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in ours.state_dict().items():
        if "lora_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    head, gradients = LinearHead(), []
    for network in (theirs, ours):
        network.requires_grad_(True)
        loss = functional.cross_entropy(head(network(image)), torch.tensor([1]))
        assert 0.1 < float(loss) < 5  # far from saturation, where gradients are rounding errors
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        network.zero_grad()
    expected, found = gradients
    assert expected.keys() == found.keys()
    assert len([name for name in found if "lora_" in name]) == 24
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-4, name


@pytest.mark.parametrize(
    "tuning", [LoRA(), LoRA(targets=["q", "v"], dropout=0.2), LastK(blocks=1), Norm(blocks=[10])], ids=str
)
def test_training_on_kept_tokens_gives_the_losses_of_training_on_volumes(base, tuning):
    volumes = torch.randn(2, 1, 128, 128, 128, generator=torch.Generator().manual_seed(8))
    labels, ids = torch.tensor([0, 1]), ("a", "b")
    options = TrainingOptions(rounds=1, local_epochs=2, batch_size=1, learning_rate=1e-3)
    uncached = type(tuning)(**{field.name: getattr(tuning, field.name) for field in fields(tuning)} | {"cached": False})
    losses, scores = [], []
    for choice in (tuning, uncached):
        model = tuned(base, choice)
        start = start_of(model.cut)
        with torch.no_grad():
            x = volumes if start is None else torch.cat([base.tokens(volume[None], start) for volume in volumes])
        samples = Samples(x, labels, ids, (None,) * 2, ids)
        losses.append(train(model, samples, options, round_generator(0, "A", 1), "cpu"))
        scores.append(evaluate(model, samples, options).scores)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)


def test_tunings_fit_another_encoder_too():
    source = EncoderSource("brainiac")
    model = build_classifier("linear", LoRA(rank=4, blocks=1, targets=["q", "v"]), source=source)
    assert (model.cut, model.head.classify.in_features) == ("block11", 768)
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == 3072 * 4
    plain = build_classifier("linear", LastK(blocks=1), source=source)
    assert any(name.startswith("encoder.norm") for name in trained_names(plain))
    tokens = torch.randn(1, 216, 768, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert torch.equal(model(tokens), plain(tokens))  # before the first step both are the encoder and the same head


def test_an_untrained_encoder_can_stand_beside_the_pretrained_one(tmp_path):
    state = {
        f"image_encoder.{name}": tensor + 1 for name, tensor in load_image_encoder(None, seed=0).state_dict().items()
    }
    torch.save({"model_state_dict": state}, tmp_path / "w.pth")
    source = EncoderSource("sam_med3d", str(tmp_path / "w.pth"), seed=0)
    study, control = (
        build_classifier("linear", LastK(blocks=1, weights=weights), source=source) for weights in ("study", "random")
    )
    for name, tensor in control.state_dict().items():
        if name.startswith("encoder."):
            assert torch.equal(study.state_dict()[name], tensor + 1)
        else:
            assert torch.equal(study.state_dict()[name], tensor)  # the same head


def test_the_seed_decides_the_adapters_and_the_head_whatever_was_drawn_before():
    models = []
    for drawn in (1, 7):
        torch.manual_seed(drawn)
        models.append(build_classifier("linear", LoRA(blocks=1), seed=5))
        after = torch.rand(1)
        torch.manual_seed(drawn)
        assert torch.equal(after, torch.rand(1))
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], tensor)
    head = build_classifier("linear", Frozen(), seed=5).head.classify.weight
    assert torch.equal(models[0].head.classify.weight, head)


def test_what_is_frozen_stays_in_evaluation():
    class WithNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.trained = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
            self.frozen.requires_grad_(False)

    model = Classifier("volume", WithNorm(), nn.Linear(2, 2)).train()
    assert (model.encoder.frozen.training, model.encoder.trained.training) == (False, True)
    assert not model.eval().encoder.trained.training


def test_a_model_that_trains_nothing_can_be_asked_to_train_and_to_evaluate():
    model = Classifier("volume", None, nn.Sequential(nn.Linear(2, 2), nn.Dropout())).requires_grad_(False)
    for ask in (model.train, model.eval):
        ask()
        assert not model.head.training


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LoRA, {"rank": 0}, "rank must be a whole number from 1 on, it is 0"),
        (LoRA, {"dropout": 1.0}, "dropout must be a number from 0 to below 1"),
        (LoRA, {"targets": ["qkv", "v"]}, "name either qkv or its parts"),
        (LoRA, {"targets": ["query"]}, "targets must be a list of qkv, q, k, v"),
        (LoRA, {"targets": "qkv"}, "targets must be a list"),
        (LoRA, {"blocks": 0}, "blocks must be a number from 1 on"),
        (LoRA, {"blocks": []}, "blocks must be a number from 1 on"),
        (LastK, {"blocks": [3]}, "a number of last blocks"),
        (Full, {"weights": "other"}, "weights must be study or random"),
    ],
)
def test_options_that_make_no_sense_are_refused(kind, options, message):
    with pytest.raises(StudyError, match=message):
        kind(**options)


@pytest.mark.parametrize("blocks", [13, [3, 12]])
def test_blocks_that_an_encoder_does_not_have_are_refused(blocks):
    with pytest.raises(StudyError, match=r"does not fit an encoder of 12 blocks \(0 to 11\)"):
        LoRA(blocks=blocks).cut(12)
