"""Brain extractors beside each other: Dice, lost tissue and CPU seconds, on heads with more and more atrophy.

    python benchmarks/brain_extraction.py                                       # phantoms, whose brains are known
    python benchmarks/brain_extraction.py --folder HEADS --masks BRAIN_MASKS    # NAME_T1w.nii.gz, NAME_brainmask.nii.gz
    python benchmarks/brain_extraction.py --folder HEADS --masks BRAIN_MASKS --atrophy 0 1.5 3 4.5
    python benchmarks/brain_extraction.py ... --extractors deepbet synthstrip --weights synthstrip=FILE

A phantom's grade is the factor of disease in its drawing. It is drawn from the very template that the extractor
``template`` uses, so its Dice there is flattered; look at how it changes.

Simulated atrophy (``--atrophy``, mm) pulls a real brain's surface away from its mask's border by so much, and the walls of
ventricles and deep cisterns outwards by twice as much, smoothly within 25 mm, and fills the room with noise as bright as the ventricles.
It is no disease. The mask, which holds the fluid about the brain, stays; ``lost`` is the share of bright voxels (tissue) in it that
an extractor leaves out.

Seconds are CPU seconds of this process with one thread, networks loaded before; the ratio is to the first extractor's.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage

from fedbrain.devices import set_threads

GRADES = (0.0, 1.0, 2.0, 4.0)
DEPTH = 25.0  # mm from a moved border within which tissue gives way
DEEP = 30.0  # mm from the mask's border; dark places beyond are ventricles and deep cisterns
TISSUE = 0.5  # of white matter's intensity


def phantoms(subjects: int):
    """Pairs of a label, a scan, and the true brain (X, Y, Z) bool: the same persons with more and more disease."""
    import nibabel

    from fedbrain.cohorts.phantom import draw_scan, true_volumes
    from fedbrain.imaging import reading

    for subject in range(1, subjects + 1):
        for grade in GRADES:
            row = {"subject": f"b{subject}", "session": "1", "diagnosis": "AD", "age": 75.0, "sex": "FM"[subject % 2]}
            options = {"effect": grade, "scanner": "crisp"}
            image, truth = draw_scan(row, options, 1)
            volumes = true_volumes(row, options, 1)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "mask.nii.gz"
                nibabel.save(nibabel.Nifti1Image(truth.astype(np.uint8), image.affine), path)
                brain = reading.decode(reading.read_source(path)).values > 0.5
                path = Path(folder) / "head.nii.gz"
                nibabel.save(image, path)
                scan = reading.decode(reading.read_source(path))
            label = f"{grade:g} (ventricles {volumes['ventricles']:.0f} ml)"
            yield f"phantom {subject}", label, scan, brain


def heads(folder: Path, masks: Path, atrophy: list[float]):
    """The same for real heads with reference masks, and with atrophy simulated in them."""
    from fedbrain.imaging import reading

    for path in sorted(masks.glob("*_brainmask.nii.gz")):
        name = path.name.removesuffix("_brainmask.nii.gz")
        scan = reading.decode(reading.read_source(folder / f"{name}_T1w.nii.gz"))
        brain = reading.decode(reading.read_source(path)).values > 0.5
        for millimetres in atrophy:
            yield name, f"{millimetres:g} mm", shrunk(scan, brain, millimetres) if millimetres else scan, brain


def white_matter(scan, brain: np.ndarray) -> float:
    """Intensity of white matter, roughly."""
    return float(np.percentile(scan.values[brain], 75))


def shrunk(scan, brain: np.ndarray, millimetres: float):
    """The scan with atrophy simulated within ``brain``; see above."""
    from fedbrain.imaging.reading import Scan

    size = scan.voxel_size
    box = tuple(slice(min(filled), max(filled) + 1) for filled in np.nonzero(brain))
    values, inside = scan.values[box], np.pad(brain[box], 1)
    depth = ndimage.distance_transform_edt(inside, sampling=size)[1:-1, 1:-1, 1:-1].astype(np.float32)  # mm
    depth, inside = ndimage.gaussian_filter(depth, 1.5 / size), brain[box]
    dark = ndimage.gaussian_filter(values, 0.7) < TISSUE * white_matter(scan, brain)
    labels, _ = ndimage.label(ndimage.binary_opening(dark & (depth > DEEP)))
    sizes = np.bincount(labels.ravel())
    ventricles = (sizes * np.prod(size) > 300)[labels] & (labels > 0)  # 0.3 ml or more
    away = ndimage.distance_transform_edt(~ventricles, sampling=size).astype(np.float32)  # mm
    away = ndimage.gaussian_filter(away, 1.0 / size)

    places = np.array(np.nonzero(inside), np.float32)  # (3, N), where the tissue of a voxel comes from
    opened = np.zeros(places.shape[1], np.float32)
    for distance, way in ((depth, millimetres), (away, 2 * millimetres)):
        slopes = np.stack([slope[inside] for slope in np.gradient(distance, *size)])
        slopes /= np.maximum(np.linalg.norm(slopes, axis=0), 0.3)
        here = distance[inside]
        origin = DEPTH * np.maximum(here - way, 0) / (DEPTH - way)  # what is deeper than DEPTH stays
        places += np.where(here < DEPTH, origin - here, 0) * slopes / size[:, None]
        opened = np.maximum(opened, np.clip(way - here, 0, 1))
    tissue = ndimage.map_coordinates(values, places, order=1)
    fluid = values[ventricles]
    noise = np.random.default_rng(0).normal(np.median(fluid), 0.5 * np.std(fluid), len(opened))
    result = scan.values.copy()
    result[box][inside] = (1 - opened) * tissue + opened * noise
    return Scan(result, scan.affine)


def compare(cases, extractors: dict) -> None:
    """One row per case and extractor, then the means per grade."""
    from fedbrain import registry
    from fedbrain.imaging.quality import dice
    from fedbrain.imaging.reading import ScanFailure

    rows, warmed = [], False
    print(f"{'head':<18}{'atrophy':<24}{'extractor':<12}{'Dice':>7}{'lost':>8}{'seconds':>9}{'ratio':>7}  facts")
    for name, grade, scan, brain in cases:
        tissue = brain & (scan.values > TISSUE * white_matter(scan, brain))
        first = None
        for extractor, options in extractors.items():
            extract = registry.lookup("brain_extractor", extractor)
            try:
                if not warmed:
                    extract(scan, None, options=options)
                start = time.process_time()
                found, facts = extract(scan, None, options=options)
            except ScanFailure as failure:
                print(f"{name:<18}{grade:<24}{extractor:<12}  failed: {failure}", flush=True)
                continue
            seconds = time.process_time() - start
            first = first or seconds
            agreement, lost = dice(found, brain), float((tissue & ~found).sum() / tissue.sum())
            rows.append((grade.split(" (")[0], extractor, agreement, lost, seconds))
            print(
                f"{name:<18}{grade:<24}{extractor:<12}{agreement:>7.3f}{lost:>8.2%}{seconds:>9.1f}"
                f"{seconds / first:>7.1f}  {facts}",
                flush=True,
            )
        warmed = True
    print(f"\n{'atrophy':<12}{'extractor':<12}{'heads':>6}{'Dice':>8}{'least':>8}{'lost':>8}{'seconds':>9}")
    for grade, extractor in dict.fromkeys((row[0], row[1]) for row in rows):
        mine = np.array([row[2:] for row in rows if row[:2] == (grade, extractor)])
        print(
            f"{grade:<12}{extractor:<12}{len(mine):>6}{mine[:, 0].mean():>8.3f}{mine[:, 0].min():>8.3f}"
            f"{mine[:, 1].mean():>8.2%}{mine[:, 2].mean():>9.1f}"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--masks", type=Path)
    arguments.add_argument("--atrophy", type=float, nargs="+", default=[0.0], metavar="MM")
    arguments.add_argument("--extractors", nargs="+", default=["deepbet", "template"])
    arguments.add_argument("--weights", nargs="*", default=[], metavar="EXTRACTOR=FILE[,SHA256]")
    arguments.add_argument("--subjects", type=int, default=2, help="phantoms per grade")
    arguments = arguments.parse_args()
    set_threads(1)  # before antspyx is imported below

    from fedbrain.imaging.shard import complete_recipe

    given = dict(item.split("=", 1) for item in arguments.weights)
    extractors = {}
    for name in arguments.extractors:
        path, _, sha256 = given.get(name, "").partition(",")
        recipe = complete_recipe(
            {"extractor": name, "extractor_weights": path or None, "extractor_sha256": sha256 or None}
        )
        extractors[name] = {"weights": recipe["extractor_weights"], "sha256": recipe["extractor_sha256"]}
    cases = phantoms(arguments.subjects)
    if arguments.folder:
        cases = heads(arguments.folder, arguments.masks, arguments.atrophy)
    compare(cases, extractors)


if __name__ == "__main__":
    main()
