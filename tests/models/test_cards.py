"""The cards agree with the networks, and a cohort's data set is found among the sets of an encoder's pretraining."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch

from fedbrain.models.brainiac import BrainIAC
from fedbrain.models.cards import CARDS, overlap
from fedbrain.models.sam_med3d import ImageEncoder

ENCODERS = {"sam_med3d": ImageEncoder, "brainiac": BrainIAC}


@pytest.mark.parametrize("name", CARDS)
def test_every_number_of_a_card_is_the_networks(name):
    card = CARDS[name]
    with torch.device("meta"):
        encoder = ENCODERS[name]()
        volume = torch.empty(1, 1, 128, 128, 128)
    entering = []
    (patches,) = [
        module for module in encoder.modules() if isinstance(module, torch.nn.Conv3d) and module.stride[0] > 1
    ]
    patches.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].shape))
    with torch.no_grad():
        tokens = encoder.tokens(volume, 0)
        output = encoder.from_tokens(tokens, 0)
    assert encoder.card is card
    assert encoder.depth == card.depth
    assert tokens.shape == (1, torch.Size(card.grid).numel(), card.width)
    assert output.shape == (1, card.channels, *card.grid)
    assert entering == [(1, 1, *card.input_shape)]
    assert card.spacing * card.input_shape[0] == 128 * 1.5  # the same field of view


def test_cards_are_constants():
    with pytest.raises(FrozenInstanceError):
        CARDS["brainiac"].pretraining = ()


def test_reading_the_cards_loads_no_torch():
    code = "import sys; import fedbrain.models.cards; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_every_listed_name_is_found_however_it_is_written(card):
    for name in card.pretraining:
        for written in (
            name,
            name.upper(),
            name.lower(),
            name.replace("-", ""),
            name.replace(" ", "_").replace("-", " "),
        ):
            assert overlap(card, written) == name


@pytest.mark.parametrize(
    ("dataset", "listed"),
    [
        ("ADNI-1", "ADNI"),
        ("ADNI2", "ADNI"),
        ("ADNI_GO", "ADNI"),
        ("AdniGO", "ADNI"),
        ("ADNI 1/GO/2/3", "ADNI"),
        ("adni baseline T1w", "ADNI"),
        ("LONI: ADNI", "ADNI"),
        ("Alzheimer's Disease Neuroimaging Initiative", "ADNI"),
        ("Alzheimer’s Disease Neuroimaging Initiative 3", "ADNI"),
        ("ABIDE II", "ABIDE"),
        ("ABIDEII", "ABIDE"),
        ("OASIS3", "OASIS-3"),
        ("Oasis 3", "OASIS-3"),
        ("OASIS III", "OASIS-3"),
        ("OASIS-3_AV45", "OASIS-3"),
        ("Open Access Series of Imaging Studies 3", "OASIS-3"),
        ("OASIS", "OASIS-2"),  # any of them
        ("OASIS-1", ""),
        ("OASIS-30", ""),
        ("OASIS-1 and OASIS-3", "OASIS-3"),
        ("AD", ""),
        ("NI", ""),
        ("ADN", ""),
        ("NADNI", ""),
        ("ADNIX", ""),
        ("AIBL", ""),
        ("J-AIBL 3", ""),
        ("3", ""),
        ("", ""),
        ("DFCI LGG", ""),  # half of a name
    ],
)
def test_a_data_set_is_found_by_its_words(dataset, listed):
    assert overlap(CARDS["brainiac"], dataset) == listed


def test_encoders_have_seen_different_data():
    assert overlap(CARDS["brainiac"], "ADNI")
    assert not overlap(CARDS["sam_med3d"], "ADNI")
    assert overlap(CARDS["sam_med3d"], "BraTS 2021")
    assert not overlap(CARDS["sam_med3d"], "BraTS 2023")
