"""How well intensities of one tissue agree between scanners after each normalization, on phantoms whose tissue is known.

    python benchmarks/intensity.py [--keep FOLDER] [--package]

Six persons (three controls, three cases) are seen by each of the five phantom scanners and preprocessed with default settings and
`intensity: none`. Every method is applied to the fifteen scans of the last three persons; `nyul` is fitted on the scans of the
first three, per scanner (`client`) or on those of all scanners (`shared`). White and grey matter are where the drawn head has more
than 0.9 and 0.8 of them.

- `white`, `grey`: standard deviation over the scans of the tissue's median, in per cent of the mean difference between the
  two tissues' medians. On a scale whose zero is arbitrary, as that of a z-score, a deviation over a mean would say nothing.
- `contrast`: standard deviation over the scans of the difference itself, in the same unit.
- `profiles`: mean over pairs of scanners of the share of voxels that would have to change their bin for one scanner's histogram to
  become the other's (200 bins over the range from the 0.5th to the 99.5th percentile of all; 0 equal, 1 apart).

With --package what white matter is taken for is put beside the truth, ours and that of the package intensity-normalization.
--keep holds the preprocessed scans for a second run.
"""

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from fedbrain.devices import set_threads

PEOPLE = (
    ("CN", 66.0, "F"),
    ("AD", 74.0, "M"),
    ("CN", 78.0, "M"),
    ("AD", 69.0, "F"),
    ("CN", 71.0, "F"),
    ("AD", 77.0, "M"),
)
TRAINING = 3  # the first persons; the others are measured
WHITE, GREY = 0.9, 0.8
SEED = 1


def prepare(scanner: str, number: int, folder: Path) -> dict[str, np.ndarray]:
    """A phantom's brain on the MNI grid in the scanner's units (``values``, ``mask``) and its drawn ``white`` and ``grey`` shares."""
    kept = folder / f"{scanner}-{number}.npz"
    if not kept.exists():
        import nibabel

        from fedbrain.cohorts import phantom
        from fedbrain.imaging import reading, shard
        from fedbrain.imaging.registration import GRID_AFFINE, resample

        diagnosis, age, sex = PEOPLE[number]
        row = {"subject": f"benchmark{number}", "session": "1", "diagnosis": diagnosis, "age": age, "sex": sex}
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "head.nii.gz"
            phantom.write_scan(row, {"scanner": scanner}, SEED, path)
            source = reading.read_source(path)
        values, mask, record, *_ = shard.compute_scan(source, None, shard.complete_recipe({"intensity": "none"}), "cpu")
        (step,) = (step for step in record["steps"] if step["name"] == "registration")
        to_scanner = np.array(step["parameters"]["mni_to_scanner"])
        shares = {}
        for tissue in ("white", "grey"):
            image = nibabel.as_closest_canonical(nibabel.Nifti1Image(*drawn_share(row, scanner, tissue)))
            to_voxel = np.linalg.inv(image.affine) @ to_scanner @ GRID_AFFINE
            shares[tissue] = resample(np.asarray(image.dataobj, dtype=np.float32), to_voxel)
        np.savez(kept, values=values, mask=mask, **shares)
    with np.load(kept) as scan:
        return dict(scan)


def drawn_share(row, scanner: str, tissue: str) -> tuple[np.ndarray, np.ndarray]:
    """The share of a tissue in each voxel of the scan, as the scanner would see it without contrast, shading and noise; and the affine."""
    from fedbrain.cohorts import phantom
    from fedbrain.cohorts import phantom_anatomy as anatomy
    from fedbrain.cohorts.phantom_scanner import SCANNERS, acquire

    person, change = phantom._person_and_change(row, phantom.OPTIONS, SEED)
    pull, whole = anatomy.atrophy_pull(change), 10_000.0

    def look(points):
        seen = anatomy.look(person, change, pull, points)
        return getattr(seen, tissue), seen.brain

    plain = {"gamma": 1.0, "grey_pull": 0.0, "fat": 1.0, "shading": 0.0, "coil": (0.0,) * 3, "blur": 0.0, "noise": 0.0}
    rng = phantom._stream(SEED, row["subject"], f"scanner {row['session']}")  # the same position of the patient
    stored, affine, _ = acquire(replace(SCANNERS[scanner], **plain, scale=whole), rng, look)
    return stored.astype(np.float32) / np.float32(whole), affine


def methods(scans: dict) -> dict:
    """Name to a function of scanner, values and mask; nyul's fitted on the training persons."""
    from fedbrain import registry
    from fedbrain.imaging import nyul

    found = {}
    for name in registry.names("intensity"):
        if name not in registry.FITTED_INTENSITIES:
            method = registry.lookup("intensity", name)
            found[name] = lambda scanner, values, mask, method=method: method(values, mask)
    marks = {key: nyul.landmarks(scan["values"], scan["mask"]) for key, scan in scans.items()}
    scanners = dict.fromkeys(scanner for scanner, _ in scans)
    own = {scanner: nyul.mean_landmarks([marks[scanner, number] for number in range(TRAINING)]) for scanner in scanners}
    shared = nyul.shared_scale(list(own.values()), [TRAINING] * len(own))

    def standardize(scales, scanner, values, mask):
        return nyul.normalized(values, mask, nyul.landmarks(values, mask), scales[scanner])

    found["nyul, client"] = partial(standardize, own)
    found["nyul, shared"] = partial(standardize, dict.fromkeys(scanners, shared))
    return found


def agreement(scans: dict, method) -> dict[str, float]:
    """The columns of the table for one method over the scans that were not fitted on."""
    measured = {key: scan for key, scan in scans.items() if key[1] >= TRAINING}
    white, grey, brains, seconds = [], [], {}, 0.0
    for (scanner, _), scan in measured.items():
        start = time.process_time()
        volume = method(scanner, scan["values"], scan["mask"])
        seconds += time.process_time() - start
        white.append(np.median(volume[scan["mask"] & (scan["white"] > WHITE)]))
        grey.append(np.median(volume[scan["mask"] & (scan["grey"] > GREY)]))
        brains.setdefault(scanner, []).append(volume[scan["mask"]])
    brains = {scanner: np.concatenate(parts) for scanner, parts in brains.items()}
    edges = np.linspace(*np.percentile(np.concatenate(list(brains.values())), (0.5, 99.5)), 201)
    shares = [np.histogram(np.clip(brain, edges[0], edges[-1]), edges)[0] / brain.size for brain in brains.values()]
    unit = np.mean(white) - np.mean(grey)
    return {
        "white": np.std(white, ddof=1) / unit,
        "grey": np.std(grey, ddof=1) / unit,
        "contrast": np.std(np.subtract(white, grey), ddof=1) / unit,
        "profiles": np.mean([np.abs(a - b).sum() / 2 for a, b in itertools.combinations(shares, 2)]),
        "seconds": seconds / len(measured),
    }


def against_package(scans: dict) -> None:
    """What is taken for white matter, as a share of the true median, one scan of each scanner."""
    from intensity_normalization.adapters.images import NumpyImageAdapter
    from intensity_normalization.normalizers.individual.fcm import FCMNormalizer
    from intensity_normalization.normalizers.individual.kde import KDENormalizer
    from intensity_normalization.normalizers.individual.whitestripe import WhiteStripeNormalizer

    from fedbrain.imaging import intensity

    print(f"\n{'scanner':<10}{'true':>8}{'peak':>8}{'kde*':>8}{'stripe*':>9}{'fcm':>8}{'fcm*':>8}   (* the package)")
    for (scanner, number), scan in scans.items():
        if number != TRAINING:
            continue
        values, mask = scan["values"], scan["mask"]
        true = np.median(values[mask & (scan["white"] > WHITE)])
        image, inside = NumpyImageAdapter(values), NumpyImageAdapter(mask)
        kde, stripe, fuzzy = KDENormalizer(), WhiteStripeNormalizer(), FCMNormalizer()
        for other in (kde, stripe, fuzzy):
            other.fit(image, inside)
        brightest = values.max()
        found = [
            intensity.white_matter_peak(values[mask]),
            kde.tissue_mode,
            stripe.mean,
            brightest / intensity.fcm(values, mask).max(),
            brightest / fuzzy.transform(image, inside).get_data().max(),
        ]
        peak, mode, mean, ours, theirs = (value / true for value in found)
        print(f"{scanner:<10}{true:>8.0f}{peak:>8.3f}{mode:>8.3f}{mean:>9.3f}{ours:>8.3f}{theirs:>8.3f}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--keep", type=Path)
    arguments.add_argument("--package", action="store_true")
    arguments = arguments.parse_args()
    set_threads(1)  # before antspyx is imported

    from fedbrain.cohorts.phantom_scanner import SCANNERS

    with tempfile.TemporaryDirectory() as place:
        folder = arguments.keep or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        scans = {(s, n): prepare(s, n, folder) for s in SCANNERS for n in range(len(PEOPLE))}
    print(f"{'method':<16}{'white':>8}{'grey':>8}{'contrast':>10}{'profiles':>10}{'seconds':>9}")
    for name, method in methods(scans).items():
        row = agreement(scans, method)
        print(
            f"{name:<16}{row['white']:>8.1%}{row['grey']:>8.1%}{row['contrast']:>10.1%}{row['profiles']:>10.3f}{row['seconds']:>9.2f}",
            flush=True,
        )
    if arguments.package:
        against_package(scans)


if __name__ == "__main__":
    main()
