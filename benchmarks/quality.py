"""Do the quality metrics notice what is wrong? Real heads, spoiled in known ways, each among sound scans of its cohort.

    python benchmarks/quality.py HEADS [--pattern "ds000011-*"] [--spoil 2] [--table OUT.tsv]
    python benchmarks/quality.py --chance

HEADS holds NAME_T1w.nii.gz of one scanner. Every head is preprocessed as it is; the first ``--spoil`` of them are preprocessed
again for every fault. The fault is put into the head, the brain mask or the alignment, and the scan takes its sound version's
place in the cohort. A fault is noticed by the metrics whose robust z exceeds 3.5 in their bad direction. The brain
mask is that of the sound head, except where the mask is the fault. Printed: the sound cohort, the fault by metric,
the seconds of the metrics and the snapshot. With ``--chance``: how many sound scans are flagged, in cohorts of so many scans
whose metrics are all Gaussian and independent.
"""

import argparse
import dataclasses
import fnmatch
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from scipy import ndimage

from fedbrain.devices import set_threads

OUTLIER_Z = 3.5


def noise(head, brain, size):
    """Gaussian noise with a deviation of 12 % of the brain's 95th percentile."""
    spread = 0.12 * np.percentile(head[brain], 95)
    return np.abs(head + np.random.default_rng(1).normal(0, spread, head.shape)), brain


def coil(head, brain, size):
    """A coil that loses two thirds of its signal from the front to the back."""
    falling = np.linspace(0, -1.1, head.shape[1])[None, :, None]
    return head * np.exp(falling), brain


def blur(head, brain, size):
    """A Gaussian of 4 mm full width, as by a long movement."""
    return ndimage.gaussian_filter(head, 4 / 2.3548 / size), brain


def ghosts(head, brain, size):
    """A third of the lines of k-space, in blocks, from a head that lay 6 mm off."""
    moved = np.roll(head, int(round(6 / size[1])), axis=1)
    lines = np.arange(head.shape[2]) % 24 < 8
    mixed = np.where(lines, np.fft.fft(moved, axis=2), np.fft.fft(head, axis=2))
    return np.abs(np.fft.ifft(mixed, axis=2)), brain


def cropped(head, brain, size):
    """A field of view that ends 25 mm under the top of the brain."""
    top = np.flatnonzero(brain.any((0, 1)))[-1] - int(25 / size[2])
    return head[:, :, :top], brain[:, :, :top]


def eroded(head, brain, size):
    """A brain mask without the brain's outer 5 mm."""
    return head, ndimage.distance_transform_edt(brain, sampling=size) > 5


def skull(head, brain, size):
    """A brain mask that reaches 8 mm further and takes skull and eyes in."""
    return head, ndimage.distance_transform_edt(~brain, sampling=size) < 8


def lobe(head, brain, size):
    """A brain mask without the left temporal lobe: its lowest third on one side."""
    filled = [np.flatnonzero(brain.any(tuple(o for o in range(3) if o != axis))) for axis in range(3)]
    low, middle = filled[2][0] + (filled[2][-1] - filled[2][0]) // 3, (filled[0][0] + filled[0][-1]) // 2
    mask = brain.copy()
    mask[:middle, filled[1][len(filled[1]) // 3] :, :low] = False
    return head, mask


def mirrored(head, brain, size):
    """The right half is the left half's mirror image."""
    middle = int(round(ndimage.center_of_mass(brain)[0]))
    width = min(middle, head.shape[0] - middle)
    head, brain = head.copy(), brain.copy()
    for image in (head, brain):
        image[middle : middle + width] = image[middle - width : middle][::-1]
    return head, brain


def shadow(head, brain, size):
    """A dark ball of 50 mm within the brain, as beside metal."""
    centre = np.array(ndimage.center_of_mass(brain)) + np.array([35, 30, 20]) / size
    away = ((np.indices(head.shape) - centre[:, None, None, None]) * size[:, None, None, None]) ** 2
    return head * np.where(away.sum(0) < 25**2, 0.15, 1), brain


HEADS = (noise, coil, blur, ghosts, cropped, eroded, skull, lobe, mirrored, shadow)


def tilted(align):
    """An alignment that is 15 degrees off about the left-right axis."""

    def align_wrongly(brain, affine, *, resolution, **rest):
        from fedbrain.imaging import registration

        found, turn, shift = align(brain, affine, resolution=resolution, **rest), np.eye(4), np.eye(4)
        c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
        turn[1:3, 1:3], shift[:3, 3] = [[c, -s], [s, c]], registration.GRID_CENTRE
        wrong = found.mni_to_scanner @ shift @ turn @ np.linalg.inv(shift)
        similarity = registration.similarity(*registration.thinned(brain, affine, resolution), wrong)
        return dataclasses.replace(found, mni_to_scanner=wrong, similarity=similarity)

    return align_wrongly


def measure(head, brain, affine, folder: Path) -> dict:
    """The metrics of one head with its mask, by the whole preprocessing."""
    import nibabel

    from fedbrain.imaging import reading, shard

    for name, values in (("head", head.astype(np.float32)), ("mask", brain.astype(np.uint8))):
        image = nibabel.Nifti1Image(values, affine)
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        nibabel.save(image, folder / f"{name}.nii")
    recipe = shard.complete_recipe({"extractor": "provided", "registration_least_similarity": 0})
    sources = [reading.read_source(folder / f"{name}.nii") for name in ("head", "mask")]
    _, _, record, picture = shard.compute_scan(*sources, recipe, "cpu")
    assert len(picture) < 60_000
    return record["quality"]


def spoiled(name, head, brain, affine, folder) -> dict:
    """The metrics of a head with one fault."""
    from fedbrain.imaging import registration

    size = np.linalg.norm(affine[:3, :3], axis=0)
    for fault in HEADS:
        if fault.__name__ == name:
            return measure(*fault(head, brain, size), affine, folder)
    if name == "tilted":
        with mock.patch.object(registration, "align", tilted(registration.align)):
            return measure(head, brain, affine, folder)
    larger = affine.copy()
    larger[:3, :3] *= 1.25
    return measure(head, brain, larger, folder)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("heads", type=Path, nargs="?")
    arguments.add_argument("--chance", action="store_true")
    arguments.add_argument("--pattern", default="ds000011-*")
    arguments.add_argument("--spoil", type=int, default=2)
    arguments.add_argument("--table", type=Path)
    arguments = arguments.parse_args()
    if arguments.chance:
        chance()
        return
    set_threads(1)  # before antspyx is imported below
    from fedbrain.imaging import outliers, quality, reading, registration, snapshots
    from fedbrain.imaging.extractors.deepbet import deepbet

    paths = [p for p in sorted(arguments.heads.glob("*_T1w.nii.gz")) if fnmatch.fnmatch(p.name, arguments.pattern)]
    rows, seconds = [], {"metrics": 0.0, "snapshot": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            scan = reading.decode(reading.read_source(path))
            brain = deepbet(scan, None).brain
            names = ["sound"]
            if number < arguments.spoil:
                names += [*(fault.__name__ for fault in HEADS), "tilted", "stretched"]
            for name in names:
                measured = (
                    measure(scan.values, brain, scan.affine, Path(folder))
                    if name == "sound"
                    else spoiled(name, scan.values, brain, scan.affine, Path(folder))
                )
                rows.append({"head": path.name.removesuffix("_T1w.nii.gz"), "fault": name} | measured)
                print(rows[-1], flush=True)
            for _ in range(2):
                start = time.process_time()
                volume = registration.template().values
                snapshots.snapshot(scan.values, scan.voxel_size, brain, volume, registration.template().mask)
                seconds["snapshot"] += time.process_time() - start
            seconds["metrics"] += metric_seconds(quality, scan, brain)
    table = pd.DataFrame(rows)
    if arguments.table:
        table.to_csv(arguments.table, sep="\t", index=False)
    report(table, outliers)
    print(
        f"CPU seconds a scan: metrics {seconds['metrics'] / len(paths):.2f}, snapshot {seconds['snapshot'] / len(paths) / 2:.2f}"
    )


def chance() -> None:
    """Shares of sound scans flagged."""
    from fedbrain.imaging.outliers import METRICS, badness, robust_z

    draw = np.random.default_rng(0)
    print("scans of the cohort   flagged by one metric   by any of all")
    for count in (5, 8, 12, 20, 50, 100, 500):
        alone, any_metric, cohorts = 0, 0, 20_000 // count
        for _ in range(cohorts):
            flags = np.array([badness(robust_z(draw.normal(size=count)), name) > OUTLIER_Z for name in METRICS])
            alone += flags.mean()
            any_metric += flags.any(axis=0).mean()
        print(f"{count:>19}   {alone / cohorts:>21.2%}   {any_metric / cohorts:>13.1%}")


def metric_seconds(quality, scan, brain) -> float:
    """CPU seconds of the metrics that this project computes on whole volumes."""
    from fedbrain.imaging import registration

    template = registration.template()
    box = tuple(slice(f[0], f[-1] + 1) for f in (np.flatnonzero(brain.any(o)) for o in ((1, 2), (0, 2), (0, 1))))
    start = time.process_time()
    quality.smoothness_mm(scan.values[box], brain[box], scan.voxel_size)
    quality.efc(scan.values)
    quality.edge_fraction(brain)
    quality.bias_log_sd(scan.values[box], brain[box])
    quality.rim_intensity(scan.values[box], brain[box])
    quality.left_right_correlation(template.values, template.mask)
    quality.template_correlation(template.values, template.values, template.mask)
    quality.dice(template.mask, template.mask[::-1])
    quality.dice(template.mask, template.mask)
    quality.fov_coverage(template.mask, np.linalg.inv(scan.affine) @ registration.GRID_AFFINE, scan.values.shape)
    white = template.values[template.white > quality.TISSUE_PROBABILITY]
    grey = template.values[template.grey > quality.TISSUE_PROBABILITY]
    quality.cjv(white, grey), quality.snr(white), quality.snr(grey)
    return time.process_time() - start


def report(table: pd.DataFrame, outliers) -> None:
    """The sound cohort, and by fault the z of every metric that notices it."""
    sound = table[table["fault"] == "sound"].assign(status="ok").reset_index(drop=True)
    metrics = [name for name in outliers.METRICS if name in table]
    print(sound.set_index("head")[metrics].T.round(4).to_string())
    z = outliers.zscores(sound)
    false = [
        f"{sound['head'][place]} {name} {value:+.1f}"
        for name in metrics
        for place, value in z[name].items()
        if outliers.badness(value, name) > OUTLIER_Z
    ]
    print(f"flagged among {len(sound)} sound scans: {'; '.join(false) or 'none'}")
    for fault, cases in table[table["fault"] != "sound"].groupby("fault", sort=False):
        found: dict[str, list[float]] = {}
        for case in cases.to_dict("records"):
            cohort = pd.concat([sound[sound["head"] != case["head"]], pd.DataFrame([case | {"status": "ok"}])])
            for name, value in outliers.zscores(cohort).iloc[-1].items():
                if outliers.badness(value, name) > OUTLIER_Z:
                    found.setdefault(name, []).append(value)
        words = [
            f"{name} {' '.join(f'{v:+.0f}' for v in values)}"
            for name, values in sorted(found.items(), key=lambda i: -np.max(np.abs(i[1])))
        ]
        print(f"{fault:<10} {'; '.join(words) or 'not noticed'}")


if __name__ == "__main__":
    main()
