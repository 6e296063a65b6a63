"""Weights that the user puts in place: what is said where they are missing or others, and what they decide."""

import hashlib
from dataclasses import replace

import pytest

from fedbrain.errors import StudyError
from fedbrain.imaging import brain_extraction, extractor_cards, shard
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.study import config as study

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(extractor_cards, "_is_installed", lambda module: True)


@pytest.mark.parametrize("name", ["hd_bet", "synthstrip"])
def test_weights_that_are_not_named_or_not_there_are_told_with_key_origin_and_file(name, installed):
    for path in (None, "/nowhere/weights"):
        with pytest.raises(StudyError) as error:
            shard.complete_recipe({"extractor": name, "extractor_weights": path})
        for part in ("preprocessing.extractor_weights", CARDS[name].origin, CARDS[name].file):
            assert part in str(error.value)


@pytest.mark.parametrize("name", ["hd_bet", "synthstrip"])
def test_a_missing_extra_is_told_with_the_command_that_brings_it(name, weights, monkeypatch):
    monkeypatch.setattr(extractor_cards, "_is_installed", lambda module: False)
    problems = list(CARDS[name].problems(str(weights), None))
    assert len(problems) == 1
    assert f"pip install 'fedbrain[{CARDS[name].extra}]'" in problems[0]


def test_a_module_of_a_package_that_is_not_there_is_not_installed():
    assert not extractor_cards._is_installed("no_such_package.module")
    assert extractor_cards._is_installed("fedbrain.imaging")


@pytest.mark.parametrize("name", ["deepbet", "template", "provided"])
def test_weights_for_an_extractor_that_takes_none_are_refused(name, weights):
    with pytest.raises(StudyError, match="extractor_weights: .* takes no weights"):
        shard.complete_recipe({"extractor": name, "extractor_weights": str(weights)})
    with pytest.raises(StudyError, match="extractor_sha256: .* takes no weights"):
        shard.complete_recipe({"extractor": name, "extractor_sha256": SHA256})


def test_where_no_checksum_is_published_the_study_must_name_it_and_is_told_the_files_own(weights, installed):
    assert CARDS["hd_bet"].sha256 is None
    with pytest.raises(StudyError) as error:
        shard.complete_recipe({"extractor": "hd_bet", "extractor_weights": str(weights)})
    assert SHA256 in str(error.value)
    assert "preprocessing.extractor_sha256" in str(error.value)
    full = shard.complete_recipe({"extractor": "hd_bet", "extractor_weights": str(weights), "extractor_sha256": SHA256})
    assert full["extractor_sha256"] == SHA256


def test_a_file_other_than_the_published_one_is_refused_in_the_job_and_at_the_start(weights, installed):
    recipe = {"extractor": "synthstrip", "extractor_weights": str(weights)}
    expected = shard.complete_recipe(recipe)["extractor_sha256"]
    assert expected == CARDS["synthstrip"].sha256
    with pytest.raises(StudyError, match=f"{SHA256}, expected is {expected}"):
        brain_extraction.checked_weights("synthstrip", str(weights), expected)
    with pytest.raises(StudyError, match=f"{SHA256}, expected is {expected}"):
        study.settle_extractor({"preprocessing": recipe | {"extractor_sha256": None}}, SHA256)


def test_a_checksum_that_is_given_stands_above_the_published_one(weights, installed):
    settled = {"extractor": "synthstrip", "extractor_weights": str(weights), "extractor_sha256": SHA256}
    config = {"preprocessing": dict(settled)}
    study.settle_extractor(config, SHA256)
    assert config["preprocessing"] == settled
    assert brain_extraction.checked_weights("synthstrip", str(weights), SHA256) == weights


def test_the_checksum_decides_about_reuse_and_the_path_does_not(weights, tmp_path, monkeypatch, installed):
    # A card without packages, since neither extra need be installed here.
    monkeypatch.setitem(CARDS, "synthstrip", replace(CARDS["synthstrip"], packages=()))
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(CONTENT)

    def method(path, sha256):
        given = {"extractor": "synthstrip", "extractor_weights": str(path), "extractor_sha256": sha256}
        return shard._method(shard.complete_recipe(given))

    assert method(weights, SHA256) == method(elsewhere, SHA256)
    assert method(weights, SHA256) != method(weights, "0" * 64)
