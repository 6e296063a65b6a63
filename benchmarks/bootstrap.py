"""The bootstrap against a loop over resamples with scikit-learn, and how often its intervals cover the true AUC.

    python benchmarks/bootstrap.py [--resamples 10000] [--subjects 300] [--studies 2000]

Both sides of the ratio are timed in this run, one thread each, on the same made-up test set (two scans per subject).
"""

import argparse
import time

import numpy as np
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from fedbrain.evaluation.bootstrap import METHODS, auc_interval

SEPARATION = 1.2  # standard deviations between cases and controls: true AUC 0.802


def binormal_scans(rng, subjects: int, scans: int = 1):
    """Binormal scores; the scans of a subject share half of their variance."""
    labels = np.repeat(np.arange(subjects) % 2, scans)
    own = np.repeat(rng.normal(size=subjects), scans)
    noise = own if scans == 1 else np.sqrt(0.5) * (own + rng.normal(size=subjects * scans))
    return labels, SEPARATION * labels + noise, np.repeat(np.arange(subjects), scans)


def loop_interval(labels, scores, subjects, resamples: int):
    """The plain way: draw subjects, gather their scans, call scikit-learn, once per resample."""
    rng = np.random.default_rng(0)
    scans_of = [np.flatnonzero(subjects == subject) for subject in np.unique(subjects)]
    strata = [np.array([k for k, scans in enumerate(scans_of) if labels[scans[0]] == label]) for label in (0, 1)]
    replicates = []
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        scans = np.concatenate([scans_of[subject] for subject in drawn])
        replicates.append(roc_auc_score(labels[scans], scores[scans]))
    return (roc_auc_score(labels, scores), *np.quantile(replicates, [0.025, 0.975]))


def seconds(function, *arguments, **options):
    start = time.perf_counter()
    result = function(*arguments, **options)
    return time.perf_counter() - start, result


def coverage(subjects: int, studies: int) -> dict[str, float]:
    """Share of made-up studies whose 95 % interval (1,000 resamples) holds the true AUC."""
    true, rng = ndtr(SEPARATION / np.sqrt(2)), np.random.default_rng(1)
    hits = dict.fromkeys(METHODS, 0)
    for study in range(studies):
        case = binormal_scans(rng, subjects)
        for method in METHODS:
            _, low, high = auc_interval(*case, resamples=1000, seed=study, method=method)
            hits[method] += low <= true <= high
    return {method: count / studies for method, count in hits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=300)
    parser.add_argument("--studies", type=int, default=2000)
    arguments = parser.parse_args()

    case = binormal_scans(np.random.default_rng(0), arguments.subjects, scans=2)
    ours = sorted(
        (seconds(auc_interval, *case, resamples=arguments.resamples) for _ in range(3)), key=lambda run: run[0]
    )[1]
    loop = seconds(loop_interval, *case, arguments.resamples)
    print(f"{arguments.subjects} subjects, {len(case[0])} scans, {arguments.resamples} resamples")
    for name, (took, result) in {"loop with scikit-learn": loop, "fedbrain": ours}.items():
        print(f"  {name:<24}{took:9.3f} s   AUC {result[0]:.4f} [{result[1]:.4f}, {result[2]:.4f}]")
    print(f"  ratio {loop[0] / ours[0]:.0f} times faster")
    print(f"coverage of the 95 % interval, {arguments.studies} studies")
    for subjects in (20, 60, 200):
        shares = coverage(subjects, arguments.studies)
        print(f"  {subjects:>4} subjects: " + ", ".join(f"{method} {share:.3f}" for method, share in shares.items()))


if __name__ == "__main__":
    main()
