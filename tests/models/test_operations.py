"""Operations are counted from what runs; the published rows are met."""

import contextlib
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.lora import LoRA
from fedbrain.models.operations import bare_encoder, cost_of, count_operations
from fedbrain.models.tuning import Frozen, Full, LastK, start_of


def test_operations_of_layers_are_those_written_down_by_hand():
    model = nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4**3, 7))
    expected = 4**3 * 2 * 5 * 27 + 5 * 4**3 * 7
    for device in ("cpu", "meta"):
        assert count_operations(model, torch.zeros(1, 2, 4, 4, 4, device=device)) == expected


def test_the_authors_implementation_takes_184_billion():
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        warnings.simplefilter("ignore")
        import medim

        theirs = medim.create_model("SAM-Med3D", pretrained=False).image_encoder
    counted = count_operations(theirs, torch.empty(1, 1, 128, 128, 128, device="meta"))
    assert counted == CARDS["sam_med3d"].reference_operations
    assert round(counted / 1e9) == 184


@pytest.mark.parametrize("name", CARDS)
def test_the_cards_number_is_what_torch_counts(name):
    encoder, volume = bare_encoder(name), torch.empty(1, 1, 128, 128, 128, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(volume)
    counted = counter.get_total_flops() // 2
    assert count_operations(encoder, volume) == counted
    assert CARDS[name].operations in (counted, 0)


def after_cut(model, head, adapters):
    """Blocks from the cut on and the neck, written down by hand."""
    total = 8**3 * (768 * 384 + 27 * 384 * 384) + head + adapters
    for index in range(start_of(model.cut), 12):
        span = 8 if index in (2, 5, 8, 11) else 14
        tokens = 512 + (span > 8)
        total += tokens * 768 * 3 * 768 + 2 * 12 * 512 * tokens * 64  # qkv; q k^T and the weights times v
        total += 512 * (768 * 768 + 2 * 768 * 4 * 768)  # proj, the MLP
        total += 12 * 64 * 64 * (8 * span + 2 * span * span)  # position terms of 64 lines: along d, h, w
    return total


@pytest.mark.parametrize(
    "tuning", [Frozen(), LoRA(), LastK(blocks=3), Full()], ids=lambda tuning: type(tuning).__name__
)
def test_a_cut_divides_the_operations_and_loses_none(tuning):
    model = build_classifier("conv_s", tuning)
    cost = cost_of(model, EncoderSource())["operations"]
    bare = count_operations(bare_encoder("sam_med3d"), torch.empty(1, 1, 128, 128, 128, device="meta"))
    head = 8**3 * 27 * 384 * 128 + 4**3 * 27 * 128 * 64 + 2**3 * 27 * 64 * 64 + 64 * 2
    adapters = 2 * 513 * 8 * (768 + 3 * 768) if isinstance(tuning, LoRA) else 0
    if adapters:
        adapters -= 8 * (768 + 3 * 768)  # the global one of the two blocks has no pad
    assert cost["volume"] == bare + head + adapters
    expected = {"output": head, "volume": cost["volume"]}.get(model.cut) or after_cut(model, head, adapters)
    assert cost["cut"] == expected
    assert cost["reference"] == CARDS["sam_med3d"].reference_operations + head + adapters


def test_linear_on_the_frozen_encoder_is_the_published_row():
    cost = cost_of(build_classifier("linear", Frozen()), EncoderSource())
    assert cost["parameters"] == {"trained": 770, "full": 92_924_928 + 770}
    assert round(cost["operations"]["reference"] / 1e9) == 184
    assert round(cost["operations"]["volume"] / 1e9) == 52


def test_counting_leaves_the_model_and_its_mode_alone():
    model = build_classifier("linear", Frozen()).train()
    before = model.head.classify.weight
    cost_of(model, EncoderSource())
    assert model.training
    assert model.head.classify.weight is before
