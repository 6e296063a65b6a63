"""How hard is the phantoms' task, and does anything give the diagnosis away?

    python benchmarks/phantom_task.py                    # four cohorts, 66 scans: cross-validated AUCs (about 4 minutes on two idle cores)
    python benchmarks/phantom_task.py --effects 0 1 2    # the same for several strengths of the disease
    python benchmarks/phantom_task.py --oracle 400       # true volumes of many subjects: effect sizes, no images
    python benchmarks/phantom_task.py --deepbet          # brain extraction against the truth, per scanner
    python benchmarks/phantom_task.py --gains            # what each flow does to its structure (phantom_anatomy.GAINS)

All classifiers are logistic regressions in the same five-fold cross-validation by subject, repeated ten times:
`oracle` sees true volumes as shares of the cavity, and age; `image` sees all 4 mm voxels of the brain after
masking (true mask), affine registration and z-score; `regions` the means of those voxels in four fixed regions
(hippocampus, temporal horn, ventricles, cortex); `histogram` sees 40 intensity shares of the same z-scored brain voxels; `moments`
mean, deviation and percentiles of the raw ones; `site` the cohort alone.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # one thread per scan; numpy reads it when it is imported

import argparse  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from multiprocessing import get_context  # noqa: E402
from pathlib import Path  # noqa: E402

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from scipy.ndimage import gaussian_filter, map_coordinates  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedGroupKFold  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from tqdm import tqdm  # noqa: E402

from fedbrain.cohorts import phantom, phantom_anatomy  # noqa: E402

LAYOUT = {
    "north": {"controls": 14, "cases": 6, "followups": 3, "scanner": "crisp"},
    "east": {"controls": 7, "cases": 10, "followups": 2, "scanner": "shaded"},
    "south": {"controls": 7, "cases": 5, "followups": 1, "scanner": "grainy"},
    "west": {"controls": 5, "cases": 6, "followups": 0, "scanner": "thick"},
}
SEED = 0


def features(task):
    """Everything that the classifiers see of one scan, and what it cost."""
    row, options = task
    phantom_anatomy.common_head()
    start = time.process_time()
    image, brain = phantom.draw_scan(row, options, SEED)
    seconds = time.process_time() - start
    volumes = phantom.true_volumes(row, options, SEED)
    data = np.asarray(image.dataobj, dtype=np.float32)
    inside = data[brain]
    scores = (inside - inside.mean()) / inside.std()
    histogram = np.histogram(np.clip(scores, -4, 3.99), 40, (-4, 4))[0] / scores.size
    moments = np.array([inside.mean(), inside.std(), *np.percentile(inside, (1, 5, 25, 50, 75, 95, 99))])
    relative = np.array([np.log(volumes[k] / volumes["cavity"]) for k in phantom_anatomy.STRUCTURES] + [row["age"]])
    return {
        "oracle": relative,
        "image": (voxels := aligned(data, brain, image.affine)),
        "regions": regions(voxels),
        "histogram": histogram,
        "moments": moments,
        "volumes": volumes,
        "seconds": seconds,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def aligned(data, brain, affine):
    """The z-scored brain on a 4 mm grid of the template after an affine registration, flattened.

    The registration is Gauss-Newton on squared differences to the template's tissue map, with a free gain and offset,
    from the header's position on: twelve parameters, 8 mm then 5 mm. No truth enters but the brain mask.
    """
    head = phantom_anatomy.common_head()
    target = 0.61 * head.grey + 0.94 * head.white + 0.17 * (1 - head.grey - head.white) * head.hull
    z = np.where(brain, data / data[brain].mean(), 0.0).astype(np.float32)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    to_voxel = np.linalg.inv(affine)
    origin = np.array(phantom_anatomy.TEMPLATE_ORIGIN)
    matrix = np.eye(4)
    matrix[:3, :3] *= 0.94  # ordinary heads are smaller than the template

    def grid(step):
        axes = [np.arange(o, o + n, step) for o, n in zip(origin, target.shape)]
        return np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")])

    def sample(volume, points, mapping):
        return map_coordinates(volume, mapping[:3, :3] @ points + mapping[:3, 3:], order=1, output=np.float32)

    shift = np.eye(4)
    shift[:3, 3] = -origin
    for step, rounds in ((8.0, 12), (5.0, 8)):
        fixed = gaussian_filter(target, 0.6 * step)
        moving = gaussian_filter(z, 0.6 * step / sizes)
        points = grid(step)
        wanted = sample(fixed, points, shift)
        for _ in range(rounds):
            seen = sample(moving, points, to_voxel @ matrix)
            slopes = []
            for axis in range(3):
                nudge = np.eye(4)
                nudge[axis, 3] = 1.0
                slopes.append(sample(moving, points, to_voxel @ nudge @ matrix) - seen)
            columns = [slope * part for slope in slopes for part in (*(points / 50.0), 1.0)]
            system = np.stack([*columns, seen, np.ones_like(seen)], axis=1)
            # wanted = gain * (seen + slopes * change) + offset, solved for gain * change, gain and offset
            found = np.linalg.lstsq(system, wanted, rcond=None)[0]
            change = (found[:12] / found[12]).reshape(3, 4)
            matrix[:3] += np.concatenate([change[:, :3] / 50.0, change[:, 3:]], axis=1)
    scores = np.where(brain, (data - data[brain].mean()) / data[brain].std() + 4.0, 0.0).astype(np.float32)
    return sample(gaussian_filter(scores, 1.5 / sizes), grid(4.0), to_voxel @ matrix)


def regions(voxels):
    """Mean intensity of the aligned image in the template's hippocampi, ventricles with surroundings, and cortex."""
    head = phantom_anatomy.common_head()
    axes = [np.arange(o, o + n, 4.0) for o, n in zip(phantom_anatomy.TEMPLATE_ORIGIN, head.grey.shape)]
    points = np.stack([part.ravel() for part in np.meshgrid(*axes, indexing="ij")])
    index = (points - np.array([axis[0] for axis in phantom_anatomy.BRAIN])[:, None]) / 3.0
    wide = [gaussian_filter(part, 0.7) for part in (head.hippocampus, head.horn, head.ventricles, 1.0 - head.deep)]
    weights = [map_coordinates(part, index, order=1) for part in wide]
    return np.array([(voxels * weight).sum() / weight.sum() for weight in weights])


def cross_validated(values, labels, groups, voxels=False, repeats=10):
    """Mean and deviation over repeats of the AUC of out-of-fold scores (ranked within their fold's model)."""
    areas = []
    for repeat in range(repeats):
        scores = np.zeros(len(labels))
        for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=repeat).split(values, labels, groups):
            if voxels:  # left in their units: scaling each one would raise the noise of the quiet ones
                model = make_pipeline(StandardScaler(with_std=False), LogisticRegression(C=1e-3, max_iter=3000))
            else:
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            scores[test] = model.fit(values[train], labels[train]).decision_function(values[test])
        areas.append(roc_auc_score(labels, scores))
    return np.mean(areas), np.std(areas)


def site_only(sites, labels):
    """AUC of each scan's score being the prevalence in its cohort, out of fold by subject left out."""
    scores = [np.mean(labels[(sites == site) & (np.arange(len(labels)) != i)]) for i, site in enumerate(sites)]
    in_sample = [np.mean(labels[sites == site]) for site in sites]
    return roc_auc_score(labels, in_sample), roc_auc_score(labels, scores)


def report(effect, jobs):
    tasks, labels, groups, sites = [], [], [], []
    for name, options in LAYOUT.items():
        options = options | {"effect": effect}
        for row in phantom.plan_cohort(name, options, SEED).to_dict("records"):
            tasks.append((row, options))
            labels.append(int(row["diagnosis"] == "AD"))
            groups.append(row["subject"])
            sites.append(name)
    labels, groups, sites = np.array(labels), np.array(groups), np.array(sites)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = list(tqdm(pool.map(features, tasks), total=len(tasks), mininterval=5, unit="scan"))
    print(f"\neffect {effect:g}: {len(tasks)} scans, {len(set(groups))} subjects, {labels.sum()} scans of cases")
    print(f"  CPU seconds a scan {np.mean([f['seconds'] for f in found]):.2f}, at most "
          f"{max(f['seconds'] for f in found):.2f}; peak memory {max(f['memory'] for f in found):.2f} GiB")  # fmt: skip
    for name in ("oracle", "image", "regions", "histogram", "moments"):
        values = np.stack([f[name] for f in found])
        if name == "image":
            values = values[:, values.std(axis=0) > 1e-3]
        mean, spread = cross_validated(values, labels, groups, voxels=name == "image")
        print(f"  AUC {name:10s} {mean:.3f} (deviation over repeats {spread:.3f})")
    print("  AUC site       {:.3f} in sample (true prevalences), {:.3f} left out".format(*site_only(sites, labels)))
    for name, value in (
        ("mean", lambda f: f["moments"][0]),
        ("share of dark voxels", lambda f: f["histogram"][:15].sum()),
    ):
        inside = [abs(roc_auc_score(labels[sites == s], [value(f) for f, t in zip(found, sites == s) if t]) - 0.5) + 0.5
                  for s in LAYOUT]  # fmt: skip
        print(f"  AUC of the brain's {name} within cohorts: " + ", ".join(f"{area:.2f}" for area in inside))
    for name in phantom_anatomy.STRUCTURES:
        values = np.array([f["volumes"][name] for f in found])
        print(f"  {name:13s} mL: controls {values[labels == 0].mean():6.1f}, cases {values[labels == 1].mean():6.1f}")


def oracle(count, effect):
    options = {"controls": count // 2, "cases": count // 2, "effect": effect}
    rows = phantom.plan_cohort("oracle", options, SEED).to_dict("records")
    volumes = [phantom.true_volumes(row, options, SEED) for row in tqdm(rows, mininterval=5)]
    label = np.array([row["diagnosis"] == "AD" for row in rows])
    print(f"\n{count} subjects, effect {effect:g}")
    for name in (*phantom_anatomy.STRUCTURES, "brain"):
        share = np.array([np.log(v[name] / v["cavity"]) for v in volumes])
        raw = np.array([v[name] for v in volumes])
        gap = share[label].mean() - share[~label].mean()
        d = gap / np.sqrt((share[label].var(ddof=1) + share[~label].var(ddof=1)) / 2)
        area = roc_auc_score(label, share)
        print(f"  {name:13s} controls {raw[~label].mean():7.1f} mL, cases {raw[label].mean():7.1f} mL; share of the cavity "
              f"{np.expm1(gap):+.1%}, d {d:+.2f}, AUC {max(area, 1 - area):.2f}")  # fmt: skip
    values = np.array([[np.log(v[k] / v["cavity"]) for k in phantom_anatomy.STRUCTURES] + [r["age"]]
                       for v, r in zip(volumes, rows)])  # fmt: skip
    print("  AUC oracle {:.3f} ({:.3f})".format(*cross_validated(values, label.astype(int), np.arange(count))))


def extraction(per_scanner=2):
    from deepbet import run_bet

    for scanner in phantom.SCANNERS:
        options = {"controls": per_scanner // 2, "cases": per_scanner // 2, "scanner": scanner}
        with tempfile.TemporaryDirectory() as folder:
            dice, sizes = [], []
            for row in phantom.plan_cohort(f"bet{scanner}", options, SEED).to_dict("records"):
                path, mask = Path(folder) / "scan.nii.gz", Path(folder) / "mask.nii.gz"
                phantom.write_scan(row, options, SEED, path)
                sizes.append(path.stat().st_size / 1e6)
                _, truth = phantom.draw_scan(row, options, SEED)
                run_bet([str(path)], mask_paths=[str(mask)], no_gpu=True)
                found = np.asarray(nib.load(mask).dataobj) > 0
                dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
                path.unlink(), mask.unlink()
            print(f"{scanner:8s} Dice with the true brain: " + " ".join(f"{d:.3f}" for d in dice)
                  + f"; {np.mean(sizes):.1f} MB a scan")  # fmt: skip


def gains():
    person = phantom_anatomy.draw_person(np.random.default_rng(3), "F")
    still = dict.fromkeys(phantom_anatomy.STRUCTURES, 0.0)
    before = phantom_anatomy.true_volumes(person, still)
    for name, step in (("hippocampus", -0.3), ("ventricles", 0.5), ("cortex", -0.1), ("white_matter", -0.1)):
        after = phantom_anatomy.true_volumes(person, still | {name: step})
        print(f"{name} {step:+.1f} asked: " + ", ".join(
            f"{key} {np.log(after[key] / before[key]):+.3f}" for key in (*phantom_anatomy.STRUCTURES, "cavity")))  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", type=float, nargs="+", default=[phantom.OPTIONS["effect"]])
    parser.add_argument("--oracle", type=int, metavar="SUBJECTS")
    parser.add_argument("--deepbet", action="store_true")
    parser.add_argument("--gains", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.gains:
        gains()
    elif arguments.deepbet:
        extraction()
    elif arguments.oracle:
        for effect in arguments.effects:
            oracle(arguments.oracle, effect)
    else:
        for effect in arguments.effects:
            report(effect, arguments.jobs)


if __name__ == "__main__":
    main()
