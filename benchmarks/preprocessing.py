"""Preprocessing of one head: each step's share, and the whole beside the usual recipe, in one run.

    python benchmarks/preprocessing.py [HEAD.nii.gz] [--threads 1]
    python benchmarks/preprocessing.py --folder HEADS [--masks BRAIN_MASKS]

Without a head a phantom is drawn. With a folder of heads (NAME_T1w.nii.gz) each is preprocessed, without the usual
recipe, and its brain is compared on the MNI grid with a reference mask (NAME_brainmask.nii.gz) where there is one.
The usual recipe is N4 on the whole volume with ANTs' default settings, the affine of antsRegistrationSyNQuick to the
template at 1 mm, and one resampling; it is given the brain mask for nothing, so the ratio counts brain extraction on
our side only. Seconds are CPU seconds of this process, after the networks and the template are loaded.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from fedbrain.devices import set_threads


def phantom(folder: Path) -> Path:
    """One phantom head with default options."""
    from fedbrain.cohorts.phantom import plan_cohort, write_scan

    options = {"controls": 1, "cases": 0}
    path = folder / "phantom.nii.gz"
    write_scan(plan_cohort("benchmark", options, 1).iloc[0].to_dict(), options, 1, path)
    return path


def usual_recipe(scan, brain: np.ndarray) -> dict:
    """CPU seconds of each step and the quality of the result."""
    import ants
    from nilearn.datasets import load_mni152_template

    from fedbrain.imaging import quality
    from fedbrain.imaging.registration import GRID_AFFINE, ants_image, template

    reference = load_mni152_template(resolution=1)
    fixed = ants_image(reference.get_fdata(dtype=np.float32), reference.affine)
    grid = ants_image(template().values, GRID_AFFINE)
    head, mask = ants_image(scan.values, scan.affine), ants_image(brain.astype(np.float32), scan.affine)
    seconds, start = {}, time.process_time()

    def lap(name):
        nonlocal start
        seconds[name] = time.process_time() - start
        start = time.process_time()

    corrected = ants.n4_bias_field_correction(head)
    lap("bias_field")
    found = ants.registration(fixed, corrected * mask, type_of_transform="antsRegistrationSyNQuick[a]")["fwdtransforms"]
    lap("registration")
    values = ants.apply_transforms(grid, corrected * mask, found).numpy()
    inside = ants.apply_transforms(grid, mask, found).numpy() >= 0.5
    lap("resampling")
    return {
        "seconds": seconds,
        "mask_dice": quality.dice(inside, template().mask),
        "template_correlation": quality.template_correlation(values, template().values, inside | template().mask),
    }


def all_heads(folder: Path, masks: Path | None) -> None:
    """One row per head of a folder."""
    from fedbrain.imaging import quality, reading, shard
    from fedbrain.imaging.registration import GRID_AFFINE, resample

    recipe = shard.complete_recipe({})
    print(f"{'head':<20}{'seconds':>9}{'template Dice':>15}{'correlation':>13}{'similarity':>12}{'reference Dice':>16}")
    for path in sorted(folder.glob("*_T1w.nii.gz")):
        name, start = path.name.removesuffix("_T1w.nii.gz"), time.process_time()
        try:
            _, brain, record, _ = shard.compute_scan(reading.read_source(path), None, recipe, "cpu")
        except reading.ScanFailure as failure:
            print(f"{name:<20}  failed: {failure}")
            continue
        seconds, measured = time.process_time() - start, record["quality"]
        line = f"{name:<20}{seconds:>9.1f}{measured['mask_dice']:>15.3f}{measured['template_correlation']:>13.3f}"
        line += f"{measured['registration_similarity']:>12.3f}"
        reference_path = masks and masks / f"{name}_brainmask.nii.gz"
        if reference_path and reference_path.exists():
            reference = reading.decode(reading.read_source(reference_path))
            to_scanner = np.array(
                next(s for s in record["steps"] if s["name"] == "registration")["parameters"]["mni_to_scanner"]
            )
            expected = resample(reference.values, np.linalg.inv(reference.affine) @ to_scanner @ GRID_AFFINE) >= 0.5
            line += f"{quality.dice(brain, expected):>16.3f}"
        print(line, flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("head", nargs="?", type=Path)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--folder", type=Path)
    arguments.add_argument("--masks", type=Path)
    arguments = arguments.parse_args()
    set_threads(arguments.threads)  # before antspyx is imported below
    if arguments.folder:
        all_heads(arguments.folder, arguments.masks)
        return

    from fedbrain.imaging import reading, registration, shard
    from fedbrain.imaging.extractors.deepbet import deepbet

    with tempfile.TemporaryDirectory() as folder:
        source = reading.read_source(arguments.head or phantom(Path(folder)))
    scan = reading.decode(source)
    recipe = shard.complete_recipe({})
    brain = deepbet(scan, None).brain
    registration.template()
    registration._fixed_image(recipe["registration_resolution"])

    start, wall = time.process_time(), time.perf_counter()
    _, _, record, _ = shard.compute_scan(source, None, recipe, "cpu")
    total, wall = time.process_time() - start, time.perf_counter() - wall
    usual = usual_recipe(scan, brain)

    print(
        f"{' x '.join(str(n) for n in scan.values.shape)} voxels of {' x '.join(f'{s:.2f}' for s in scan.voxel_size)} mm"
    )
    print(f"{'step':<18}{'share':>8}{'seconds':>10}{'usual recipe':>14}")
    for step in record["steps"]:
        share = (
            step["seconds"] / wall
        )  # steps are timed by the wall clock; on a busy machine only their shares mean something
        other = usual["seconds"].get(step["name"])
        print(f"{step['name']:<18}{share:>8.1%}{share * total:>10.2f}" + (f"{other:>14.2f}" if other else ""))
    usual_total = sum(usual["seconds"].values())
    print(f"{'all':<18}{'':>8}{total:>10.2f}{usual_total:>14.2f}   ratio {usual_total / total:.1f}")
    for name in ("mask_dice", "template_correlation"):
        print(f"{name:<26}{record['quality'][name]:>10.3f}{usual[name]:>14.3f}")
    print(json.dumps({"ratio": round(usual_total / total, 2), "seconds": round(total, 2)}))


if __name__ == "__main__":
    main()
