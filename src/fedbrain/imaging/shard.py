"""Preprocesses one shard of scans, each apart from the others.

A scan goes: reading, brain mask, bias field within it, affine to the template, one resampling, intensity
normalization. What can go wrong with one scan is a row with a reason; what goes wrong with the machine (a disk, memory,
the accelerator) stops the job, and what is made already stays. Volume, mask and record are each renamed into
place, the record last; a job that is killed loses the scan in work and nothing else.
"""

import ast
import gzip
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
from tqdm import tqdm

from fedbrain import registry
from fedbrain.errors import StudyError
from fedbrain.imaging import bias_field, histogram, intensity, layout, quality, reading, registration
from fedbrain.imaging.faults import is_of_machine
from fedbrain.imaging.reading import NotPermitted, Scan, ScanFailure, Source
from fedbrain.provenance import digest, versions
from fedbrain.tables import HISTOGRAM, VOLUMES, write_text, written_atomically

logger = logging.getLogger(__name__)

RECIPE_DEFAULTS = {
    "extractor": "deepbet",  # a brain_extractor of the registry
    "intensity": "encoder",  # an intensity of the registry
    "bias_field_spacing": 6.0,  # mm between the voxels that N4 fits
    "bias_field_iterations": [20, 20, 50],  # at most, per level
    "registration_resolution": 3,  # mm, whole
    "registration_iterations": [500, 250, 100],  # at most, per level
    "registration_seed": 1,
    "interpolation": "linear",  # or cubic
}
NORMALIZED_WIDTH = 0.01  # of a bin after normalization; without normalization it is chosen by the range
QUALITY = dict.fromkeys(quality.COLUMNS, "Float64")
CROP_MARGIN = 4  # voxels about the brain
COMPUTING_MODULES = (reading, bias_field, registration, intensity, histogram, quality)


def preprocess_shard(
    scans: pd.DataFrame, folder: str | Path, recipe: Mapping, *, cohort: str, device: str = "cpu"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Brings every scan of a shard to the MNI grid; keeps what an earlier run has made the same way.

    Args:
        scans: MANIFEST rows.
        folder: where the volumes, masks and records go (see ``layout``); those of scans that are no longer listed, or
            that fail now, are removed; those of a scan that the account may not read now stay, without a good row.
        recipe: what RECIPE_DEFAULTS lists, as far as it differs.
        cohort: its name, for messages.
        device: "cpu" or "cuda", for the brain extractor only.
    Returns:
        VOLUMES rows with the QC columns, in the order of ``scans``, and the HISTOGRAM of the scans that are ok, stages
        ``before`` (bias-corrected) and ``after`` normalization.
    Raises:
        StudyError: for an unknown recipe, a scan that is listed twice, or a disk that fails while a scan is read; never
            for a bad scan.
        OSError: where results cannot be written or looked up. Its path is ``folder``, which names no subject.
        MemoryError, RuntimeError: where memory ran out or the accelerator failed.
    """
    recipe, folder = complete_recipe(recipe), Path(folder)
    doubled = scans["scan"][scans["scan"].duplicated()].unique()
    if len(doubled):
        raise StudyError(
            f"cohort {cohort}: {len(doubled)} scan ids are listed twice in one shard; delete results/cohorts and run again"
        )
    with _errors_name_only(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder, scans["scan"])
    method = _method(recipe)
    rows, histograms = [], {"before": [], "after": []}
    listed = tqdm(scans.to_dict("records"), desc=f"{cohort}: scans", unit="scan", mininterval=5)
    for line, scan in enumerate(listed, start=2):  # line 1 of a manifest is its header
        place = f"cohort {cohort}, line {line} of the shard's manifest"  # in place of the path, which names the subject
        row, record = _preprocess_or_reuse(scan, folder, recipe, method, device, place)
        rows.append(row)
        for stage, counts in record.get("histograms", {}).items():
            histograms[stage].append(_unpack(counts))
    table = pd.DataFrame(rows, columns=[*VOLUMES, *QUALITY]).astype(VOLUMES | QUALITY)
    failed, reused = int((table["status"] == "failed").sum()), int(table["reused"].sum())
    logger.log(
        logging.WARNING if failed else logging.INFO,
        "cohort %s: %d scans, %d kept from an earlier run, %d failed (reasons in the shard's table)",
        *(cohort, len(table), reused, failed),
    )
    merged = [histogram.merge(parts).assign(stage=stage) for stage, parts in histograms.items()]
    return table, pd.concat(merged, ignore_index=True)[list(HISTOGRAM)].astype(HISTOGRAM)


def complete_recipe(recipe: Mapping) -> dict:
    """The recipe with its defaults. Raises StudyError, naming the key, for what cannot be meant."""
    unknown = sorted(set(recipe) - set(RECIPE_DEFAULTS))
    if unknown:
        raise StudyError(f"preprocessing: unknown {', '.join(unknown)}. Known: {', '.join(RECIPE_DEFAULTS)}")
    full = RECIPE_DEFAULTS | dict(recipe)
    if isinstance(full["bias_field_spacing"], int):
        full["bias_field_spacing"] = float(full["bias_field_spacing"])  # 6 and 6.0 are one recipe
    registry.module_of("brain_extractor", full["extractor"])
    registry.module_of("intensity", full["intensity"])
    if full["interpolation"] not in registration.ORDERS:
        raise StudyError(
            f"preprocessing: interpolation is {full['interpolation']!r}; use {' or '.join(registration.ORDERS)}"
        )
    if full["registration_resolution"] not in (1, 2, 3, 4):
        raise StudyError(
            f"preprocessing: registration_resolution is {full['registration_resolution']!r}; use 1, 2, 3 or 4 (mm)"
        )
    if not 1 <= full["bias_field_spacing"] <= 10:
        raise StudyError(f"preprocessing: bias_field_spacing is {full['bias_field_spacing']!r}; use 1 to 10 (mm)")
    for key, levels in (("bias_field_iterations", (1, 2, 3, 4)), ("registration_iterations", (1, 2, 3))):
        if len(full[key]) not in levels or not all(isinstance(n, int) and n >= 0 for n in full[key]):
            raise StudyError(
                f"preprocessing: {key} is {full[key]!r}; use at most {levels[-1]} whole numbers, one per level"
            )
    return full


def _preprocess_or_reuse(
    scan: Mapping, folder: Path, recipe: dict, method: dict, device: str, place: str
) -> tuple[dict, dict]:
    """The scan's VOLUMES row and its record, which is empty where it failed. ``place`` says where, for messages."""
    row = {
        "scan": scan["scan"],
        "subject": scan["subject"],
        "session": scan["session"],
        "fingerprint": scan["fingerprint"],
    }
    start, keep = time.perf_counter(), False
    try:
        source = _read(scan["path"], place)
        row |= {"size": source.size, "mtime_ns": source.mtime_ns, "sha256": source.sha256}
        mask_source = None
        if recipe["extractor"] == "provided" and not pd.isna(scan["mask"]):
            mask_source = _of_mask(_read, scan["mask"], f"{place} (mask)")
        key = digest(method | {"source": source.sha256, "mask": mask_source and mask_source.sha256})
        row |= {"key": key}
        record = _kept_record(folder, scan["scan"], key)
        reused = record is not None
        if record is None:
            volume, mask, record = compute_scan(source, mask_source, recipe, device)
            record |= {"key": key, "method": method, "seconds": round(time.perf_counter() - start, 3)}
            _write(folder, scan["scan"], volume, mask, record)
        measured = {"seconds": record["seconds"]} | record["quality"]
        return row | {"status": "ok", "reason": None, "reused": int(reused)} | measured, record
    except ScanFailure as failure:
        reason, keep = str(failure), isinstance(failure, NotPermitted)
    except (OSError, ImportError, StudyError):
        raise  # a full disk or a broken installation is no scan's fault; every scan would fail by it
    except Exception as error:  # one scan never stops the others
        if is_of_machine(error):
            error.add_note(f"{place}: memory or accelerator failed; run again, with more memory or fewer jobs at once")
            raise
        # The traceback may hold a path, and a path a subject's id: the reason goes to the table, not to the log.
        logger.warning("a scan failed in an unforeseen way (%s)", type(error).__name__)
        reason = f"unforeseen: {type(error).__name__}: {error}; report this with the software's versions"
    if not keep:
        _remove(folder, scan["scan"])
    row |= {"status": "failed", "reason": " ".join(reason.split()), "reused": 0}
    return row | {"seconds": round(time.perf_counter() - start, 3)}, {}


def _read(path: str, place: str) -> Source:
    try:
        return reading.read_source(path)
    except OSError as error:
        # Not even its folder may be told: in BIDS that is the subject's. The cause is hidden for the same reason.
        raise StudyError(
            f"{place}: the file cannot be read now ({error.strerror or type(error).__name__}), though the study began "
            "with all files there; see that its disk is mounted here and sound, and run again. Volumes that are made stay"
        ) from None


def compute_scan(
    source: Source, mask_source: Source | None, recipe: Mapping, device: str
) -> tuple[np.ndarray, np.ndarray, dict]:
    """All steps for one scan.

    Returns:
        The volume (128, 128, 128) float32, the mask (128, 128, 128) bool, and the record: steps with their parameters
        and seconds, quality, histograms, source.
    Raises:
        ScanFailure: with the reason.
    """
    steps = []

    @contextmanager
    def step(name: str, **parameters):
        start = time.perf_counter()
        yield parameters
        steps.append({"name": name, "parameters": parameters, "seconds": round(time.perf_counter() - start, 3)})

    with step("reading") as said:
        scan = reading.decode(source)
        provided = mask_source and _of_mask(reading.decode, mask_source)
        said |= {"shape": list(scan.values.shape), "affine": scan.affine.tolist()}
    with step("brain_extraction", extractor=recipe["extractor"], device=device):
        brain = registry.lookup("brain_extractor", recipe["extractor"])(scan, provided, device=device)
    with step("bias_field", spacing=recipe["bias_field_spacing"], iterations=recipe["bias_field_iterations"]):
        # All that follows happens in the brain's bounding box.
        box = _bounding_box(brain)
        inside, affine = brain[box], scan.affine.copy()
        affine[:3, 3] += scan.affine[:3, :3] @ [side.start for side in box]
        log_field = bias_field.log_bias_field(
            scan.values[box],
            inside,
            scan.voxel_size,
            spacing=recipe["bias_field_spacing"],
            iterations=recipe["bias_field_iterations"],
        )
        corrected = scan.values[box] * np.exp(-log_field)
    registering = {
        "resolution": recipe["registration_resolution"],
        "iterations": recipe["registration_iterations"],
        "seed": recipe["registration_seed"],
    }
    with step("registration", **registering) as said:
        mni_to_scanner = registration.register_affine(np.where(inside, corrected, 0), affine, **registering)
        said["mni_to_scanner"] = mni_to_scanner.tolist()
    with step("resampling", interpolation=recipe["interpolation"], grid_affine=registration.GRID_AFFINE.tolist()):
        voxel_map = np.linalg.inv(affine) @ mni_to_scanner @ registration.GRID_AFFINE
        # Brain and surroundings are interpolated together and masked afterwards: the brain's rim is not darkened.
        mask = registration.resample(inside.astype(np.float32), voxel_map) >= 0.5
        resampled = registration.resample(corrected, voxel_map, order=registration.ORDERS[recipe["interpolation"]])
        before = np.where(mask, np.maximum(resampled, 0), np.float32(0))
        if not mask.any():
            raise ScanFailure("the brain was sent outside the MNI grid; look at the scan's header and its brain mask")
    with step("intensity", method=recipe["intensity"]):
        volume = registry.lookup("intensity", recipe["intensity"])(before, mask)
    with step("quality"):
        measured = _measure(brain, scan, log_field, inside, before, mask, np.linalg.inv(mni_to_scanner))
        width = NORMALIZED_WIDTH if recipe["intensity"] != "none" else None
        counts = {
            "before": _pack(histogram.scan_histogram(before[mask])),
            "after": _pack(histogram.scan_histogram(volume[mask], width)),
        }
    said = {"sha256": source.sha256, "size": source.size, "mask_sha256": mask_source and mask_source.sha256}
    return volume, mask, {"source": said, "steps": steps, "quality": measured, "histograms": counts}


def _measure(brain, scan: Scan, log_field, inside, values, mask, scanner_to_mni) -> dict[str, float | None]:
    template, grid_voxel = registration.template(), registration.GRID_VOXEL_SIZE**3
    volume_ml = quality.brain_volume_ml(brain, abs(np.linalg.det(scan.affine[:3, :3])))
    determinant = quality.affine_determinant(scanner_to_mni)
    white = values[mask & (template.white > quality.TISSUE_PROBABILITY)]
    grey = values[mask & (template.grey > quality.TISSUE_PROBABILITY)]
    with np.errstate(all="ignore"):
        measured = {
            "brain_volume_ml": volume_ml,
            "template_correlation": quality.template_correlation(values, template.values, mask | template.mask),
            "mask_dice": quality.dice(mask, template.mask),
            "affine_determinant": determinant,
            "cjv": quality.cjv(white, grey) if white.size and grey.size else math.nan,
            "snr_white_matter": quality.snr(white) if white.size > 1 else math.nan,
            "bias_log_sd": quality.bias_log_sd(log_field, inside),
            "edge_fraction": quality.edge_fraction(brain),
            "outside_grid_fraction": quality.outside_grid_fraction(mask, grid_voxel, volume_ml * determinant),
        }
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in measured.items()}


def _of_mask(read, *arguments):
    try:
        return read(*arguments)
    except ScanFailure as failure:
        raise type(failure)(f"the provided brain mask: {failure}") from None


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    sides = []
    for axis, length in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        sides.append(slice(max(0, filled[0] - CROP_MARGIN), min(length, filled[-1] + 1 + CROP_MARGIN)))
    return tuple(sides)


# What decides about reuse -------------------------------------------------------------------------------------------


def _method(recipe: dict) -> dict:
    """All that a volume depends on beside its scan. Not the device: a kept volume stays good on another machine."""
    extractor = import_module(registry.module_of("brain_extractor", recipe["extractor"]))
    packages = ["antspyx", "nibabel", "nilearn", "numpy", "scipy"]
    packages += ["deepbet", "torch"] if recipe["extractor"] == "deepbet" else []
    known = versions(*packages)
    known.pop("fedbrain")  # its code counts, below, not its number
    files = [Path(__file__)] + [Path(module.__file__) for module in (*COMPUTING_MODULES, extractor)]
    code = {path.name: code_digest(path.read_text()) for path in files}
    return {"recipe": recipe, "versions": known, "code": code}


def code_digest(text: str) -> str:
    """A digest of Python code that comments, layout and docstrings do not change."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return digest(ast.dump(tree))


def _kept_record(folder: Path, scan: str, key: str) -> dict | None:
    """The record of an earlier run, if it was made the same way and its volume and mask are there, whole."""
    try:
        with _errors_name_only(folder):
            record = json.loads(layout.sidecar_path(folder, scan).read_text())
            sizes = {
                "volume": layout.volume_path(folder, scan).stat().st_size,
                "mask": layout.mask_path(folder, scan).stat().st_size,
            }
        return record if record["key"] == key and record["bytes"] == sizes else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a disk's fault goes on: it must not pass for a volume that has to be made anew


# Files --------------------------------------------------------------------------------------------------------------


@contextmanager
def _errors_name_only(folder: Path):
    """An OSError in here names the folder in the place of the file, whose name would tell the subject to the log."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or type(error).__name__, str(folder)) from None


def _write(folder: Path, scan: str, volume: np.ndarray, mask: np.ndarray, record: dict) -> None:
    with _errors_name_only(folder):
        # An old record must not outlive its volume, not even for the moment between two renames.
        layout.sidecar_path(folder, scan).unlink(missing_ok=True)
        sizes = {
            "volume": _write_nifti(volume, layout.volume_path(folder, scan)),
            "mask": _write_nifti(mask.astype(np.uint8), layout.mask_path(folder, scan)),
        }
        text = json.dumps(record | {"bytes": sizes}, indent=1, sort_keys=True) + "\n"
        write_text(text, layout.sidecar_path(folder, scan))


def _write_nifti(values: np.ndarray, path: Path) -> int:
    """Writes NIfTI whose bytes depend on the values alone (no time or name in its gzip header); returns their count."""
    image = nibabel.Nifti1Image(values, registration.GRID_AFFINE)
    image.set_sform(registration.GRID_AFFINE, code="mni")
    image.set_qform(registration.GRID_AFFINE, code="mni")
    image.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=stream, mtime=0) as zipped:
        zipped.write(image.to_bytes())
    with written_atomically(path) as temporary:
        temporary.write_bytes(stream.getbuffer())
    return stream.getbuffer().nbytes


def _remove(folder: Path, scan: str) -> None:
    ours = (layout.sidecar_path(folder, scan), layout.volume_path(folder, scan), layout.mask_path(folder, scan))
    with _errors_name_only(folder):
        for path in ours:
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path, scans) -> None:
    """Removes our files of scans that left the shard, and what a killed job left half written; others' files stay."""
    wanted = {scan + suffix for scan in scans for suffix in layout.SUFFIXES.values()}
    for path in folder.iterdir():
        if path.name.endswith(tuple(layout.SUFFIXES.values())) and path.name not in wanted:
            path.unlink()


def _pack(table: pd.DataFrame) -> dict:
    """A histogram for the record: bins as whole multiples of the width."""
    width = float(table["width"].iloc[0])
    bins = np.rint(table["start"].to_numpy(np.float64) / width).astype(int)
    return {"width": width, "bins": bins.tolist(), "counts": table["count"].tolist()}


def _unpack(record: dict) -> pd.DataFrame:
    return histogram.from_bins(np.array(record["bins"]), np.array(record["counts"]), record["width"])
