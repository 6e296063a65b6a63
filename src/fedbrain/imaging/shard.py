"""Preprocesses one shard of scans, each apart from the others.

A scan goes: reading, brain mask, bias field within it, affine to the template, one resampling, intensity
normalization. What can go wrong with one scan is a row with a reason; what goes wrong with the machine (a disk, memory,
the accelerator) stops the job, and what is made already stays. Volume, mask and record are each renamed into
place, the record last; a job that is killed loses the scan in work and nothing else.
"""

import logging
import math
import time
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from fedbrain import registry
from fedbrain.errors import StudyError
from fedbrain.imaging import (
    bias_field,
    brain_extraction,
    derivatives,
    histogram,
    intensity,
    quality,
    reading,
    registration,
    snapshots,
)
from fedbrain.imaging.extractor_cards import CARDS
from fedbrain.imaging.faults import is_of_machine
from fedbrain.imaging.reading import OutOfReach, Scan, ScanFailure, Source
from fedbrain.provenance import digest
from fedbrain.shard_folders import errors_name_only, held
from fedbrain.tables import VOLUMES

logger = logging.getLogger(__name__)

RECIPE_DEFAULTS = {
    "extractor": "deepbet",  # a brain_extractor of the registry
    "extractor_weights": None,  # path, for those whose networks are no package's; decides nothing, its checksum does
    "extractor_sha256": None,  # of that file; not given, the published one
    "intensity": "encoder",  # an intensity of the registry
    "bias_field_spacing": 6.0,  # mm between the voxels that N4 fits
    "bias_field_iterations": [20, 20, 50],  # at most, per level
    "registration_resolution": 3,  # mm, whole
    "registration_iterations": [500, 250, 100],  # at most, per level
    "registration_seed": 1,
    "registration_search_below": 0.08,  # similarity under which all rotations are searched
    "registration_least_similarity": 0.065,  # under which a scan fails
    "interpolation": "linear",  # or cubic
}
QUALITY = dict.fromkeys(quality.COLUMNS, "Float64")
CROP_MARGIN = 4  # voxels about the brain
UPRIGHT = 0.1  # similarity without ANTs from which a head is taken for upright; lying wrongly, heads came to .07 (ours)
COMPUTING_MODULES = (derivatives, reading, brain_extraction, bias_field, registration, intensity, histogram, quality)


def preprocess_shard(
    scans: pd.DataFrame,
    folder: str | Path,
    recipe: Mapping,
    *,
    cohort: str,
    device: str = "cpu",
    unconverted: Collection[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Brings every scan of a shard to the MNI grid; keeps what an earlier run has made the same way.

    Args:
        scans: MANIFEST rows.
        folder: where the volumes, masks and records go (see ``layout``); those of scans that are no longer listed, or
            that fail now, are removed; those of a scan that the account may not read now stay, without a good row.
        recipe: what RECIPE_DEFAULTS lists, as far as it differs.
        cohort: its name, for messages.
        device: "cpu" or "cuda", for the brain extractor only.
        unconverted: scans whose DICOM folder gave no file. They have no row; their volume is removed, unless the file of
            an earlier conversion is there still, because the folder may not be read now.
    Returns:
        VOLUMES rows of the others with the QC columns, in the order of ``scans``, and the HISTOGRAM of the scans that are
        ok, stages ``before`` (bias-corrected) and ``after`` normalization.
    Raises:
        StudyError: for an unknown recipe, a scan that is listed twice, a folder that another process works on, or a disk
            that fails while a scan is read; never for a bad scan.
        OSError: where results cannot be written or looked up. Its path is ``folder``, which names no subject.
        MemoryError, RuntimeError: where memory ran out or the accelerator failed.
    """
    recipe, folder = complete_recipe(recipe), Path(folder)
    doubled = scans["scan"][scans["scan"].duplicated()].unique()
    if len(doubled):
        raise StudyError(
            f"cohort {cohort}: {len(doubled)} scan ids are listed twice in one shard; delete results/cohorts and run again"
        )
    with errors_name_only(folder):
        folder.mkdir(parents=True, exist_ok=True)
        listed = zip(scans["scan"], scans["path"])
        gone = {scan for scan, path in listed if scan in unconverted and not Path(path).is_file()}
    method = _method(recipe)
    rows, histograms = [], {"before": [], "after": []}
    with held(folder):
        with errors_name_only(folder):
            derivatives.remove_stale(folder, set(scans["scan"]) - gone)
        listed = tqdm(scans.to_dict("records"), desc=f"{cohort}: scans", unit="scan", mininterval=5)
        for line, scan in enumerate(listed, start=2):  # line 1 of a manifest is its header
            if scan["scan"] in unconverted:
                continue
            place = f"cohort {cohort}, line {line} of the shard's manifest"  # not the path, which names the subject
            row, record = _preprocess_or_reuse(scan, folder, recipe, method, device, place)
            rows.append(row)
            for stage, counts in record.get("histograms", {}).items():
                histograms[stage].append(histogram.unpacked(counts))
    table = pd.DataFrame(rows, columns=[*VOLUMES, *QUALITY]).astype(VOLUMES | QUALITY)
    failed, reused = int((table["status"] == "failed").sum()), int(table["reused"].sum())
    logger.log(
        logging.WARNING if failed else logging.INFO,
        "cohort %s: %d scans, %d kept from an earlier run, %d failed (reasons in the shard's table)",
        *(cohort, len(table), reused, failed),
    )
    return table, histogram.merge_stages(histograms)


def complete_recipe(recipe: Mapping) -> dict:
    """The recipe with its defaults. Raises StudyError, naming the key, for what cannot be meant."""
    unknown = sorted(set(recipe) - set(RECIPE_DEFAULTS))
    if unknown:
        raise StudyError(f"preprocessing: unknown {', '.join(unknown)}. Known: {', '.join(RECIPE_DEFAULTS)}")
    full = RECIPE_DEFAULTS | dict(recipe)
    for key in ("bias_field_spacing", "registration_search_below", "registration_least_similarity"):
        if isinstance(full[key], int):
            full[key] = float(full[key])  # 6 and 6.0 are one recipe
    registry.module_of("brain_extractor", full["extractor"])
    card = CARDS[full["extractor"]]
    if problems := list(card.problems(full["extractor_weights"], full["extractor_sha256"])):
        raise StudyError("; ".join(problems))
    full["extractor_sha256"] = card.expected_sha256(full["extractor_weights"], full["extractor_sha256"])
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
    for key in ("registration_search_below", "registration_least_similarity"):
        if not 0 <= full[key] <= 1:
            raise StudyError(f"preprocessing: {key} is {full[key]!r}; use 0 to 1")
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
    start, keep, key, lasting = time.perf_counter(), False, None, False
    try:
        source = _read(scan["path"], place)
        row |= {"size": source.size, "mtime_ns": source.mtime_ns, "sha256": source.sha256}
        mask_source = None
        if recipe["extractor"] == "provided" and not pd.isna(scan["mask"]):
            mask_source = _of_mask(_read, scan["mask"], f"{place} (mask)")
        key = digest(method | {"source": source.sha256, "mask": mask_source and mask_source.sha256})
        row |= {"key": key}
        record = derivatives.kept_record(folder, scan["scan"], key)
        reused = record is not None
        if record is None and (failed := derivatives.kept_failure(folder, scan["scan"], key)):
            return row | {name: failed[name] for name in ("reason", "seconds")} | {"status": "failed", "reused": 0}, {}
        if record is None:
            volume, mask, record, picture = compute_scan(source, mask_source, recipe, device)
            record |= {"key": key, "method": method, "seconds": round(time.perf_counter() - start, 3)}
            derivatives.write(folder, scan["scan"], volume, mask, record, picture)
        measured = {"voxels_sha256": record["source"]["voxels_sha256"], "seconds": record["seconds"]} | record[
            "quality"
        ]
        return row | {"status": "ok", "reason": None, "reused": int(reused)} | measured, record
    except ScanFailure as failure:
        reason, keep = str(failure), isinstance(failure, OutOfReach)
        lasting = key is not None  # both files were read: it lies in them, and would be found again
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
        derivatives.remove(folder, scan["scan"])
    said = {"reason": " ".join(reason.split()), "seconds": round(time.perf_counter() - start, 3)}
    if lasting:
        derivatives.write_failure(folder, scan["scan"], said | {"key": key, "method": method})
    return row | said | {"status": "failed", "reused": 0}, {}


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
) -> tuple[np.ndarray, np.ndarray, dict, bytes]:
    """All steps for one scan.

    Returns:
        The volume (128, 128, 128) float32, the mask (128, 128, 128) bool, the record (steps with their parameters
        and seconds, quality, histograms, source), and the snapshot (WebP).
    Raises:
        ScanFailure: with the reason.
    """
    steps = []

    @contextmanager
    def step(name: str, **parameters):
        start = time.perf_counter()
        try:
            yield parameters
        finally:
            steps.append({"name": name, "parameters": parameters, "seconds": round(time.perf_counter() - start, 3)})

    with step("reading") as said:
        scan = reading.decode(source)
        provided = mask_source and _of_mask(reading.decode, mask_source)
        said |= {"shape": list(scan.values.shape), "affine": scan.affine.tolist()}
    found = _laid_on_template(scan, provided, recipe, device, step, steps)
    if found.reason:
        raise found.reason
    if found.alignment.similarity < recipe["registration_least_similarity"]:
        raise ScanFailure(
            f"the brain could not be laid on the template (similarity {found.alignment.similarity:.3f} after "
            f"{found.alignment.starts} starts, at least {recipe['registration_least_similarity']:g} is asked for); "
            "look at the scan: is it one whole T1w head?"
        )
    mni_to_scanner = found.alignment.mni_to_scanner
    with step("resampling", interpolation=recipe["interpolation"], grid_affine=registration.GRID_AFFINE.tolist()):
        voxel_map = np.linalg.inv(found.affine) @ mni_to_scanner @ registration.GRID_AFFINE
        # Brain and surroundings are interpolated together and masked afterwards: the brain's rim is not darkened.
        mask = registration.resample(found.inside.astype(np.float32), voxel_map) >= 0.5
        resampled = registration.resample(
            found.corrected, voxel_map, order=registration.ORDERS[recipe["interpolation"]]
        )
        before = np.where(mask, np.maximum(resampled, 0), np.float32(0))
        if not mask.any():
            raise ScanFailure("the brain was sent outside the MNI grid; look at the scan's header and its brain mask")
    with step("intensity", method=recipe["intensity"]) as said:
        method = registry.lookup("intensity", recipe["intensity"])
        fitted = recipe["intensity"] in registry.FITTED_INTENSITIES
        if fitted:  # the volume is normalized in a stage of its own, once there are training subjects
            volume, said["landmarks"] = before, method(before, mask)
        else:
            volume = method(before, mask)
    with step("quality"):
        measured = _measure(found, before, mask)
        counts = {"before": histogram.packed(histogram.scan_histogram(before[mask]))}
        if not fitted:
            width = intensity.BIN_WIDTHS.get(recipe["intensity"])
            counts["after"] = histogram.packed(histogram.scan_histogram(volume[mask], width))
    with step("snapshot"):
        picture = snapshots.snapshot(
            found.scan.values, found.scan.voxel_size, found.mask, before, registration.template().mask
        )
    said = {"sha256": source.sha256, "size": source.size, "mask_sha256": mask_source and mask_source.sha256}
    said["voxels_sha256"] = scan.voxels_sha256()
    record = {"source": said, "steps": steps, "quality": measured, "histograms": counts}
    return volume, mask, record, picture


@dataclass(frozen=True)
class _Brain:
    """A scan's brain, corrected and laid on the template; box is the brain's bounding box in the scan."""

    scan: Scan
    mask: np.ndarray  # (X, Y, Z) bool
    inside: np.ndarray  # (x, y, z) bool, the mask in the box
    affine: np.ndarray  # (4, 4) voxel of the box to scanner mm
    log_field: np.ndarray  # (x, y, z) float32
    corrected: np.ndarray  # (x, y, z) float32, brain and surroundings
    alignment: registration.Alignment
    reason: ScanFailure | None  # why the bias field could not be found


def _laid_on_template(
    scan: Scan, provided: Scan | None, recipe: Mapping, device: str, step, steps: list[dict]
) -> _Brain:
    """The brain however the head lies: as it came, or, where that shows to be turned or is unlike the template, turned.

    ``steps`` tell what was done for the result; what led to another one is told as the time that ``turning`` took.
    Raises ScanFailure where no brain is found either way.
    """
    found, failure, turn, start = None, None, np.eye(3), None
    try:
        found = _find_brain(scan, provided, recipe, device, step, turn, start)
    except ScanFailure as reason:  # perhaps of a head that lies turned
        failure = reason
    else:
        start = found.alignment.mni_to_scanner
        turn = registration.head_orientation(found.affine, start)
    begun = time.perf_counter()
    if found is None or found.alignment.similarity < recipe["registration_least_similarity"]:
        turn, start = _upright(scan, recipe, device, found and turn) or (turn, start)
    if not np.array_equal(turn, np.eye(3)):
        # The networks were trained on upright heads: they get the head again as it lies by what was found so far.
        first = steps[1:]
        del steps[1:]
        looked = time.perf_counter() - begun
        try:
            again = _find_brain(scan, provided, recipe, device, step, turn, start)
        except ScanFailure:  # what was found before may be good enough, and if not, says more
            again = None
        said = {"array_axes": registration.axis_codes(turn)}
        for name, brain in (("similarity_before", found), ("similarity_after", again)):
            said[name] = brain and brain.alignment.similarity
        if _is_better(again, found, recipe["registration_search_below"]):
            found, dropped = again, first
        else:
            dropped, steps[1:] = steps[1:], first
        seconds = round(looked + sum(one["seconds"] for one in dropped), 3)
        steps.insert(1, {"name": "turning", "parameters": said, "seconds": seconds})
    if found is None:
        raise failure
    return found


def _is_better(again: _Brain | None, found: _Brain | None, search_below: float) -> bool:
    """Whether the brain of the turned head is taken for that of the head as it came; either may be missing."""
    if again is None or found is None:
        return again is not None
    if again.reason and not found.reason:
        return False
    # The mask of the upright head is the better one, even where the similarity is less by a little.
    return again.alignment.similarity >= min(found.alignment.similarity, search_below)


def _extract(
    scan: Scan, provided: Scan | None, recipe: Mapping, device: str, turn: np.ndarray
) -> brain_extraction.Extraction:
    """Extraction from images that were turned by ``turn``.

    They are given as if the scanner had been turned, too: some extractors go by the array, others by where the header puts it.
    """
    options = {"weights": recipe["extractor_weights"], "sha256": recipe["extractor_sha256"]}
    given = [image and image.rotated(turn.T) for image in (scan, provided)]
    return registry.lookup("brain_extractor", recipe["extractor"])(*given, device=device, options=options)


def _upright(
    scan: Scan, recipe: Mapping, device: str, supposed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The quarter turn that brings the head upright, by extracting its brain in several, and a start for align.

    For heads whose mask is so far off, by the way they lie, that nothing can be told from it. ``supposed``: the turn that it tells
    all the same, which is tried first; None where there is no mask as the head lies. None where no turn gives a brain.
    """
    most = CARDS[recipe["extractor"]].orientations
    if not most:
        return None
    first = np.eye(3) if supposed is None else supposed
    turns = [turn for turn in registration.likely_orientations(scan.values, scan.affine) if (turn != first).any()]
    turns = turns if supposed is None else [first, *turns]
    best = (-1.0, None, None)
    for turn in turns[:most]:
        turned = scan.turned(turn)
        try:
            mask = _extract(turned, None, recipe, device, turn).brain
        except ScanFailure:
            continue
        box = _bounding_box(mask)
        brain = np.where(mask[box], turned.values[box], 0)
        value, start = registration.look_upright(brain, _affine_of(turned, box))
        if value > best[0]:
            best = (value, turn, start)
        if value >= UPRIGHT:
            break
    return None if best[1] is None else best[1:]


def _find_brain(
    scan: Scan, provided: Scan | None, recipe: Mapping, device: str, step, turn: np.ndarray, start: np.ndarray | None
) -> _Brain:
    """Brain extraction, bias field and registration, each under ``step``, of the images turned by ``turn``.

    ``start`` is as for registration.align.
    """
    scan, provided = (image and image.turned(turn) for image in (scan, provided))
    with step("brain_extraction", extractor=recipe["extractor"], device=device) as said:
        mask, facts = _extract(scan, provided, recipe, device, turn)
        said |= facts | ({"sha256": recipe["extractor_sha256"]} if recipe["extractor_weights"] else {})
    with step("bias_field", spacing=recipe["bias_field_spacing"], iterations=recipe["bias_field_iterations"]):
        # All that follows happens in the brain's bounding box.
        box = _bounding_box(mask)
        inside, affine = mask[box], _affine_of(scan, box)
        reason = None
        try:
            log_field = bias_field.log_bias_field(
                scan.values[box],
                inside,
                scan.voxel_size,
                spacing=recipe["bias_field_spacing"],
                iterations=recipe["bias_field_iterations"],
            )
        except ScanFailure as failure:  # of a head that lies turned, perhaps, which is known once it is aligned
            log_field, reason = np.zeros(inside.shape, np.float32), failure
        corrected = scan.values[box] * np.exp(-log_field)
    registering = {
        "resolution": recipe["registration_resolution"],
        "iterations": recipe["registration_iterations"],
        "seed": recipe["registration_seed"],
        "search_below": recipe["registration_search_below"],
    }
    with step("registration", **registering) as said:
        alignment = registration.align(np.where(inside, corrected, 0), affine, **registering, start=start)
        said |= {
            "mni_to_scanner": alignment.mni_to_scanner.tolist(),
            "similarity": alignment.similarity,
            "start": alignment.start,
            "starts": alignment.starts,
        }
    return _Brain(scan, mask, inside, affine, log_field, corrected, alignment, reason)


def _measure(found: _Brain, values: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    scan, brain, mni_to_scanner = found.scan, found.mask, found.alignment.mni_to_scanner
    template, grid_voxel = registration.template(), registration.GRID_VOXEL_SIZE**3
    scanner_map = np.linalg.inv(scan.affine) @ mni_to_scanner @ registration.GRID_AFFINE  # grid voxel to scan voxel
    volume_ml = quality.brain_volume_ml(brain, abs(np.linalg.det(scan.affine[:3, :3])))
    determinant = quality.affine_determinant(np.linalg.inv(mni_to_scanner))
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
            "snr_grey_matter": quality.snr(grey) if grey.size > 1 else math.nan,
            "smoothness_mm": quality.smoothness_mm(found.corrected, found.inside, scan.voxel_size),
            "efc": quality.efc(scan.values),
            "rim_intensity": quality.rim_intensity(found.corrected, found.inside),
            "left_right_correlation": quality.left_right_correlation(values, mask),
            "left_right_dice": quality.dice(mask, mask[::-1]),
            "bias_log_sd": quality.bias_log_sd(found.log_field, found.inside),
            "edge_fraction": quality.edge_fraction(brain),
            "fov_coverage": quality.fov_coverage(template.mask, scanner_map, scan.values.shape),
            "registration_similarity": found.alignment.similarity,
            "head_rotation_degrees": quality.rotation_degrees(mni_to_scanner),
            "header_conflict": scan.header_conflict,
            "outside_grid_fraction": quality.outside_grid_fraction(mask, grid_voxel, volume_ml * determinant),
        }
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in measured.items()}


def _of_mask(read, *arguments):
    try:
        return read(*arguments)
    except ScanFailure as failure:
        raise type(failure)(f"the provided brain mask: {failure}") from None


def _affine_of(scan: Scan, box: tuple[slice, ...]) -> np.ndarray:
    """(4, 4) from a voxel of the box to scanner mm."""
    affine = scan.affine.copy()
    affine[:3, 3] += scan.affine[:3, :3] @ [side.start for side in box]
    return affine


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
    normalization = import_module(registry.module_of("intensity", recipe["intensity"]))
    packages = {"antspyx", "nibabel", "nilearn", "numpy", "scipy", *CARDS[recipe["extractor"]].packages}
    modules = [Path(__file__)] + [Path(module.__file__) for module in (*COMPUTING_MODULES, extractor, normalization)]
    deciding = {key: value for key, value in recipe.items() if key != "extractor_weights"}
    orientations = CARDS[recipe["extractor"]].orientations
    return {"recipe": deciding, "orientations": orientations} | derivatives.tools(modules, packages)
