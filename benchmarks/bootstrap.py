"""The bootstrap against a loop over resamples with scikit-learn, in speed and value by value.

    python benchmarks/bootstrap.py [--resamples 10000] [--subjects 1000]

Both sides of the ratio are timed in this run, one thread each, on the same made-up test sets (one and two scans per
subject). The loop draws subjects, gathers their scans and calls roc_auc_score, once per resample. A second loop takes the
draws of the vectorised bootstrap, and the largest difference of an AUC is printed. How often the intervals hold the
true AUC is in coverage.py.
"""

import argparse
import time

import numpy as np
from sklearn.metrics import roc_auc_score

from fedbrain.evaluation.bootstrap import auc_interval, replicates, resampled_counts, subject_strata
from fedbrain.evaluation.metrics import auc

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
    start = time.process_time()
    result = function(*arguments, **options)
    return time.process_time() - start, result


def largest_difference(labels, scores, subjects, resamples: int) -> float:
    """Between the vectorised AUC of each resample and scikit-learn's on the very scans that were drawn."""
    subject, strata = subject_strata(labels, subjects)
    drawn = replicates({"auc": auc}, labels, [scores], subject, strata, resamples=resamples)["auc"][0]
    (counts,) = resampled_counts(strata, resamples, 0, block=resamples)
    copies = (np.repeat(np.arange(len(labels)), column[subject].astype(int)) for column in counts.T)
    return max(abs(value - roc_auc_score(labels[scans], scores[scans])) for value, scans in zip(drawn, copies))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=1000)
    arguments = parser.parse_args()

    for scans in (1, 2):
        case = binormal_scans(np.random.default_rng(0), arguments.subjects, scans)
        runs = (seconds(auc_interval, *case, resamples=arguments.resamples) for _ in range(3))
        ours = sorted(runs, key=lambda run: run[0])[1]
        loop = seconds(loop_interval, *case, arguments.resamples)
        print(f"{arguments.subjects} subjects, {len(case[0])} scans, {arguments.resamples} resamples")
        for name, (took, result) in {"loop with scikit-learn": loop, "fedbrain": ours}.items():
            print(f"  {name:<24}{took:9.3f} s   AUC {result[0]:.4f} [{result[1]:.4f}, {result[2]:.4f}]")
        print(f"  ratio {loop[0] / ours[0]:.0f} times faster")
        print(f"  largest difference of an AUC in 200 resamples {largest_difference(*case, 200):.1e}")


if __name__ == "__main__":
    main()
