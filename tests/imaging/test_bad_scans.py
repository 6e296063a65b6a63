"""One shard full of files that are no usable scans: each is a row with its own reason, and the good scan among them is whole."""

import gzip
import io
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from fedbrain.imaging import layout, registration, shard
from fedbrain.imaging.reading import Scan, decode, read_source
from fedbrain.tables import MANIFEST

SHAPE = (24, 26, 28)
AFFINE = np.diag([8.0, 8, 8, 1])  # the template's brain, coarse, so that registration has something to find
AFFINE[:3, 3] = [centre - 8 * (n - 1) / 2 for centre, n in zip(registration.GRID_CENTRE, SHAPE)]
HEAD = registration.resample(registration.template().values, np.linalg.inv(registration.GRID_AFFINE) @ AFFINE, SHAPE)
BRAIN = HEAD > 0.1
HEAD = (10 + 190 * HEAD + np.random.default_rng(0).normal(0, 2, SHAPE)).astype(np.float32)
# Coarse and short: only one scan here is computed.
RECIPE = {"bias_field_spacing": 8.0, "bias_field_iterations": [2], "registration_resolution": 4}
RECIPE |= {"extractor": "provided", "registration_iterations": [3]}
RECIPE |= {"registration_search_below": 0, "registration_least_similarity": 0}
RECIPE |= {"registration_search_below": 0, "registration_least_similarity": 0}  # a ball fits no template


def nifti(values=HEAD, affine=AFFINE, kind=nibabel.Nifti1Image, **fields) -> bytes:
    """An uncompressed file with sform only; ``fields`` are set in its header as they are, whatever they break."""
    image = kind(values, affine, dtype=values.dtype)
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    content = image.to_bytes()
    header = kind.header_class(content[: image.header.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[len(header.binaryblock) :]


def sheared(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 1] = 8 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0])
    return affine


def with_pixdim(content: bytes, *sizes: float) -> bytes:
    return content[:80] + struct.pack("<3f", *sizes) + content[92:]


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("scan.nii", content)
    return stream.getvalue()


WHOLE = nifti()
BYTE = np.where(BRAIN, 200, 9).astype(np.uint8)
BY_QFORM = nifti(sform_code=0, qform_code=1)
NOT_A_NUMBER = np.where(np.indices(SHAPE).sum(0) == 3, np.nan, HEAD)  # 10 voxels
MGH = struct.pack(">7i", 1, 24, 26, 28, 1, 3, 0) + bytes(500)

CONTENTS = {  # content of the file: what the reason must say
    "empty": (b"", "the file is empty"),
    "gzip cut off": (gzip.compress(WHOLE)[:9000], "cut off"),
    "gzip damaged": (gzip.compress(WHOLE)[:4000] + b"\xff" * 50 + gzip.compress(WHOLE)[4050:], "damaged"),
    "gzip of nothing": (gzip.compress(b""), "not a NIfTI file"),
    "gzipped twice": (gzip.compress(gzip.compress(WHOLE)), "unpack it once"),
    "cut off": (WHOLE[:-1000], f"at most {4 * BRAIN.size - 1000} of {4 * BRAIN.size} bytes"),
    "header only": (WHOLE[:352], "at most 0 of"),
    "text": (b"The scan of this patient is on the other disk.\n" * 20, "convert the scan"),
    "web page": (b"<!DOCTYPE html><html>Please log in</html>" * 20, "download the scan again"),
    "dicom": (bytes(128) + b"DICM" + bytes(600), "dcm2niix"),
    "mgh": (MGH, "mri_convert"),
    "mgz": (gzip.compress(MGH), "mri_convert"),
    "analyze": (nibabel.AnalyzeHeader(endianness="<").binaryblock, "convert header and image to one .nii.gz"),
    "analyze, other byte order": (nibabel.AnalyzeHeader(endianness=">").binaryblock, "Analyze header"),
    "nifti pair": (WHOLE[:344] + b"ni1\0" + WHOLE[348:], "one half of a .hdr/.img pair"),
    "zip": (zipped(WHOLE), "a zip archive; unpack it"),
    "annex pointer": (b"/annex/objects/MD5E-s123--abc.nii.gz\n", "datalad get"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "git lfs pull"),
    "4d": (nifti(np.stack([HEAD] * 3, -1)), "24 x 26 x 28 x 3 voxels are a series of volumes"),
    "2d": (nifti(HEAD[0]), "not a 3D head"),
    "one slice": (nifti(HEAD[..., :1]), "not a 3D head"),
    "all zero": (nifti(np.zeros_like(HEAD)), "every voxel is 0"),
    "constant": (nifti(np.full_like(HEAD, 7)), "every voxel is 7"),
    "nan": (nifti(NOT_A_NUMBER), "10 voxels are NaN or infinite"),
    "infinite": (nifti(np.where(np.isnan(NOT_A_NUMBER), -np.inf, HEAD)), "10 voxels are NaN or infinite"),
    "complex": (nifti(HEAD.astype(np.complex64)), "not real numbers"),
    "colours": (nifti(np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])), "not real numbers"),
    "voxel size of zero": (with_pixdim(BY_QFORM, 8, 0, 8), "voxel size of 0"),
    "no orientation": (nifti(sform_code=0), "left and right are unknown"),
    "quaternion that is none": (nifti(sform_code=0, qform_code=1, quatern_b=2.0), "qform cannot be read"),
    "affine of zero": (nifti(srow_x=0, srow_y=0, srow_z=0), "affine is singular"),
    "affine not finite": (nifti(srow_x=[np.inf, 0, 0, 0]), "affine is not finite"),
    "affine strongly sheared": (nifti(affine=sheared(30)), "meet at 30 degrees"),
    "affine in metres": (nifti(affine=np.diag([0.008, 0.008, 0.008, 1])), "another unit than mm"),
    "affine huge": (nifti(srow_x=[1e30, 0, 0, 0]), "no head's"),
    "affine beyond float32": (nifti(kind=nibabel.Nifti2Image, srow_y=[0, -1e200, 0, 0]), "affine is singular"),
    "far away": (nifti(srow_x=[8, 0, 0, 2e6]), "2e+03 m from the scanner's origin"),
    "slope of 1e30": (nifti(BYTE, scl_slope=1e30, scl_inter=0), "scl_slope"),
    "slope close to zero": (nifti(BYTE, scl_slope=1e-30, scl_inter=0), "scl_slope"),
    "slope below zero": (nifti(BYTE, scl_slope=-1, scl_inter=0), "no voxel is above zero"),
    "slope beyond float32": (nifti(BYTE, scl_slope=3e38, scl_inter=0), "NaN or infinite"),
    "intercept not a number": (nifti(BYTE, scl_slope=2, scl_inter=np.nan), "header is broken"),
    "claims 108 GB": (nifti(dim=[3, 3000, 3000, 3000, 1, 1, 1, 1]), "header claims 3000 x 3000 x 3000 voxels"),
    "claims 1e55 bytes": (
        nifti(kind=nibabel.Nifti2Image, dim=[3, 1 << 60, 1 << 60, 1 << 60, 1, 1, 1, 1]),
        "header claims",
    ),
    "unknown data type": (nifti(datatype=77), "header is broken"),
    "data before the header's end": (nifti(vox_offset=0), "begin at byte 0"),
    "data far behind": (nifti(vox_offset=1e12), "begin at byte"),
}


def make_folder(path):
    path.mkdir()


def make_socket(path):
    listening = socket.socket(socket.AF_UNIX)
    where = os.getcwd()
    os.chdir(path.parent)  # a socket's path may have some hundred bytes only
    try:
        listening.bind(path.name)
    finally:
        os.chdir(where)
        listening.close()


def make_broken_link(path):
    path.symlink_to("nothing-here.nii.gz")


def make_annex_link(path):
    path.symlink_to("../../.git/annex/objects/Xk/1z/MD5E-s9--abc.nii.gz/MD5E-s9--abc.nii.gz")


def make_link_to_a_device(path):
    path.symlink_to("/dev/zero")


PLACES = {  # what lies there instead of a file: what the reason must say
    "folder": (make_folder, "a folder, not a file"),
    "pipe": (os.mkfifo, "a pipe, not a file"),
    "socket": (make_socket, "a socket, not a file"),
    "link to a device": (make_link_to_a_device, "a device, not a file"),
    "broken link": (make_broken_link, "datalad get"),
    "link into an annex": (make_annex_link, "datalad get"),
    "link to itself": (lambda path: path.symlink_to(path.name), "leads back to itself"),
}


def scan_name(what: str) -> str:
    return "sub-" + "".join(letter for letter in what if letter.isalnum())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    """The shard's table by scan, and its folder."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    (data / "mask.nii").write_bytes(nifti(BRAIN.astype(np.uint8)))
    listed = []
    for what, (content, _) in CONTENTS.items():
        (data / f"{scan_name(what)}.nii.gz").write_bytes(content)
        listed.append(scan_name(what))
    (data / "sub-good.nii.gz").write_bytes(gzip.compress(WHOLE))
    listed.append("sub-good")
    for what, (make, _) in PLACES.items():
        make(data / f"{scan_name(what)}.nii.gz")
        listed.append(scan_name(what))
    manifest = pd.DataFrame({"scan": listed, "subject": listed, "fingerprint": "f", "mask": str(data / "mask.nii")})
    manifest["path"] = [str(data / f"{scan}.nii.gz") for scan in listed]
    manifest = manifest.reindex(columns=list(MANIFEST)).astype(MANIFEST)
    table, _ = shard.preprocess_shard(manifest, out, RECIPE, cohort="c")
    return table.set_index("scan"), out


@pytest.mark.parametrize("what", [*CONTENTS, *PLACES])
def test_a_bad_scan_is_a_row_with_the_reason_and_the_mend(rows, what):
    row = rows[0].loc[scan_name(what)]
    assert row["status"] == "failed"
    assert (CONTENTS | PLACES)[what][1] in row["reason"]
    assert "unforeseen" not in row["reason"]
    assert any(sign in row["reason"] for sign in (";", "(for example"))  # the mend follows
    assert "/" not in row["reason"].replace(".hdr/.img", "")  # no path, which may name a subject
    assert not layout.volume_path(rows[1], scan_name(what)).exists()


def test_the_good_scan_among_them_is_whole(rows):
    assert rows[0].loc["sub-good", "status"] == "ok"
    assert nibabel.load(layout.volume_path(rows[1], "sub-good")).shape == (128, 128, 128)
    assert (rows[0]["status"] == "ok").sum() == 1


def read(tmp_path, content: bytes) -> Scan:
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    return decode(read_source(path))


def as_nibabel(tmp_path, content: bytes) -> nibabel.Nifti1Image:
    path = tmp_path / "reference.nii"
    path.write_bytes(content)
    return nibabel.as_closest_canonical(nibabel.load(path))


def swapped(values) -> bytes:
    """The file in the other byte order, header and voxels."""
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(values.dtype)
    image = nibabel.Nifti1Image(values, AFFINE, header)
    image.header["sform_code"] = 1
    return image.to_bytes()


ODD_BUT_RIGHT = {
    **{name: nifti((HEAD * 100).astype(name), affine=sheared(90)) for name in ("int64", "uint16", "float64", "int8")},
    "other byte order": swapped((HEAD * 10).astype(np.int16)),
    "other byte order, float": swapped(HEAD),
    "slope and intercept": nifti((HEAD * 10).astype(np.int16), scl_slope=0.1, scl_inter=-3),
    "slope of zero is none": nifti(BYTE, scl_slope=0, scl_inter=5),
    "slope that is not a number is none": nifti(BYTE, scl_slope=np.nan, scl_inter=np.nan),
    "slope below zero with an intercept": nifti(BYTE, scl_slope=-1, scl_inter=300),
    "negative voxel size, sform": with_pixdim(nifti(), -8, 8, 8),
    "negative voxel size, qform": with_pixdim(BY_QFORM, -8, 8, -8),
    "handedness of zero": nifti(sform_code=0, qform_code=1)[:76] + bytes(4) + BY_QFORM[80:],
    "mild shear": nifti(affine=sheared(75)),
    "NIfTI-2": nifti(kind=nibabel.Nifti2Image),
}


@pytest.mark.parametrize("what", ODD_BUT_RIGHT)
def test_what_is_odd_but_right_is_read_as_nibabel_reads_it(tmp_path, what):
    content = ODD_BUT_RIGHT[what]
    scan, reference = read(tmp_path, content), as_nibabel(tmp_path, content)
    np.testing.assert_allclose(scan.values, reference.get_fdata(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scan.affine, reference.affine, rtol=1e-12)
    assert scan.values.dtype == np.float32


def test_the_voxels_digest_is_that_of_the_image_not_of_the_file(tmp_path):
    whole = (HEAD * 10).astype(np.int16)
    same = [
        nifti(whole),
        gzip.compress(nifti(whole), 1),
        nifti(whole.astype(np.float64), kind=nibabel.Nifti2Image),
        swapped(whole),
        nifti(whole, descrip=b"another header"),
        # stored from right to left
        nifti(whole[::-1], affine=AFFINE @ np.array([[-1, 0, 0, 23], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
    ]
    assert len({read(tmp_path, content).voxels_sha256() for content in same}) == 1
    other = whole.copy()
    other[3, 4, 5] += 1
    others = [nifti(whole), nifti(other), nifti(whole[::-1]), nifti(np.swapaxes(whole, 0, 1))]
    assert len({read(tmp_path, content).voxels_sha256() for content in others}) == len(others)


def test_a_file_that_is_being_written_is_read_again_once_and_then_refused(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii"
    path.write_bytes(WHOLE[:5000])
    original, pending = Path.read_bytes, [WHOLE]

    def read_while_written(self):
        content = original(self)
        if pending:
            self.write_bytes(pending.pop())
        return content

    monkeypatch.setattr(Path, "read_bytes", read_while_written)
    assert read_source(path).content == WHOLE  # as it was after it had been written to its end
    pending += [WHOLE, WHOLE[:6000]]
    path.write_bytes(WHOLE[:5000])
    table, _ = shard.preprocess_shard(one(path), tmp_path / "out", RECIPE, cohort="c")
    assert "is changing while it is read; wait" in table["reason"][0]


def one(path) -> pd.DataFrame:
    row = {"scan": "sub-1", "subject": "1", "path": str(path), "fingerprint": "f"}
    return pd.DataFrame([row]).reindex(columns=list(MANIFEST)).astype(MANIFEST)


def in_another_process(code: str, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_file_that_the_account_may_not_read_is_the_reason():
    code = """
import os, sys
from fedbrain.imaging.reading import NotPermitted, read_source
if os.getuid() == 0:
    os.seteuid(65534)  # root may read everything
for path in sys.argv[1:]:
    try:
        read_source(path)
    except NotPermitted as failure:
        print(failure)
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        file, closed = Path(folder) / "scan.nii", Path(folder) / "closed"
        file.write_bytes(WHOLE)
        file.chmod(0)
        closed.mkdir()
        (closed / "scan.nii").write_bytes(WHOLE)
        closed.chmod(0)
        told = in_another_process(code, file, closed / "scan.nii").splitlines()
        closed.chmod(0o700)
    assert [line.startswith("the file may not be read; give the account") for line in told] == [True, True]


def test_a_broken_link_costs_no_volume(tmp_path):
    target = tmp_path / "target.nii"
    target.write_bytes(WHOLE)
    (tmp_path / "mask.nii").write_bytes(nifti(BRAIN.astype(np.uint8)))
    (tmp_path / "link.nii").symlink_to("target.nii")
    scans, out = one(tmp_path / "link.nii").assign(mask=str(tmp_path / "mask.nii")), tmp_path / "out"
    assert shard.preprocess_shard(scans, out, RECIPE, cohort="c")[0]["status"][0] == "ok"
    target.unlink()
    assert shard.preprocess_shard(scans, out, RECIPE, cohort="c")[0]["status"][0] == "failed"
    target.write_bytes(WHOLE)
    assert shard.preprocess_shard(scans, out, RECIPE, cohort="c")[0]["reused"][0] == 1


PEAK = """
import resource, sys
from fedbrain.imaging.reading import ScanFailure, decode, read_source
import numpy, nibabel, scipy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    scan = decode(read_source(sys.argv[1]))
    print("read", scan.values.size)
except ScanFailure as failure:
    print(str(failure)[:60].replace(" ", "_"), 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    "what", ["bomb in the voxels", "bomb in the header", "largest claim, little content", "float64"]
)
def test_memory_is_bounded_by_the_voxels(tmp_path, what):
    """At most 8 bytes a voxel that is really there, and 64 MiB, beyond the file: however well it was packed."""
    path = tmp_path / "scan.nii.gz"
    bound, zeros = 64 << 20, bytes(1 << 20)
    with gzip.open(path, "wb", compresslevel=1) as file:
        if what == "bomb in the voxels":  # behind a small head come 600 MiB
            file.write(WHOLE)
            for _ in range(600):
                file.write(zeros)
        elif what == "bomb in the header":  # extensions of 600 MiB before a small head
            file.write(nifti(vox_offset=600 << 20)[:352])
            for _ in range(600):
                file.write(zeros)
        elif what == "largest claim, little content":  # 2**28 voxels of 8 bytes are claimed
            file.write(nifti(HEAD.astype(np.float64), affine=AFFINE / 8, dim=[3, 512, 1024, 512, 1, 1, 1, 1])[:9000])
        else:  # a real scan of 8 bytes a voxel
            file.write(
                nifti(np.zeros((12, 12, 12), np.float64), dim=[3, 200, 256, 200, 1, 1, 1, 1], affine=AFFINE / 8)[:352]
            )
            plane = np.linspace(0, 900, 200 * 256, dtype=np.float64)
            for number in range(200):
                file.write((plane + number).tobytes())
            bound += 8 * 200 * 256 * 200
    (said, voxels), grown = (line.split() for line in in_another_process(PEAK, path).splitlines())
    assert int(grown[0]) * 1024 < bound + path.stat().st_size, (said, grown)
    assert (said == "read") == (what in ("bomb in the voxels", "float64"))
