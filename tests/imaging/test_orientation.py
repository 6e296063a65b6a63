"""Where the voxels lie: axis orders, and headers that contradict themselves."""

import itertools

import nibabel
import numpy as np
import pytest

from fedbrain.imaging.reading import Scan, ScanFailure, decode, read_source
from fedbrain.imaging.registration import axis_codes, head_orientation, quarter_turns


def uneven_head():
    """A volume without any symmetry, with three voxel sizes and an oblique affine."""
    values = np.random.default_rng(0).normal(100, 20, (20, 22, 24)).astype(np.float32)
    tilt = np.deg2rad(10)
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    return values, nibabel.affines.from_matvec(turn @ np.diag([7.0, 8, 9]), [-70, -90, -100])


def all_axis_orders():
    """The 48 ways to store a volume."""
    for order in itertools.permutations("RAS"):
        for flips in itertools.product((False, True), repeat=3):
            opposite = dict(zip("RAS", "LPI"))
            yield "".join(opposite[axis] if flip else axis for axis, flip in zip(order, flips))


@pytest.mark.parametrize("codes", list(all_axis_orders()))
def test_a_right_header_in_any_axis_order_gives_the_same_scan(codes, tmp_path):
    values, affine = uneven_head()
    turn = nibabel.orientations.axcodes2ornt(codes)
    image = nibabel.Nifti1Image(values, affine).as_reoriented(turn_to(turn))
    assert "".join(nibabel.aff2axcodes(image.affine)) == codes
    nibabel.save(image, tmp_path / "head.nii")
    scan = decode(read_source(tmp_path / "head.nii"))
    np.testing.assert_array_equal(scan.values, values)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-4)


def turn_to(codes):
    return nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), codes)


@pytest.mark.parametrize("turn", quarter_turns(), ids=axis_codes)
def test_a_turned_scan_shows_the_same_values_at_the_same_places_with_the_heads_axes(turn):
    values, affine = uneven_head()
    scan = Scan(values, affine, 3.0)
    # The head's axes lie along the array's as ``turn`` says.
    mni_to_scanner = np.eye(4)
    mni_to_scanner[:3, :3] = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) @ turn
    np.testing.assert_array_equal(head_orientation(affine, mni_to_scanner), turn)

    turned = scan.turned(turn)
    np.testing.assert_array_equal(head_orientation(turned.affine, mni_to_scanner), np.eye(3))
    for place in ([1, 2, 3], [10, 0, 19]):
        there = nibabel.affines.apply_affine(np.linalg.inv(affine) @ turned.affine, place)
        assert turned.values[tuple(place)] == values[tuple(np.rint(there).astype(int))]
        np.testing.assert_allclose(there, np.rint(there), atol=1e-9)
    assert turned.header_conflict == 3.0


def written(folder, change):
    """A head whose qform is ``change`` times its sform, in scanner mm."""
    values, affine = uneven_head()
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(change @ affine, code=1, strip_shears=True)
    nibabel.save(image, folder / "head.nii")
    return decode(read_source(folder / "head.nii"))


def test_equal_forms_do_not_conflict(tmp_path):
    assert written(tmp_path, np.eye(4)).header_conflict < 0.01  # quaternions are kept in 32 bits


def test_forms_that_are_shifted_conflict_by_the_shift_and_the_sform_counts(tmp_path):
    scan = written(tmp_path, nibabel.affines.from_matvec(np.eye(3), [3, 0, 4]))
    assert scan.header_conflict == pytest.approx(5, abs=0.01)
    np.testing.assert_allclose(scan.affine, uneven_head()[1], atol=1e-4)


def test_a_form_that_is_not_set_cannot_conflict(tmp_path):
    values, affine = uneven_head()
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code=1)
    image.set_qform(np.diag([1, 1, 5.0, 1]) @ affine, code=0)
    nibabel.save(image, tmp_path / "head.nii")
    assert decode(read_source(tmp_path / "head.nii")).header_conflict == 0


def test_forms_of_different_handedness_fail_since_left_is_unknown(tmp_path):
    with pytest.raises(ScanFailure, match="left and right"):
        written(tmp_path, np.diag([-1.0, 1, 1, 1]))
