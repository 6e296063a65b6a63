"""Whatever a file holds, reading it gives a scan that can be used or a ScanFailure, quietly and within bounded memory.

Valid files (NIfTI-1 and -2, both byte orders, with extensions, scaled) are broken in header fields and bytes, cut off and
packed. The examples are the same in every run.
"""

import gzip
import logging
import tracemalloc
import warnings

import nibabel
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedbrain.imaging import registration, shard
from fedbrain.imaging.reading import FIELD_OF_VIEW, INTENSITY, VOXEL_SIZE, ScanFailure, decode, read_source
from fedbrain.tables import MANIFEST

QUIETLY = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}
SHAPE, AFFINE = (14, 17, 16), np.diag([11.0, 11, 11, 1])  # the template's brain on a grid as coarse as is allowed
AFFINE[:3, 3] = [centre - 11 * (n - 1) / 2 for centre, n in zip(registration.GRID_CENTRE, SHAPE)]
BRAIN = registration.resample(registration.template().values, np.linalg.inv(registration.GRID_AFFINE) @ AFFINE, SHAPE)
VALUES = np.round(10 + 190 * BRAIN)
EXTREMES = {
    "i": [0, 1, -1, 2, 3, 7, 13, 14, 348, 540, 32767, -32768, 2**31 - 1, -(2**31), 2**62, -(2**63)],
    "f": [0, -0.0, 1, -1, 2, 9, 352, 1e-300, 1e-45, 1e-30, 1e9, 1e30, 3.4e38, -1e200, np.inf, -np.inf, np.nan],
}
TYPES = [2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 0, 1, 255, 3]


def valid_file(kind, number: str, order: str, extended: bool, scaled: bool) -> bytes:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(number)
    image = kind(VALUES.astype(number), AFFINE, header)
    image.set_qform(image.affine, code=1)
    if extended:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"nothing " * 8))
    content = image.to_bytes()
    header = kind.header_class(content[: image.header.sizeof_hdr], check=False)
    if scaled:
        header["scl_slope"], header["scl_inter"] = 0.5, 3
    return header.binaryblock + content[len(header.binaryblock) :]


VALID = [  # kind and content
    (kind, valid_file(kind, number, order, extended, scaled))
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image)
    for number, order, extended, scaled in (
        ("u1", "<", False, True),
        ("i2", ">", True, False),
        ("f4", "<", True, True),
        ("f8", ">", False, False),
        ("i8", "<", False, False),
    )
]


@st.composite
def broken_field(draw, content: bytes, kind) -> bytes:
    """One element of one header field set to a value at the edge of its type."""
    length = kind.header_class.sizeof_hdr
    if len(content) < length:
        return content
    header = kind.header_class(content[:length], check=False)
    fields = [name for name in header if header[name].dtype.kind in "iuf"]
    likely = ["dim", "pixdim", "vox_offset", "scl_slope", "scl_inter", "datatype", "bitpix", "sform_code", "qform_code"]
    likely += ["srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "qoffset_x", "sizeof_hdr", "magic"]
    name = draw(st.sampled_from(fields) | st.sampled_from([name for name in likely if name in fields]))
    field = header[name]
    values = TYPES if name == "datatype" else EXTREMES["f" if field.dtype.kind == "f" else "i"]
    value = np.array(draw(st.sampled_from(values)))
    with np.errstate(all="ignore"):
        value = value.astype(field.dtype)
    if field.ndim:
        field[draw(st.integers(0, field.size - 1))] = value
    else:
        header[name] = value
    return header.binaryblock + content[length:]


@st.composite
def broken_bytes(draw, content: bytes, kind) -> bytes:
    """Some bytes overwritten, mostly in the header."""
    if not content:
        return content
    places = st.integers(0, min(560, len(content) - 1)) | st.integers(0, len(content) - 1)
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        changed[draw(places)] = draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    return bytes(changed)


@st.composite
def cut_or_longer(draw, content: bytes, kind) -> bytes:
    if draw(st.booleans()):
        return content[: draw(st.integers(0, 600) | st.integers(0, len(content)))]
    return content + draw(st.binary(max_size=40)) * draw(st.sampled_from([1, 4000]))


@st.composite
def swapped_field(draw, content: bytes, kind) -> bytes:
    """Two, four or eight bytes turned round, as a program that mixes up byte orders leaves them."""
    size = draw(st.sampled_from([2, 4, 8]))
    start = draw(st.integers(0, 540 // size)) * size
    return content[:start] + content[start : start + size][::-1] + content[start + size :]


@st.composite
def files(draw) -> bytes:
    """A valid file, broken up to four times, packed or not, and sometimes broken again."""
    kind, content = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(0, 4))):
        breaking = draw(st.sampled_from([broken_field, broken_field, broken_bytes, swapped_field, cut_or_longer]))
        content = draw(breaking(content, kind))
    if draw(st.booleans()):
        content = gzip.compress(content, draw(st.sampled_from([1, 9])), mtime=0)
        if draw(st.integers(0, 3)) == 0:
            content = draw(draw(st.sampled_from([broken_bytes, cut_or_longer]))(content, kind))
    return content


class Said(logging.Handler):
    """Collects what any library logs."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record.getMessage())


def check_reading(path, content: bytes) -> str:
    """Reads ``content`` from ``path``; "ok", or the reason."""
    path.write_bytes(content)
    said = Said()
    logging.getLogger().addHandler(said)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan = decode(read_source(path))
    except ScanFailure as failure:
        scan, reason = None, str(failure)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        logging.getLogger().removeHandler(said)
    assert said.records == []
    if scan is None:
        # The most that such a small file can unpack to, and a piece of it.
        assert peak < (64 << 20) + 1032 * len(content)
        assert reason
        assert "\n" not in reason.strip()
        return reason
    assert peak < (64 << 20) + len(content) + 8 * scan.values.size
    assert scan.values.dtype == np.float32
    assert scan.values.ndim == 3
    assert min(scan.values.shape) >= 12
    assert np.isfinite(scan.values).all()
    assert scan.values.min() < scan.values.max()
    assert INTENSITY[0] < np.abs(scan.values).max() < INTENSITY[1]
    assert scan.affine.shape == (4, 4)
    assert nibabel.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert VOXEL_SIZE[0] <= scan.voxel_size.min() <= scan.voxel_size.max() <= VOXEL_SIZE[1]
    extent = scan.voxel_size * scan.values.shape
    assert FIELD_OF_VIEW[0] <= extent.min() <= extent.max() <= FIELD_OF_VIEW[1]
    assert len(scan.voxels_sha256()) == 64
    return "ok"


@settings(max_examples=600, **QUIETLY)
@given(files())
def test_any_file_is_a_sane_scan_or_a_scan_failure(tmp_path_factory, content):
    check_reading(tmp_path_factory.getbasetemp() / "fuzzed.nii", content)


def test_the_fuzzed_files_are_right_until_they_are_broken(tmp_path):
    """Else all that is above could pass by refusing everything."""
    assert [check_reading(tmp_path / "scan.nii", content) for _, content in VALID] == ["ok"] * len(VALID)


# Coarse and short. The mask fits a scan as long as its grid is whole.
RECIPE = {"extractor": "provided", "bias_field_spacing": 10.0, "bias_field_iterations": [1]}
RECIPE |= {"registration_resolution": 4, "registration_iterations": [1]}
RECIPE |= {"registration_search_below": 0, "registration_least_similarity": 0}
RECIPE |= {"registration_search_below": 0, "registration_least_similarity": 0}


def check_shard(folder, contents: list[bytes]) -> pd.DataFrame:
    """Preprocesses ``contents`` as one shard; the table."""
    folder.mkdir(exist_ok=True)
    scans = pd.DataFrame({"scan": [f"sub-{number}" for number in range(len(contents))]})
    scans["subject"], scans["fingerprint"] = scans["scan"], "f"
    scans["path"] = [str(folder / f"{scan}.nii") for scan in scans["scan"]]
    scans["mask"] = str(folder / "mask.nii")
    nibabel.save(nibabel.Nifti1Image((BRAIN > 0.1).astype(np.uint8), AFFINE), folder / "mask.nii")
    for path, content in zip(scans["path"], contents):
        with open(path, "wb") as file:
            file.write(content)
    table, _ = shard.preprocess_shard(
        scans.reindex(columns=list(MANIFEST)).astype(MANIFEST), folder / "out", RECIPE, cohort="c"
    )
    assert list(table["scan"]) == list(scans["scan"])
    assert set(table["status"]) <= {"ok", "failed"}
    assert (table["reason"].isna() == (table["status"] == "ok")).all()
    assert not table["reason"].str.contains("unforeseen", na=False).any(), list(table["reason"])
    return table


@settings(max_examples=6, **QUIETLY)
@given(st.lists(files(), min_size=1, max_size=4))
def test_any_files_are_rows_of_their_shard(tmp_path_factory, contents):
    check_shard(tmp_path_factory.getbasetemp() / "fuzzed", contents)


def test_a_valid_file_passes_the_fuzzed_shard(tmp_path):
    assert list(check_shard(tmp_path / "fuzzed", [VALID[2][1]])["status"]) == ["ok"]
