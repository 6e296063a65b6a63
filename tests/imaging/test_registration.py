import errno
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedbrain.imaging import registration
from fedbrain.imaging.quality import dice
from fedbrain.imaging.reading import ScanFailure, Source
from fedbrain.imaging.registration import (
    GRID_AFFINE,
    GRID_SHAPE,
    SIMILARITY_STRIDE,
    align,
    axis_codes,
    head_orientation,
    resample,
    similarity,
    template,
)
from fedbrain.imaging.shard import complete_recipe, compute_scan

SETTINGS = {"resolution": 4, "iterations": [100, 50], "seed": 1}


def test_the_grid_is_centred_on_the_templates_brain():
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    filled = np.argwhere(image.get_fdata() > 0)  # (N, 3)
    low, high = nibabel.affines.apply_affine(image.affine, [filled.min(0), filled.max(0)])
    first, last = nibabel.affines.apply_affine(GRID_AFFINE, [[0, 0, 0], np.array(GRID_SHAPE) - 1])
    np.testing.assert_allclose((low + high) / 2, (first + last) / 2)
    assert (first < low - 5).all()
    assert (last > high + 5).all()


def test_flipping_the_first_axis_mirrors_left_and_right():
    mirrored = np.diag([-1.0, 1, 1, 1]) @ GRID_AFFINE
    flipped = GRID_AFFINE @ np.array([[-1.0, 0, 0, 127], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(mirrored, flipped)
    assert dice(template().mask, template().mask[::-1]) > 0.999  # and the template is symmetric


def test_resampling_equals_a_linear_function_evaluated_at_the_mapped_places():
    index = np.indices((12, 13, 14), dtype=np.float32)  # (3, 12, 13, 14)
    values = 2 * index[0] - 3 * index[1] + 0.5 * index[2] + 7
    voxel_map = np.array([[0.7, 0.1, 0, 2], [-0.1, 0.8, 0.05, 3], [0, 0.1, 0.9, 1], [0, 0, 0, 1]])
    result = resample(values, voxel_map, (8, 8, 8))
    place = nibabel.affines.apply_affine(voxel_map, np.indices((8, 8, 8)).reshape(3, -1).T)  # (512, 3)
    expected = (place @ [2, -3, 0.5] + 7).reshape(8, 8, 8)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def moved_template(to_scanner):
    """The template's brain as a scan of 3 mm whose scanner mm are ``to_scanner`` times MNI mm."""
    shape, affine = (76, 88, 80), np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = -115, -130, -112
    voxel_map = np.linalg.inv(GRID_AFFINE) @ np.linalg.inv(to_scanner) @ affine
    return resample(template().values, voxel_map, shape), affine


def worst_distance(found, true):
    corners = nibabel.affines.apply_affine(GRID_AFFINE, np.argwhere(np.ones((2, 2, 2))) * 96 + 16)  # (8, 3) MNI mm
    apart = nibabel.affines.apply_affine(found, corners) - nibabel.affines.apply_affine(true, corners)
    return np.linalg.norm(apart, axis=1).max()


def known_affine():
    tilt, turn = np.deg2rad([12, -8])
    nod = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    yaw = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = nod @ yaw @ np.diag([0.9, 1.05, 0.95])
    affine[:3, 3] = 9, -6, 4
    return affine


def refined(brain, affine):
    """From the header's axes alone, without a search."""
    return align(brain, affine, **SETTINGS, search_below=0).mni_to_scanner


def test_a_known_affine_is_recovered():
    true = known_affine()
    brain, affine = moved_template(true)
    assert worst_distance(np.eye(4), true) > 15  # there is something to find
    assert worst_distance(refined(brain, affine), true) < 3  # mm, at the corners of the brain's box


def test_registration_is_repeatable_to_the_last_bit():
    brain, affine = moved_template(known_affine())
    first = refined(brain, affine)
    np.testing.assert_array_equal(first, refined(brain, affine))


def test_a_sheared_header_is_put_back_into_the_result():
    # The same voxels under a sheared header: the sheared map must send MNI to the same voxels.
    brain, affine = moved_template(np.eye(4))
    shear = np.eye(4)
    shear[0, 1] = 0.1
    found = refined(brain, shear @ affine)
    assert worst_distance(np.linalg.inv(shear) @ found, np.eye(4)) < 3


def test_similarity_is_1_for_the_template_itself_and_agrees_with_scikit_learn():
    from scipy.stats import entropy
    from sklearn.metrics import mutual_info_score

    values, affine = registration._thinned_template(SIMILARITY_STRIDE)
    assert similarity(values, affine, np.eye(4)) == pytest.approx(1)

    other = np.random.default_rng(0).permuted(values, axis=0)
    union = (values > registration.RIM) | (other > registration.RIM * other.max())
    labels = [registration._binned(part[union]) for part in (values, other)]
    joint = entropy(np.unique(np.stack(labels), axis=1, return_counts=True)[1])
    assert similarity(other, affine, np.eye(4)) == pytest.approx(mutual_info_score(*labels) / joint)


def test_a_brain_that_lies_right_is_not_searched_for():
    brain, affine = moved_template(known_affine())
    found = align(brain, affine, **SETTINGS, search_below=0.08)
    assert (found.start, found.starts) == ("given", 1)
    np.testing.assert_array_equal(found.mni_to_scanner, refined(brain, affine))


def test_a_brain_that_lies_turned_and_tilted_is_found():
    true = known_affine() @ nibabel.affines.from_matvec(registration._rotation((10, 180, -10)))
    brain, affine = moved_template(true)
    one_start = align(brain, affine, **SETTINGS, search_below=0)
    assert worst_distance(one_start.mni_to_scanner, true) > 50
    assert one_start.similarity < 0.065  # and it shows
    found = align(brain, affine, **SETTINGS, search_below=0.08)
    assert found.starts == 1 + 24 * 27
    assert worst_distance(found.mni_to_scanner, true) < 3
    assert axis_codes(head_orientation(affine, found.mni_to_scanner)) == "LAI"


def test_a_scale_that_no_head_has_is_a_failure():
    brain, affine = moved_template(np.diag([0.55, 0.55, 0.55, 1]))
    with pytest.raises(ScanFailure, match="scaled"):
        refined(brain, affine)


def test_a_head_stored_along_other_axes_than_its_header_says_gives_the_same_volume():
    brain, affine = moved_template(known_affine())
    volumes = []
    for codes in ("RAS", "RSP"):  # as the header has it, and turned by 90 degrees about x
        values = nibabel.apply_orientation(brain, nibabel.orientations.axcodes2ornt(codes))
        sources = []
        for image in (1000 * values, values > 0):
            content = nibabel.Nifti1Image(image.astype(np.float32), affine).to_bytes()
            sources.append(Source(Path("memory"), content, "", len(content), 0))
        recipe = {"extractor": "provided", "registration_resolution": 4, "registration_iterations": [100, 50]}
        volume, mask, record, _ = compute_scan(*sources, complete_recipe(recipe), "cpu")
        volumes.append((volume, mask, record))
    assert "turning" not in [step["name"] for step in volumes[0][2]["steps"]]
    for volume, mask, record in volumes[1:]:
        assert "turning" in [step["name"] for step in record["steps"]]
        assert record["quality"]["head_rotation_degrees"] > 60
        assert dice(mask, volumes[0][1]) > 0.98
        assert np.corrcoef(volume[mask], volumes[0][0][mask])[0, 1] > 0.97


def test_a_ball_of_noise_is_a_failure():
    place = 3 * (np.indices((60, 60, 60)) - 30)  # (3, 60, 60, 60) mm
    ball = (place**2).sum(axis=0) < 70**2
    values = np.where(ball, np.random.default_rng(0).uniform(500, 1500, ball.shape), 0)
    sources = []
    for image in (values, ball):
        content = nibabel.Nifti1Image(image.astype(np.float32), np.diag([3.0, 3, 3, 1])).to_bytes()
        sources.append(Source(Path("memory"), content, "", len(content), 0))
    recipe = {"extractor": "provided", "registration_resolution": 4, "registration_iterations": [100, 50]}
    recipe["registration_search_below"] = 0  # no rotation makes it a brain, and each costs time
    with pytest.raises(ScanFailure, match="could not be laid on the template"):
        compute_scan(*sources, complete_recipe(recipe), "cpu")


def test_the_transform_agrees_with_what_ants_itself_applies():
    import ants

    true = known_affine()
    brain, affine = moved_template(true)
    ours = resample(brain, np.linalg.inv(affine) @ true @ GRID_AFFINE)
    transform = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=true[:3, :3], offset=true[:3, 3]
    )
    theirs = ants.apply_ants_transform_to_image(
        transform,
        registration.ants_image(brain, affine),
        registration.ants_image(template().values, GRID_AFFINE),
        interpolation="linear",
    ).numpy()
    inside = ours[8:-8, 8:-8, 8:-8]  # ITK and scipy treat the outermost half voxel differently
    np.testing.assert_allclose(inside, theirs[8:-8, 8:-8, 8:-8], atol=1e-3)


def test_an_empty_brain_is_a_failure_with_a_reason():
    with pytest.raises(ScanFailure, match="look at the scan"):
        refined(np.zeros((40, 40, 40), np.float32), np.diag([3.0, 3, 3, 1]))


@pytest.mark.parametrize(
    ("said", "raised"),
    [
        (RuntimeError("itk::ERROR: Failed to allocate memory for image."), RuntimeError),
        (RuntimeError("Registration failed with error code 1"), ScanFailure),
    ],
    ids=["memory", "fit"],
)
def test_ants_without_memory_is_told_from_ants_without_a_fit(monkeypatch, said, raised):
    import ants

    def fail(*arguments, **options):
        raise said

    monkeypatch.setattr(ants, "registration", fail)
    with pytest.raises(raised):  # neither is a kind of the other
        refined(np.ones((40, 40, 40), np.float32), np.diag([3.0, 3, 3, 1]))


def test_a_full_disk_for_temporary_files_is_not_the_scans_reason(monkeypatch):
    import ants

    def fail(*arguments, **options):
        raise IndexError("no transform was written")

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(ants, "registration", fail)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        refined(np.ones((40, 40, 40), np.float32), np.diag([3.0, 3, 3, 1]))
