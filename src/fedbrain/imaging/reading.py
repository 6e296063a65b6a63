"""Reads one scan, and says in words why it cannot be used.

A file is read once: the checksum that decides about reuse belongs to the very bytes that are decoded. What a header
claims is checked before memory is taken for it, and voxels are unpacked piece by piece into the one array that is
wanted: beyond the file itself, reading takes at most 8 bytes per voxel and 64 MiB, whatever the file claims or holds.
"""

import errno
import gzip
import hashlib
import io
import logging
import math
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

LARGEST_FILE = 2 << 30  # bytes
LARGEST_VOLUME = 1 << 28  # voxels; a whole head at 0.4 mm has about 2**27
LARGEST_EXTENSION = 1 << 26  # bytes between header and voxels
FEWEST_VOXELS = 12  # along each axis
VOXEL_SIZE = (0.2, 12.0)  # mm
FIELD_OF_VIEW = (60.0, 600.0)  # mm along each axis
SHARPEST_ANGLE = 50.0  # degrees between two axes; a gantry tilted by 30 leaves 60 (ours)
FARTHEST = 5000.0  # mm from the scanner's origin to the centre of the scan (ours)
# Of the largest absolute value. Squares of float32 beyond the first, summed over a head, leave its range (ours).
INTENSITY = (1e-12, 1e12)
DEFLATE_RATIO = 1032  # bytes that one byte of a gzip stream can hold at most
PIECE = 1 << 20  # voxels that are unpacked at once

# What else is found under a scan's name: where its signature stands, what it is, the mend.
OTHER_FORMATS = (
    (128, b"DICM", "a DICOM file", "convert its series with dcm2niix"),
    (0, b"\0\0\0\1", "a FreeSurfer volume", "convert it with mri_convert"),
    (0, b"PK\3\4", "a zip archive", "unpack it"),
    (0, b"\x1f\x8b", "gzipped twice", "unpack it once"),
    (0, b"BZh", "a bzip2 file", "unpack it"),
    (0, b"\xfd7zXZ", "an xz file", "unpack it"),
    (0, b"\x89HDF", "a MINC or HDF file", "convert it with mnc2nii"),
    (0, b"CDF", "a MINC file", "convert it with mnc2nii"),
    (0, b"NRRD", "an NRRD file", "convert it to NIfTI"),
    (0, b"/annex/objects/", "a pointer of git-annex without its content", "run `datalad get` on it"),
    (0, b"version https://git-lfs", "a pointer of Git LFS without its content", "run `git lfs pull`"),
    (0, b"<", "a web page or XML, perhaps of a download that failed", "download the scan again"),
    (0, (348).to_bytes(4, "little"), "an Analyze header", "convert header and image to one .nii.gz"),
    (0, (348).to_bytes(4, "big"), "an Analyze header", "convert header and image to one .nii.gz"),
)
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
MEND_AFFINE = "set the header's sform and qform from the original, or convert the scan anew"
RUN_AGAIN = "delete the shard's table of volumes and run again"  # neither of its causes changes a time stamp

_SILENT = logging.Logger("nibabel's header checks")  # what matters of them becomes the reason
_SILENT.addHandler(logging.NullHandler())


class ScanFailure(Exception):
    """This scan cannot be used. The message says why and names the mend; it is the ``reason`` in the scan's row."""


class OutOfReach(ScanFailure):
    """The file cannot be had now. That says nothing about the scan: what was made of it before stays."""


class NotPermitted(OutOfReach):
    """The account may not read the file."""


@dataclass(frozen=True)
class Source:
    """A scan's file as it lies on the disk."""

    path: Path
    content: bytes
    sha256: str
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Scan:
    """A scan in memory, its axes ordered and flipped to lie nearest to right, anterior, superior (RAS)."""

    values: np.ndarray  # (X, Y, Z) float32
    affine: np.ndarray  # (4, 4) voxel to scanner mm
    header_conflict: float = 0.0  # mm between the places that sform and qform give a corner; NaN: a broken qform

    def turned(self, turn: np.ndarray) -> "Scan":
        """The same image with its axes in another order: ``turn`` (3, 3) is a quarter turn, array from new array axes."""
        places = np.abs(turn).argmax(axis=1)  # where each axis goes
        turns = np.stack([places, turn[np.arange(3), places]], axis=1)
        affine = self.affine @ nibabel.orientations.inv_ornt_aff(turns, self.values.shape)
        values = np.ascontiguousarray(nibabel.apply_orientation(self.values, turns))
        return Scan(values, affine, self.header_conflict)

    def rotated(self, rotation: np.ndarray) -> "Scan":
        """The same array in another place: rotated in space by ``rotation`` (3, 3) about the scanner's origin."""
        return Scan(self.values, nibabel.affines.from_matvec(rotation) @ self.affine, self.header_conflict)

    @property
    def voxel_size(self) -> np.ndarray:
        """(3,) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def voxels_sha256(self) -> str:
        """Digest of the voxels in RAS order: the same for one image in another file format, data type or gzip."""
        result = hashlib.sha256(repr(self.values.shape).encode())
        for plane in self.values:  # (Y, Z); minus zero is zero
            result.update(np.ascontiguousarray(plane + np.float32(0), dtype="<f4"))
        return result.hexdigest()


def read_source(path: str | Path) -> Source:
    """The bytes of a file with their checksum. A link is followed.

    Raises:
        ScanFailure: where this is no file of a sane size; OutOfReach where it changes while it is read or is a link whose
            target is not there, NotPermitted where the account may not read it.
        OSError: where the file is not there or the disk fails. Files are looked for before a study starts, so one that
            is missing now is a disk's fault (a mount, a server), not the scan's.
    """
    path = Path(path)
    try:
        for _ in range(2):
            before = path.stat()
            _check_file(before)
            content = path.read_bytes()
            after = path.stat()
            unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if unchanged and len(content) == after.st_size:
                return Source(path, content, hashlib.sha256(content).hexdigest(), len(content), after.st_mtime_ns)
    except PermissionError:
        raise NotPermitted(
            f"the file may not be read; give the account of this run read permission, {RUN_AGAIN}"
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutOfReach(f"the path is a link that leads back to itself; restore the file, {RUN_AGAIN}") from None
        if isinstance(error, FileNotFoundError) and _is_broken_link(path):
            raise OutOfReach(
                "the path is a link to a file that is not there; fetch the content (`datalad get` or `git annex get` where "
                f"the data set is managed so), {RUN_AGAIN}"
            ) from None
        raise
    raise OutOfReach("the file is changing while it is read; wait until it is written to its end, and run again")


def _check_file(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        kind = next((name for is_kind, name in KINDS if is_kind(state.st_mode)), "a device")
        raise ScanFailure(f"the path is {kind}, not a file; give the NIfTI file itself")
    if state.st_size == 0:
        raise ScanFailure("the file is empty; copy or convert it anew")
    if state.st_size > LARGEST_FILE:
        raise ScanFailure(f"the file has {state.st_size >> 20} MiB, too large for one T1w volume; check the path")


def _is_broken_link(path: Path) -> bool:
    """Whether a link's content is missing, rather than the disk that it lies on."""
    if not path.is_symlink():
        return False
    target = os.readlink(path)
    # git-annex removes the folder of a content together with it; elsewhere a missing folder may be a missing disk.
    return ".git/annex/objects/" in target or (path.parent / target).parent.is_dir()


def decode(source: Source) -> Scan:
    """The volume in a NIfTI-1 or NIfTI-2 file, gzipped or not (told by content, not by the name), turned to RAS.

    Scaled by ``scl_slope`` and ``scl_inter`` as the NIfTI standard has it: not at all where the slope is zero or not finite.
    A negative voxel size in the header counts as positive, since qform and sform say which way an axis points. Trailing
    axes of length one are dropped.

    Raises ScanFailure for anything but one three-dimensional, finite, not constant volume with a usable affine.
    """
    zipped = source.content[:2] == b"\x1f\x8b"
    stream, room = io.BytesIO(source.content), len(source.content) * (DEFLATE_RATIO if zipped else 1)
    try:
        with np.errstate(all="ignore"):  # what overflows is not finite, or too large, and refused as such
            values, affine, conflict = _parse(gzip.GzipFile(fileobj=stream) if zipped else stream, room)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanFailure(f"the gzip stream is damaged or cut off ({error}); copy or convert the scan anew") from None
    _check_values(values)
    turns = nibabel.io_orientation(affine)
    affine = affine @ nibabel.orientations.inv_ornt_aff(turns, values.shape)
    return Scan(np.ascontiguousarray(nibabel.apply_orientation(values, turns)), affine, conflict)


def _parse(stream, room: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Values (X, Y, Z) float32 and affine (4, 4) as they stand in the file, and the header's conflict in mm.

    ``room``: the most bytes that can come out of ``stream``.
    """
    head = stream.read(348)
    if head[344:347] == b"n+1":
        kind = nibabel.Nifti1Header
    elif head[4:7] == b"n+2":
        kind, head = nibabel.Nifti2Header, head + stream.read(540 - 348)
    else:
        raise ScanFailure(_what_else(head))
    try:
        header = kind(head, check=False)
        sized = header["sform_code"] != 0 or np.all(header["pixdim"][1:4])
        header.check_fix(_SILENT)  # makes a size of 0 one of 1 mm, which is a guess
        shape, number = header.get_data_shape(), header.get_data_dtype()
        offset = int(header["vox_offset"])
        slope, inter = header.get_slope_inter()
    except Exception as error:  # nibabel raises many kinds for a broken header
        raise ScanFailure(f"the NIfTI header is broken ({error}); convert the scan anew") from None
    _check_shape(shape)
    if number.kind not in "iuf":
        raise ScanFailure(f"voxels are {number}, not real numbers; give the magnitude image in grey values")
    if not len(head) <= offset <= len(head) + LARGEST_EXTENSION:
        raise ScanFailure(f"the header says that the data begin at byte {offset}; convert the scan anew")
    if not sized:
        raise ScanFailure(f"the header has a voxel size of 0; {MEND_AFFINE}")
    affine = _affine(header, shape)
    conflict = _header_conflict(header, shape)
    expected = math.prod(shape) * number.itemsize
    if room - offset < expected:
        raise _cut_off(max(0, room - offset), expected)
    # Header extensions are skipped: they are not needed, and a broken one shall not matter.
    for start in range(len(head), offset, 1 << 20):
        stream.read(min(1 << 20, offset - start))
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, values.size, PIECE):
        part = values[start : start + PIECE]
        stored = stream.read(part.size * number.itemsize)
        if len(stored) < part.size * number.itemsize:
            raise _cut_off(start * number.itemsize + len(stored), expected)
        part[:] = _scaled(np.frombuffer(stored, dtype=number), slope, inter)
    stream.read(1 << 16)  # a gzip checksum is compared at the stream's end only
    return values.reshape(shape[:3], order="F"), affine, conflict


def _cut_off(there: int, expected: int) -> ScanFailure:
    return ScanFailure(
        f"the file ends before its voxels do: at most {there} of {expected} bytes are there; copy or convert the scan anew"
    )


def _scaled(stored: np.ndarray, slope: float | None, inter: float | None) -> np.ndarray:
    if slope is not None and (slope, inter) != (1, 0):
        stored = stored.astype(np.float64) * slope + inter
    return stored.astype(np.float32)


def _what_else(head: bytes) -> str:
    if head[344:347] == b"ni1":
        return "this is one half of a .hdr/.img pair; convert it to a single .nii.gz"
    for place, signature, what, mend in OTHER_FORMATS:
        if head[place : place + len(signature)] == signature:
            return f"not a NIfTI file but {what}; {mend}"
    return "not a NIfTI file; convert the scan (dcm2niix for DICOM, mri_convert for .mgz)"


def _check_shape(shape: tuple[int, ...]) -> None:
    size = " x ".join(str(n) for n in shape)
    if any(n < 1 for n in shape) or math.prod(shape[:3]) > LARGEST_VOLUME:
        raise ScanFailure(f"the header claims {size or 'no'} voxels; it is broken, convert the scan anew")
    if len(shape) > 3 and math.prod(shape[3:]) > 1:
        raise ScanFailure(f"{size} voxels are a series of volumes, not one; give the single T1w volume")
    if len(shape) < 3 or min(shape[:3]) < FEWEST_VOXELS:
        raise ScanFailure(
            f"{size} voxels are not a 3D head (at least {FEWEST_VOXELS} along each axis); give a 3D T1w scan"
        )


def _header_conflict(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> float:
    """The greatest distance in mm between where sform and qform put a corner of the volume; 0 where one alone is set.

    The sform is what counts, as for most software. It may say another space than the qform by intent (after an alignment
    to a template), but never another handedness: which side is left would hang on the software.
    """
    if header["qform_code"] == 0 or header["sform_code"] == 0:
        return 0.0
    try:
        qform, sform = header.get_qform(), header.get_sform()
    except Exception:  # nibabel raises many kinds; the sform is used and has been checked
        return math.nan
    if not np.isfinite(qform).all():
        return math.nan
    if not np.linalg.det(qform[:3, :3]) * np.linalg.det(sform[:3, :3]) > 0:
        raise ScanFailure(f"qform and sform disagree about left and right (their handedness differs); {MEND_AFFINE}")
    corners = np.indices((2, 2, 2)).reshape(3, -1).T * (np.array(shape[:3]) - 1)  # (8, 3)
    apart = nibabel.affines.apply_affine(qform, corners) - nibabel.affines.apply_affine(sform, corners)
    return float(np.linalg.norm(apart, axis=1).max())


def _affine(header: nibabel.Nifti1Header, shape: tuple[int, ...]) -> np.ndarray:
    """The header's (4, 4) from voxel to scanner mm: its sform, or else its qform."""
    if header["qform_code"] == 0 and header["sform_code"] == 0:
        raise ScanFailure(f"neither qform nor sform is set, so left and right are unknown; {MEND_AFFINE}")
    try:
        affine = header.get_best_affine()
    except Exception as error:  # a quaternion or a handedness that is none
        raise ScanFailure(f"the qform cannot be read ({error}); {MEND_AFFINE}") from None
    if not np.isfinite(affine).all():
        raise ScanFailure(f"the affine is not finite; {MEND_AFFINE}")
    linear = affine[:3, :3]
    size = np.linalg.norm(linear, axis=0)  # (3,) mm
    if size.min() == 0 or abs(np.linalg.det(linear / size)) < 1e-3:
        raise ScanFailure(f"the affine is singular (its axes do not span space); {MEND_AFFINE}")
    if size.min() < VOXEL_SIZE[0] or size.max() > VOXEL_SIZE[1]:
        listed = " x ".join(f"{s:.4g}" for s in size)
        raise ScanFailure(f"voxels of {listed} mm are no head's; is the header in another unit than mm? {MEND_AFFINE}")
    extent = size * shape[:3]
    if extent.min() < FIELD_OF_VIEW[0] or extent.max() > FIELD_OF_VIEW[1]:
        listed = " x ".join(f"{e:.0f}" for e in extent)
        raise ScanFailure(
            f"a field of view of {listed} mm does not hold one whole head; give a whole-head scan, or {MEND_AFFINE}"
        )
    angles = np.degrees(np.arccos(np.abs(np.triu((linear / size).T @ (linear / size), k=1))))
    if angles.min() < SHARPEST_ANGLE:
        raise ScanFailure(
            f"two axes of the affine meet at {angles.min():.0f} degrees, a scan's meet at about 90; {MEND_AFFINE}"
        )
    centre = affine @ [*((np.array(shape[:3]) - 1) / 2), 1]
    if np.abs(centre).max() > FARTHEST:
        raise ScanFailure(f"the scan lies {np.abs(centre).max() / 1000:.3g} m from the scanner's origin; {MEND_AFFINE}")
    return affine


def _check_values(values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())  # a NaN anywhere makes both NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise ScanFailure(f"{count} voxels are NaN or infinite; replace them (for example with fslmaths -nan)")
    if low == high:
        raise ScanFailure(f"every voxel is {low:g}; the scan is empty, export it anew")
    mend = "is the header's scl_slope right? Export the scan anew"
    if high <= 0:
        raise ScanFailure(f"no voxel is above zero (they are {low:g} to {high:g}); {mend}")
    if not INTENSITY[0] < max(-low, high) < INTENSITY[1]:
        raise ScanFailure(f"voxels of {low:g} to {high:g} are no MR intensities; {mend}")
