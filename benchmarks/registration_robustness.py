"""Does the registration go wrong without saying so? Heads are perturbed in known ways and preprocessed.

    python benchmarks/registration_robustness.py --folder HEADS --heads ixi-example1 phantom --log robustness.jsonl
    python benchmarks/registration_robustness.py --log robustness.jsonl --table

Each case tells how the perturbed scan lies to the original, so the affine that must be found is known: the one found
for the original, composed with the perturbation. The error is the mean distance in mm over the template's brain. Beside
it stands the same pipeline with ANTs' one start alone and nothing refused; it is run where the pipeline searched,
turned or failed, and elsewhere its result is the same. "phantom" among the heads is drawn. Cases in the log are not
computed again.
"""

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from fedbrain.devices import set_threads

WRONG = 8.0  # mm
FLAGS = {  # what a reader would look at: column, limit, whether above it is bad
    "registration_similarity": (0.08, False),
    "mask_dice": (0.93, False),
    "edge_fraction": (0.001, True),
    "fov_coverage": (0.98, False),
    "head_rotation_degrees": (45, True),
}


def turned(degrees, about):
    """A rotation in mm about a point."""
    from fedbrain.imaging.registration import _rotation

    map_ = np.eye(4)
    map_[:3, :3] = _rotation(degrees)
    map_[:3, 3] = about - map_[:3, :3] @ about
    return map_


def placed(scan, moved=None, *, shape=None, affine=None):
    """The head resampled, its mm sent through ``moved``, on a grid that is the scan's own where none is given."""
    moved = np.eye(4) if moved is None else moved
    shape, affine = shape or scan.values.shape, scan.affine if affine is None else affine
    voxel_map = np.linalg.inv(scan.affine) @ np.linalg.inv(moved) @ affine
    values = ndimage.affine_transform(scan.values, voxel_map, output_shape=shape, order=1, output=np.float32)
    return values, affine, moved


def centre(scan):
    return scan.affine[:3, :3] @ ((np.array(scan.values.shape) - 1) / 2) + scan.affine[:3, 3]


def padded_grid(scan, extent):
    """Shape and affine of a grid with the scan's voxels that spans ``extent`` mm about the scan's centre."""
    size = scan.voxel_size
    shape = tuple(np.ceil(np.array(extent) / size).astype(int))
    affine = scan.affine.copy()
    affine[:3, 3] = centre(scan) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return shape, affine


def tilted(*degrees):
    def perturb(scan, brain):
        extent = np.array(scan.values.shape) * scan.voxel_size + 60
        shape, affine = padded_grid(scan, extent)
        return placed(scan, turned(degrees, centre(scan)), shape=shape, affine=affine)

    return perturb


def header(map_of):
    """The voxels stay, the header's affine changes."""

    def perturb(scan, brain):
        change = map_of(scan)
        return scan.values, change @ scan.affine, change

    return perturb


def wrong_axes(codes):
    """The voxels are stored along other axes than the header says; the handedness stays."""

    def perturb(scan, brain):
        turn = nibabel.orientations.axcodes2ornt(codes)
        values = nibabel.apply_orientation(scan.values, turn)
        true = scan.affine @ nibabel.orientations.inv_ornt_aff(turn, scan.values.shape)
        size = np.linalg.norm(true[:3, :3], axis=0)
        claimed = np.diag([*size, 1.0])
        claimed[:3, 3] = -size * (np.array(values.shape) - 1) / 2
        return values, claimed, claimed @ np.linalg.inv(true)

    return perturb


def stored(codes):
    """Other axes, and the header says so."""

    def perturb(scan, brain):
        turn = nibabel.orientations.axcodes2ornt(codes)
        values = nibabel.apply_orientation(scan.values, turn)
        return values, scan.affine @ nibabel.orientations.inv_ornt_aff(turn, scan.values.shape), np.eye(4)

    return perturb


def thick(*millimetres):
    def perturb(scan, brain):
        factor = np.maximum(1, np.rint(np.array(millimetres) / scan.voxel_size).astype(int))
        shape = np.array(scan.values.shape) // factor
        cut = scan.values[tuple(slice(0, n * f) for n, f in zip(shape, factor))]
        blocks = cut.reshape(*(n for pair in zip(shape, factor) for n in pair))
        scaling = np.diag([*factor.astype(float), 1.0])
        scaling[:3, 3] = (factor - 1) / 2
        return blocks.mean(axis=(1, 3, 5)), scan.affine @ scaling, np.eye(4)

    return perturb


def cropped(*margins):
    """To the brain's box; ``margins`` in mm to the left, right, back, front, bottom, top; negative cuts the brain."""

    def perturb(scan, brain):
        places = np.argwhere(brain)
        margin = np.array(margins).reshape(3, 2) / scan.voxel_size[:, None]
        low = np.maximum(0, np.rint(places.min(0) - margin[:, 0]).astype(int))
        high = np.minimum(scan.values.shape, np.rint(places.max(0) + 1 + margin[:, 1]).astype(int))
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        return scan.values[tuple(slice(a, b) for a, b in zip(low, high))], affine, np.eye(4)

    return perturb


def roomy(extent, shift=(0, 0, 0), noise=False, shoulders=False):
    """A wide field of view about a head that is moved in it."""

    def perturb(scan, brain):
        shape, affine = padded_grid(scan, extent)
        moved = np.eye(4)
        moved[:3, 3] = shift
        values, affine, moved = placed(scan, moved, shape=shape, affine=affine)
        bright = float(np.median(scan.values[brain]))
        if shoulders:
            mm = np.moveaxis(np.indices(shape, dtype=np.float32), 0, -1) @ affine[:3, :3].T.astype(np.float32)
            mm += affine[:3, 3].astype(np.float32)
            below = brain_bottom(scan, brain) + np.array(shift)
            x, y, z = np.moveaxis(mm - below.astype(np.float32), -1, 0)
            neck = (x**2 / 60**2 + y**2 / 65**2 < 1) & (z < -25) & (z > -110)
            trunk = (x**2 / 190**2 + y**2 / 100**2 < 1) & (z <= -110)
            tissue = (neck | trunk) & (values < 0.2 * bright)
            values[tissue] = bright * (0.8 + 0.2 * np.sin(x[tissue] / 9) * np.sin(z[tissue] / 13))
        if noise:
            values = np.abs(values + np.random.default_rng(0).normal(0, 0.08 * bright, shape).astype(np.float32))
        return values, affine, moved

    return perturb


def brain_bottom(scan, brain):
    places = np.argwhere(brain)
    middle = places.mean(0)
    middle[2] = places[:, 2].min()
    return scan.affine[:3, :3] @ middle + scan.affine[:3, 3]


def shifted(*millimetres):
    def map_of(scan):
        map_ = np.eye(4)
        map_[:3, 3] = millimetres
        return map_

    return map_of


def sheared(scan):
    map_ = np.eye(4)
    map_[0, 1] = 0.1
    return map_


def oblique_grid(scan, brain):
    """The grid is tilted and the head is not, and the header says so."""
    shape, affine = padded_grid(scan, np.array(scan.values.shape) * scan.voxel_size + 60)
    return placed(scan, shape=shape, affine=turned((20, -15, 25), centre(scan)) @ affine)


def stripped(scan, brain):
    return np.where(brain, scan.values, 0), scan.affine, np.eye(4)


def no_head(kind):
    def perturb(scan, brain):
        place = np.indices(scan.values.shape, dtype=np.float32) - (np.array(scan.values.shape)[:, None, None, None] / 2)
        radius = np.sqrt(((place * scan.voxel_size[:, None, None, None]) ** 2).sum(0))
        noise = np.random.default_rng(0).normal(0, 1, scan.values.shape)
        values = 100 + 30 * noise if kind == "noise" else np.where(radius < 75, 100.0, 5.0) + 5 * noise
        return values, scan.affine, None

    return perturb


CASES = {
    "none": header(lambda scan: np.eye(4)),
    "stored PSR, header right": stored("PSR"),
    "stored LIA, header right": stored("LIA"),
    "header 90 about x": wrong_axes("RSP"),
    "header 90 about y": wrong_axes("IAR"),
    "header 90 about z": wrong_axes("ALS"),
    "header 180 about x": wrong_axes("RPI"),
    "header 180 about y": wrong_axes("LAI"),
    "header 180 about z": wrong_axes("LPS"),
    "header cyclic": wrong_axes("ASR"),
    "header 45 about x": header(lambda scan: turned((45, 0, 0), centre(scan))),
    "header 45 about z": header(lambda scan: turned((0, 0, 45), centre(scan))),
    "tilted 30 about x": tilted(30, 0, 0),
    "tilted -30 about x": tilted(-30, 0, 0),
    "tilted 30 about y": tilted(0, 30, 0),
    "tilted 30 about z": tilted(0, 0, 30),
    "tilted 30, 30, 30": tilted(30, 30, 30),
    "oblique grid": oblique_grid,
    "slices of 6 mm, x": thick(6, 1, 1),
    "slices of 6 mm, y": thick(1, 6, 1),
    "slices of 6 mm, z": thick(1, 1, 6),
    "voxels of 4 mm": thick(4, 4, 4),
    "cropped to the brain": cropped(2, 2, 2, 2, 2, 2),
    "top cut by 20 mm": cropped(50, 50, 50, 50, 50, -20),
    "top cut by 40 mm": cropped(50, 50, 50, 50, 50, -40),
    "bottom cut by 40 mm": cropped(50, 50, 50, 50, -40, 50),
    "left half": cropped(50, -70, 50, 50, 50, 50),
    "512 mm, zeros": roomy((512, 512, 512)),
    "400 mm, noise": roomy((400, 400, 400), noise=True),
    "neck and shoulders": roomy((400, 300, 480), (0, 0, 80), shoulders=True),
    "60 mm to the left": roomy((360, 300, 300), (-60, 0, 0)),
    "header's origin 1 m away": header(shifted(1000, -1000, 500)),
    "header sheared": header(sheared),
    "header says 1.25 x in z": header(lambda scan: np.diag([1, 1, 1.25, 1])),
    "stripped": stripped,
    "no head: noise": no_head("noise"),
    "no head: ball": no_head("ball"),
}


def source_of(values, affine):
    from fedbrain.imaging.reading import Source

    top = float(np.abs(values).max())
    image = nibabel.Nifti1Image(np.rint(values * (30000 / top)).astype(np.int16), affine)
    image.set_sform(affine, code=1)
    image.header["qform_code"] = 0
    content = image.to_bytes()
    return Source(Path("memory"), content, hashlib.sha256(content).hexdigest(), len(content), 0)


def attempt(source, **knobs):
    """The affine found (None where the scan fails), what is known about it, and CPU seconds."""
    from fedbrain.imaging import shard
    from fedbrain.imaging.reading import ScanFailure

    start = time.process_time()
    try:
        _, _, record, *_ = shard.compute_scan(source, None, shard.complete_recipe(knobs), "cpu")
    except ScanFailure as failure:
        return None, {"failed": str(failure), "seconds": time.process_time() - start}
    steps = {step["name"]: step["parameters"] for step in record["steps"]}
    known = record["quality"] | {key: steps["registration"][key] for key in ("start", "starts")}
    known |= {"turning": steps.get("turning"), "seconds": time.process_time() - start}
    return np.array(steps["registration"]["mni_to_scanner"]), known


def distance(found, true):
    """Mean over the template's brain, mm."""
    from fedbrain.imaging.registration import GRID_AFFINE, template

    places = nibabel.affines.apply_affine(GRID_AFFINE, np.argwhere(template().mask)[::50])
    apart = nibabel.affines.apply_affine(found, places) - nibabel.affines.apply_affine(true, places)
    return float(np.linalg.norm(apart, axis=1).mean())


def head_of(name, folder, scratch):
    from fedbrain.imaging import reading

    path = folder and folder / f"{name}_T1w.nii.gz"
    if name == "phantom":
        from preprocessing import phantom

        path = phantom(scratch)
    return reading.decode(reading.read_source(path))


def run(heads, cases, folder, log):
    from fedbrain.imaging.extractors.deepbet import deepbet

    done = {}
    if log.exists():
        done = {(row["head"], row["case"]): row for row in map(json.loads, log.read_text().splitlines())}
    for name in heads:
        with tempfile.TemporaryDirectory() as scratch:
            scan = head_of(name, folder, Path(scratch))
        brain = deepbet(scan, None).brain
        for case in dict.fromkeys(["none", *cases]):
            if (name, case) in done:
                continue
            values, affine, moved = CASES[case](scan, brain)
            source = source_of(values, affine)
            found, known = attempt(source)
            row = {"head": name, "case": case, "found": None if found is None else found.tolist()} | known
            if case != "none" and moved is not None:
                true = moved @ np.array(done[name, "none"]["found"])
                row["mm"] = found is not None and distance(found, true)
                if found is None or row["starts"] > 1 or row["turning"]:
                    one, known = attempt(source, registration_search_below=0, registration_least_similarity=0)
                    row["one_start"] = known | {"mm": one is not None and distance(one, true)}
            done[name, case] = row
            with log.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(f"{name}, {case}: {cell(row)}", flush=True)


def flags(row):
    return [name for name, (limit, above) in FLAGS.items() if name in row and (row[name] > limit) == above]


def cell(row, mark=True):
    if "failed" in row:
        return "failed"
    if row.get("mm") is None or row["mm"] is False:
        return "ok, no truth"
    return f"{row['mm']:.1f}" + ("!" if mark and flags(row) else "")


def table(log):
    """Each case's error in mm for each head, failed or flagged (!), beside one start; then what went wrong silently."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    heads = list(dict.fromkeys(row["head"] for row in rows))
    by_place = {(row["case"], row["head"]): row for row in rows}
    print("| case | " + " | ".join(heads) + " | " + " | ".join(f"{head}, one start" for head in heads) + " |")
    print("|" + "---|" * (1 + 2 * len(heads)))
    for case in CASES:
        here = [by_place.get((case, head)) for head in heads]
        if case == "none" or not any(here):
            continue
        alone = [row and (row.get("one_start") or row) for row in here]
        cells = [row and cell(row) or "" for row in here] + [row and cell(row, mark=False) or "" for row in alone]
        print(f"| {case} | " + " | ".join(cells) + " |")
    judged = [row for row in rows if row["case"] != "none"]
    wrong = [row for row in judged if "failed" not in row and (row.get("mm") is None or row["mm"] > WRONG)]
    silent = [row for row in wrong if not flags(row)]
    failed = [row for row in judged if "failed" in row]
    flagged = [row for row in judged if flags(row)]
    print(
        f"{len(judged)} scans: {len(failed)} failed, {len(flagged)} flagged, {len(wrong)} wrong by over {WRONG:g} mm,"
    )
    print(f"of which {len(silent)} neither failed nor flagged: {[(row['case'], row['head']) for row in silent]}")
    for name, pick in (("right", min), ("wrong", max)):
        seen = [
            one["registration_similarity"]
            for row in judged
            for one in (row, row.get("one_start") or {})
            if "registration_similarity" in one
            and isinstance(one.get("mm"), float)
            and (one["mm"] > WRONG) == (name == "wrong")
        ]
        if seen:
            print(f"similarity where {name}: {len(seen)} results, the {pick.__name__}imum {pick(seen):.3f}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--heads", nargs="+", default=["phantom"])
    arguments.add_argument("--cases", nargs="+", default=list(CASES))
    arguments.add_argument("--log", type=Path, default=Path("registration_robustness.jsonl"))
    arguments.add_argument("--table", action="store_true", help="print what the log holds, and compute nothing")
    arguments = arguments.parse_args()
    if arguments.table:
        table(arguments.log)
        return
    set_threads(1)  # before antspyx is imported
    run(arguments.heads, arguments.cases, arguments.folder, arguments.log)


if __name__ == "__main__":
    main()
