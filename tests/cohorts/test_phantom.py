"""Properties of the phantom cohorts. Images are drawn with 3 mm voxels, which takes a fraction of a second each."""

import gzip
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from fedbrain.cohorts import phantom
from fedbrain.cohorts import phantom_anatomy as anatomy
from fedbrain.cohorts.phantom_scanner import SCANNERS, find_scanner
from fedbrain.errors import StudyError

COARSE = {"like": "crisp", "voxel": [3.0, 3.0, 3.0]}
SMALL = {"controls": 2, "cases": 2, "followups": 1, "scanner": COARSE}


@pytest.fixture(scope="module")
def row():
    return phantom.plan_cohort("north", SMALL, 1).to_dict("records")[0]


@pytest.fixture(scope="module")
def drawn(row):
    return phantom.draw_scan(row, SMALL, 1)


@pytest.fixture(scope="module")
def population():
    """True volumes (mL) of 20 controls and 20 cases, as shares of the cavity, on a coarse grid."""
    options = {"controls": 20, "cases": 20}
    shares = {"CN": [], "AD": []}
    for row in phantom.plan_cohort("many", options, 3).to_dict("records"):
        person, change = phantom._person_and_change(row, phantom.OPTIONS | options, 3)
        volumes = anatomy.true_volumes(person, change, spacing=4.0)
        shares[row["diagnosis"]].append([volumes[name] / volumes["cavity"] for name in anatomy.STRUCTURES])
    return {key: np.array(values) for key, values in shares.items()}


def test_the_plan_has_the_asked_counts_and_columns():
    options = {"controls": 7, "cases": 5, "others": 2, "followups": 4}
    plan = phantom.plan_cohort("north", options, 0)
    assert list(plan.columns) == ["subject", "session", "path", "diagnosis", "age", "sex", "site"]
    assert len(plan) == 7 + 5 + 2 + 4
    people = plan.drop_duplicates("subject")
    assert people["diagnosis"].value_counts().to_dict() == {"CN": 7, "AD": 5, "MCI": 2}
    assert plan["session"].value_counts().to_dict() == {"1": 14, "2": 4}
    assert set(plan["sex"]) == {"F", "M"}
    assert plan["age"].between(50, 96).all()
    first = plan.iloc[0]
    stem = f"sub-{first['subject']}_ses-{first['session']}"
    assert first["path"] == f"sub-{first['subject']}/ses-{first['session']}/anat/{stem}_T1w.nii.gz"
    assert plan["path"].is_unique


def test_a_follow_up_is_the_same_person_later():
    plan = phantom.plan_cohort("north", {"controls": 6, "cases": 6, "followups": 12}, 0)
    for _, visits in plan.groupby("subject"):
        first, second = visits.sort_values("session").to_dict("records")
        assert 0.9 <= second["age"] - first["age"] <= 3.1
        assert (first["sex"], first["diagnosis"]) == (second["sex"], second["diagnosis"])
    options = phantom.OPTIONS | {"controls": 6, "cases": 6}
    case = plan[plan["diagnosis"] == "AD"].sort_values(["subject", "session"]).to_dict("records")[:2]
    (one, before), (two, after) = (phantom._person_and_change(visit, options, 0) for visit in case)
    np.testing.assert_array_equal(one.pull, two.pull)
    assert after["hippocampus"] < before["hippocampus"]
    assert after["ventricles"] > before["ventricles"]


def test_plans_repeat_and_differ_by_seed_and_cohort():
    plan = phantom.plan_cohort("north", {}, 5)
    assert plan.equals(phantom.plan_cohort("north", {}, 5))
    assert set(plan["subject"]) != set(phantom.plan_cohort("north", {}, 6)["subject"])
    assert not set(plan["subject"]) & set(phantom.plan_cohort("northern", {}, 5)["subject"])


def test_more_subjects_leave_the_others_as_they_were():
    few = phantom.plan_cohort("north", {"controls": 3, "cases": 3}, 0)
    many = phantom.plan_cohort("north", {"controls": 8, "cases": 4, "others": 1}, 0)
    kept = many[many["subject"].isin(few["subject"])].reset_index(drop=True)
    assert kept.equals(few)


def test_a_plan_may_be_empty():
    assert phantom.plan_cohort("north", {"controls": 0, "cases": 0}, 0).empty


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"control": 3}, "controls"),
        ({"controls": -1}, "controls"),
        ({"effect": "strong"}, "effect"),
        ({"controls": 1, "cases": 1, "followups": 3}, "followups"),
        ({"scanner": "crips"}, "crisp"),
        ({"scanner": {"voxels": [1, 1, 1]}}, "voxel"),
        ({"scanner": {"voxel": [1, 1]}}, "three numbers"),
        ({"scanner": {"orientation": "RLS"}}, "orientation"),
        ({"scanner": {"like": "nothing"}}, "Known"),
    ],
)
def test_bad_options_are_named_with_their_cohort(options, word):
    with pytest.raises(StudyError, match="cohort north") as caught:
        phantom.plan_cohort("north", options, 0)
    assert word in str(caught.value)


def test_the_same_row_gives_the_same_bytes_in_another_process(tmp_path, row):
    phantom.write_scan(row, SMALL, 1, tmp_path / "here.nii.gz")
    code = f"import sys; from fedbrain.cohorts import phantom;phantom.write_scan({row!r}, {SMALL!r}, 1, sys.argv[1])"
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.nii.gz")], check=True, env=one_thread)
    assert (tmp_path / "here.nii.gz").read_bytes() == (tmp_path / "there.nii.gz").read_bytes()


@pytest.mark.parametrize("name", SCANNERS)
def test_the_header_is_ordinary_and_oriented_as_documented(name, row):
    wanted = {"like": name, "voxel": [3.0, 3.5, 4.0]}
    image, brain = phantom.draw_scan(row, {"scanner": wanted}, 1)
    assert image.get_data_dtype() == np.int16
    assert image.shape == brain.shape
    assert "".join(nib.aff2axcodes(image.affine)) == SCANNERS[name].orientation
    assert np.isfinite(image.affine).all()
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    straight = nib.as_closest_canonical(image)
    np.testing.assert_allclose(straight.header.get_zooms(), wanted["voxel"], rtol=1e-5)
    data = np.asarray(image.dataobj)
    assert data.min() >= 0
    assert data.max() < 32767
    # The header tells where the brain is: between front and back, above the neck, in whatever order axes are stored.
    middle = nib.affines.apply_affine(image.affine, np.argwhere(brain).mean(axis=0))
    assert np.all(np.abs(middle - (0, -18, 5)) < 20)


def test_air_is_noisy_bone_is_dark_and_fat_is_bright(drawn):
    image, brain = drawn
    data = np.asarray(image.dataobj, dtype=float)
    corner = data[:5, -5:, -5:]
    assert 0 < corner.mean() < 0.1 * data[brain].mean()
    assert corner.std() > 0
    height = nib.affines.apply_affine(image.affine, np.argwhere(np.ones_like(brain))).reshape(*brain.shape, 3)[..., 2]
    head = (data > 0.1 * data[brain].mean()) | brain
    scalp = head & (ndimage.distance_transform_edt(head) <= 3) & (height > 30)  # the outer 9 mm of the vault
    assert np.percentile(data[scalp], 99) > np.percentile(data[brain], 95)
    shell = ndimage.binary_dilation(brain, iterations=3) & ~ndimage.binary_dilation(brain) & (height > 30)
    assert np.median(data[shell]) < 0.5 * np.median(data[brain])  # CSF and skull


def test_another_scanner_shows_the_same_head(row):
    still = {"shift": 0.0, "tilt": 0.0, "noise": 0.0, "shading": 0.0, "voxel": [3.0, 3.0, 3.0], "bottom": -100}
    one, brain_one = phantom.draw_scan(row, {"scanner": still}, 1)
    other, brain_other = phantom.draw_scan(row, {"scanner": still | {"gamma": 1.3, "scale": 90.0}}, 1)
    np.testing.assert_array_equal(brain_one, brain_other)
    a, b = np.asarray(one.dataobj, float) / SCANNERS["crisp"].scale, np.asarray(other.dataobj, float) / 90.0
    np.testing.assert_allclose(a**1.3, b, atol=0.015)


def test_another_effect_leaves_the_inborn_anatomy_and_the_controls_alone(row):
    case, control = row | {"diagnosis": "AD"}, row | {"diagnosis": "CN"}
    weak, strong = (phantom._person_and_change(case, phantom.OPTIONS | {"effect": e}, 1) for e in (0.5, 1.5))
    np.testing.assert_array_equal(weak[0].pull, strong[0].pull)
    assert strong[1]["hippocampus"] < weak[1]["hippocampus"]
    calm = [phantom._person_and_change(control, phantom.OPTIONS | {"effect": e}, 1)[1] for e in (0.5, 1.5)]
    assert calm[0] == calm[1]


def test_without_effect_a_case_is_a_control_to_the_last_voxel(row):
    images = [
        np.asarray(phantom.draw_scan(row | {"diagnosis": d}, {"effect": 0.0, "scanner": COARSE}, 1)[0].dataobj)
        for d in ("CN", "AD")
    ]
    np.testing.assert_array_equal(*images)


def test_cases_differ_in_the_right_direction_and_overlap_with_controls(population):
    controls, cases = population["CN"], population["AD"]
    for index, (name, sign) in enumerate(zip(anatomy.STRUCTURES, (-1, +1, -1, -1))):
        gap = np.log(cases[:, index]).mean() - np.log(controls[:, index]).mean()
        assert sign * gap > 0, name
    for index in (0, 1):  # hippocampus, ventricles: clearly different, and yet no threshold parts them
        pooled = np.sqrt((np.log(controls[:, index]).var() + np.log(cases[:, index]).var()) / 2)
        distance = abs(np.log(cases[:, index]).mean() - np.log(controls[:, index]).mean()) / pooled
        assert distance > 0.7
        assert max(controls[:, index].min(), cases[:, index].min()) < min(
            controls[:, index].max(), cases[:, index].max()
        )


def test_age_shrinks_the_brain_of_controls():
    person = anatomy.draw_person(np.random.default_rng(0), "M")
    young, old = (anatomy.true_volumes(person, anatomy.age_change(age), spacing=4.0) for age in (58.0, 88.0))
    for name in ("hippocampus", "cortex", "white_matter", "brain"):
        assert old[name] < young[name]
    assert old["ventricles"] > young["ventricles"]
    assert old["cavity"] == young["cavity"]


def test_a_flow_changes_its_structure_by_what_is_asked():
    person = anatomy.draw_person(np.random.default_rng(3), "F")
    still = dict.fromkeys(anatomy.STRUCTURES, 0.0)
    before = anatomy.true_volumes(person, still)
    for name, asked in (("hippocampus", -0.3), ("ventricles", 0.5)):
        after = anatomy.true_volumes(person, still | {name: asked})
        assert np.log(after[name] / before[name]) == pytest.approx(asked, rel=0.15)
        assert after["brain"] == pytest.approx(before["brain"], rel=0.02)


def test_pulls_fold_nothing():
    person = anatomy.draw_person(np.random.default_rng(4), "F")
    for pull, spacing in ((person.pull, 5.0), (anatomy.atrophy_pull(anatomy.age_change(90.0)), 3.0)):
        gradient = np.stack([np.stack(np.gradient(part, spacing)) for part in pull])
        jacobian = np.moveaxis(gradient + np.eye(3)[:, :, None, None, None], (0, 1), (-2, -1))
        assert np.linalg.det(jacobian).min() > 0


def test_files_that_are_right_are_kept_and_others_drawn_anew(tmp_path):
    plan = phantom.plan_cohort("north", SMALL, 1).head(2)
    phantom.write_cohort("north", SMALL, 1, tmp_path, plan)
    paths = [tmp_path / path for path in plan["path"]]
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(paths)  # nothing else, no temporary file
    content, stamps = [path.read_bytes() for path in paths], [path.stat().st_mtime_ns for path in paths]
    paths[0].write_bytes(content[0][: len(content[0]) // 2])  # a copy that was cut off
    phantom.write_cohort("north", SMALL, 1, tmp_path, plan)
    assert [path.read_bytes() for path in paths] == content
    assert paths[1].stat().st_mtime_ns == stamps[1]
    phantom.write_cohort("north", SMALL | {"scanner": COARSE | {"noise": 0.05}}, 1, tmp_path, plan.head(1))
    assert paths[0].read_bytes() != content[0]


def test_a_crash_leaves_no_half_file(tmp_path, row, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        phantom.write_scan(row, SMALL, 1, tmp_path / "scan.nii.gz")
    assert not list(tmp_path.iterdir())


def test_the_gzip_header_holds_no_time_and_the_file_is_a_nifti(tmp_path, row):
    path = tmp_path / "scan.nii.gz"
    phantom.write_scan(row, SMALL, 1, path)
    assert path.read_bytes()[4:8] == bytes(4)  # gzip's modification time
    with gzip.open(path) as file:
        assert file.read(348)[344:347] == b"n+1"
    assert nib.load(path).header["descrip"].item().startswith(b"fedbrain phantom ")


def test_a_mapping_starts_from_the_scanner_that_it_names():
    scanner = find_scanner({"like": "thick", "noise": 0.1})
    assert scanner.noise == 0.1
    assert scanner.voxel == SCANNERS["thick"].voxel
