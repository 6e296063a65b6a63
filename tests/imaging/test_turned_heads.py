"""Heads stored along other axes than their header says, and extractors that find nothing in them as they lie."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedbrain import registry
from fedbrain.imaging import registration, shard
from fedbrain.imaging.brain_extraction import Extraction
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.quality import dice
from fedbrain.imaging.reading import Scan, ScanFailure, Source, decode, read_source

SHORT = {"registration_resolution": 4, "registration_iterations": [100, 50], "bias_field_iterations": [10]}
RECIPE = shard.complete_recipe(SHORT)
FRONT = nibabel.orientations.axcodes2ornt("RSP")  # turned by 90 degrees about x, the header left as it was


@pytest.fixture(scope="module")
def brain():
    """The template's brain at 3 mm, and its affine."""
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-96, -114, -93]
    values = registration.resample(
        1000 * registration.template().values, np.linalg.inv(registration.GRID_AFFINE) @ affine, (65, 66, 65)
    )
    return values, affine


def source(values, affine):
    content = nibabel.Nifti1Image(values.astype(np.float32), affine).to_bytes()
    return Source(Path("memory"), content, "", len(content), 0)


def compute(monkeypatch, finds, values, affine, **recipe):
    """compute_scan with ``finds`` for an extractor."""
    lookup = registry.lookup
    monkeypatch.setattr(
        registry, "lookup", lambda kind, name: finds if kind == "brain_extractor" else lookup(kind, name)
    )
    return shard.compute_scan(source(values, affine), None, RECIPE | recipe, "cpu")


def turning(record):
    return next((step["parameters"] for step in record["steps"] if step["name"] == "turning"), None)


def by_the_array(scan, mask, *, device, options):
    """As deepbet: a brain is longest along the array's second axis and narrowest along its first, or it is none."""
    sides = np.ptp(np.argwhere(scan.values > 0), axis=0) * scan.voxel_size
    if not sides[0] < sides[2] < sides[1]:
        raise ScanFailure("it finds no brain")
    return Extraction(scan.values > 0, {})


def by_the_header(scan, mask, *, device, options):
    """As SynthStrip and template: the same, where the header says that they lie."""
    sides = np.ptp(nibabel.affines.apply_affine(scan.affine, np.argwhere(scan.values > 0)), axis=0)
    if not sides[0] < sides[2] < sides[1]:
        raise ScanFailure("it finds no brain")
    return Extraction(scan.values > 0, {})


@pytest.mark.parametrize("extractor", [by_the_array, by_the_header])
def test_a_head_in_which_no_brain_is_found_as_it_lies_is_turned(brain, monkeypatch, extractor):
    values, affine = brain
    turned = nibabel.apply_orientation(values, FRONT).copy()
    volume, mask, record, _ = compute(monkeypatch, extractor, turned, affine)
    said = turning(record)
    assert (said["array_axes"], said["similarity_before"]) == ("RIA", None)
    assert said["similarity_after"] > 0.3
    template = registration.template()
    assert dice(mask, template.mask) > 0.95
    assert np.corrcoef(volume[template.mask], template.values[template.mask])[0, 1] > 0.9


def test_a_second_try_that_fails_does_not_cost_the_first_that_was_good(brain, monkeypatch):
    values, affine = brain
    calls = []

    def once(scan, mask, *, device, options):
        calls.append(scan)
        if len(calls) > 1:
            raise ScanFailure("it finds no brain")
        return Extraction(scan.values > 0, {})

    volume, mask, record, _ = compute(monkeypatch, once, nibabel.apply_orientation(values, FRONT).copy(), affine)
    assert len(calls) == 2
    assert turning(record)["similarity_after"] is None
    assert turning(record)["similarity_before"] > 0.3
    assert [step["name"] for step in record["steps"]][:5] == [
        *("reading", "turning", "brain_extraction", "bias_field", "registration")
    ]
    assert dice(mask, registration.template().mask) > 0.95


@pytest.mark.parametrize(("name", "times"), [("deepbet", 24), ("synthstrip", 7), ("provided", 1)])
def test_how_often_a_hopeless_scan_is_tried_and_with_which_reason_it_fails(monkeypatch, name, times):
    tried = []

    def never(scan, mask, *, device, options):
        tried.append(scan.values.shape)
        raise ScanFailure(f"try {len(tried)}")

    noise = np.random.default_rng(0).normal(100, 20, (24, 26, 28))
    with pytest.raises(ScanFailure, match="^try 1$"):
        compute(monkeypatch, never, noise, np.diag([8.0, 8, 8, 1]), extractor=name)
    assert len(tried) == times <= 1 + CARDS[name].orientations


def test_the_likeliest_orientation_is_that_in_which_a_brain_lies(brain):
    values, affine = brain
    for codes in ("RAS", "RSP"):
        turned = nibabel.apply_orientation(values, nibabel.orientations.axcodes2ornt(codes))
        ranked = registration.likely_orientations(turned, affine)
        assert {registration.axis_codes(turn) for turn in ranked} == {
            registration.axis_codes(turn) for turn in registration.quarter_turns()
        }
        # The turn goes from the head's axes to the array's.
        best = registration.similarity(
            *registration.thinned(turned, affine, 6.0),
            registration.look_upright(*upright(turned, affine, ranked[0]))[1],
        )
        assert best > 0.2


def upright(values, affine, turn):
    scan = Scan(np.asarray(values, np.float32), affine).turned(turn)
    return scan.values, scan.affine


def test_the_template_finds_a_real_brain_whose_header_is_wrong_by_90_degrees(real_heads):
    name = "ds000240-sub01"
    scan = decode(read_source(real_heads / "heads" / f"{name}_T1w.nii.gz"))
    reference = decode(read_source(real_heads / "brain_masks" / f"{name}_brainmask.nii.gz")).values > 0.5
    head, affine = registration.thinned(scan.values, scan.affine, 2.0)
    recipe = shard.complete_recipe(SHORT | {"extractor": "template"})
    _, mask, record, _ = shard.compute_scan(source(nibabel.apply_orientation(head, FRONT), affine), None, recipe, "cpu")
    assert turning(record)["array_axes"] == "RIA"
    assert turning(record)["similarity_after"] > turning(record)["similarity_before"]
    lies = next(step["parameters"] for step in record["steps"] if step["name"] == "registration")
    inside, _ = registration.thinned(reference.astype(np.float32), scan.affine, 2.0)
    voxel_map = np.linalg.inv(affine) @ np.array(lies["mni_to_scanner"]) @ registration.GRID_AFFINE
    expected = registration.resample(nibabel.apply_orientation(inside, FRONT).copy(), voxel_map) >= 0.5
    assert dice(mask, expected) >= 0.94
