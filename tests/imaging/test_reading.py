import errno
import gzip
import hashlib
import os

import nibabel
import numpy as np
import pytest

from fedbrain.imaging.reading import NotPermitted, ScanFailure, decode, read_source


def reason(path) -> str:
    with pytest.raises(ScanFailure) as failure:
        decode(read_source(path))
    return str(failure.value)


def test_a_flipped_and_permuted_scan_comes_back_in_ras(write_head):
    values = np.random.default_rng(1).integers(0, 900, (13, 17, 19)).astype(np.int16)
    # Voxel axes point to P, S, R: as sagittal scans come from many scanners.
    affine = np.array([[0, 0, 7.0, -60], [-7.0, 0, 0, 50], [0, 7.0, 0, -40], [0, 0, 0, 1]])
    scan = decode(read_source(write_head(values=values, affine=affine)))
    assert nibabel.aff2axcodes(scan.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(scan.values, values[::-1].transpose(2, 0, 1))
    # The same point of the head keeps its place in the scanner.
    np.testing.assert_allclose(scan.affine @ [4, 12 - 2, 3, 1], affine @ [2, 3, 4, 1])


def test_the_checksum_is_of_the_bytes_on_disk(write_head):
    path = write_head()
    source = read_source(path)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.size == path.stat().st_size


def test_gzip_is_told_by_content_and_a_trailing_axis_of_one_is_dropped(write_head, tmp_path):
    values = np.random.default_rng(2).random((12, 13, 14, 1), dtype=np.float32)
    packed = write_head(values=values)
    plain = tmp_path / "plain.nii.gz"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    np.testing.assert_array_equal(decode(read_source(plain)).values, values[..., 0])
    np.testing.assert_array_equal(decode(read_source(packed)).values, values[..., 0])


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_header_extensions_are_skipped_even_broken_ones(tmp_path, kind):
    values = np.random.default_rng(8).random((12, 13, 14), dtype=np.float32)
    image = kind(values, np.diag([9.0, 9, 9, 1]))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"made of nothing " * 300))
    content = bytearray(image.to_bytes())
    path = tmp_path / "extended.nii.gz"
    path.write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(decode(read_source(path)).values, values)
    length = 348 if kind is nibabel.Nifti1Image else 540
    content[length + 4 : length + 8] = b"\xff\xff\xff\x7f"  # an extension of 2 GiB
    path.write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(decode(read_source(path)).values, values)


def test_scaled_integers_are_scaled(tmp_path):
    stored = np.random.default_rng(3).integers(0, 99, (12, 13, 14)).astype(np.int16)
    image = nibabel.Nifti1Image(stored, np.diag([9.0, 9, 9, 1]))
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 0.5, 10, 352
    path = tmp_path / "scaled.nii"
    path.write_bytes(header.binaryblock + image.to_bytes()[348:])
    np.testing.assert_allclose(decode(read_source(path)).values, 0.5 * stored + 10, rtol=1e-6)


SIZE = (14, 14, 14)


def constant(number):
    return np.full(SIZE, number, dtype=np.float32)


def with_one(number):
    values = np.random.default_rng(4).random(SIZE, dtype=np.float32)
    values[3, 4, 5] = number
    return values


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (constant(0), "every voxel is 0"),
        (constant(7), "every voxel is 7"),
        (with_one(np.nan), "1 voxels are NaN or infinite"),
        (with_one(np.inf), "1 voxels are NaN or infinite"),
        (with_one(1e30).astype(np.float64) * 1e30, "1 voxels are NaN or infinite"),  # beyond float32
        (np.random.default_rng(5).random((14, 14, 14, 3)), "series of volumes"),
        (np.random.default_rng(5).random((64, 64, 1)), "not a 3D head"),
        (np.random.default_rng(5).random((64, 64)), "not a 3D head"),
        (np.random.default_rng(5).random(SIZE).astype(np.complex64), "not real numbers"),
    ],
)
def test_values_that_are_no_head_are_refused_with_the_reason(write_head, values, words):
    assert words in reason(write_head(values=values, affine=np.diag([9.0, 9, 9, 1])))


@pytest.mark.parametrize(
    ("affine", "code", "words"),
    [
        (np.diag([9.0, 9, 9, 1]), 0, "left and right are unknown"),
        (np.diag([9.0, 9, 0, 1]), 1, "affine is singular"),
        (np.diag([0.0, 0, 0, 1]), 1, "affine is singular"),
        (np.array([[9.0, 9, 0, 0], [0, 0, 0, 0], [0, 0, 9, 0], [0, 0, 0, 1]]), 1, "affine is singular"),
        (np.diag([0.009, 0.009, 0.009, 1]), 1, "another unit than mm"),
        (np.diag([1.0, 1, 1, 1]), 1, "field of view"),
        (np.diag([9.0, 9, np.nan, 1]), 1, "affine is not finite"),
    ],
)
def test_an_unusable_affine_is_refused_with_the_reason(tmp_path, affine, code, words):
    values = np.random.default_rng(6).random(SIZE).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([9.0, 9, 9, 1]))
    head = image.header.copy()
    head["sform_code"], head["qform_code"], head["vox_offset"] = code, 0, 352
    for axis, name in enumerate(("srow_x", "srow_y", "srow_z")):
        head[name] = affine[axis]
    path = tmp_path / "scan.nii"
    path.write_bytes(head.binaryblock + image.to_bytes()[348:])
    assert words in reason(path)


def test_a_damaged_file_is_refused_with_the_reason(write_head, tmp_path):
    whole = write_head(values=np.random.default_rng(7).random((30, 30, 30)).astype(np.float32)).read_bytes()
    plain = gzip.decompress(whole)
    path = tmp_path / "damaged.nii.gz"

    def of(content):
        path.write_bytes(content)
        return reason(path)

    assert "cut off" in of(whole[: len(whole) // 2])
    assert "cut off" in of(whole[:30])
    assert "damaged" in of(whole[:-8] + bytes(4) + whole[-4:])  # right deflate stream, wrong checksum
    assert f"at most {4 * 30**3 - 100} of {4 * 30**3} bytes" in of(plain[:-100])
    assert "not a NIfTI" in of(b"%PDF-1.7 this is a report, not a scan" * 40)
    assert "not a NIfTI" in of(plain[:100])
    assert "empty" in of(b"")
    assert "begin at byte 0" in of(plain[:108] + bytes(4) + plain[112:])
    assert "half of a .hdr/.img pair" in of(plain[:344] + b"ni1\0" + plain[348:])


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (-5, 20, 20), (0, 20, 20)])
def test_an_absurd_size_is_refused_before_memory_is_taken(write_head, tmp_path, shape):
    content = bytearray(gzip.decompress(write_head().read_bytes()))
    content[40:56] = np.array([3, *shape, 1, 1, 1, 1], dtype="<i2").tobytes()[:16]
    path = tmp_path / "absurd.nii"
    path.write_bytes(bytes(content))
    assert "header" in reason(path)


def test_a_folder_and_a_file_without_permission_are_reasons(write_head, tmp_path, monkeypatch):
    assert "a folder" in reason(tmp_path)
    path = write_head()
    monkeypatch.setattr(type(path), "read_bytes", failing(errno.EACCES))
    with pytest.raises(NotPermitted, match="read permission"):
        read_source(path)


@pytest.mark.parametrize("method", ["stat", "read_bytes"])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE])
def test_a_disk_that_fails_is_not_the_scans_reason(write_head, monkeypatch, method, number):
    path = write_head()
    monkeypatch.setattr(type(path), method, failing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as failure:
        read_source(path)
    assert failure.value.errno == number


def failing(number):
    def fail(path, **options):
        raise OSError(number, os.strerror(number), str(path))

    return fail
