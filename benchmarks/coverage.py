"""How often 95 % intervals of an AUC hold the true AUC, and how often tests of equal AUCs reject by mistake.

    python benchmarks/coverage.py [--studies 2000] [--resamples 1000] [--largest 2000]

Made-up studies with a known AUC: scores are normal, those of cases shifted (binormal), labels fixed by prevalence. In
clustered studies each subject has three scans, half of the variance of a score being the subject's own (intraclass
correlation 0.5); n counts subjects. In the last studies cases are spread three times as widely as controls. Percentile
and BCa limits come from the same resamples. A share of s in k studies has a Monte Carlo standard error of
sqrt(s (1 - s) / k). A study whose interval does not exist counts as not covering; the share of studies without DeLong's
(complete separation) stands in the last column.
"""

import argparse
import time

import numpy as np
from scipy.special import ndtri

from fedbrain.evaluation.bootstrap import jackknife, limits, replicates, subject_strata
from fedbrain.evaluation.comparison import analytic_interval, bootstrap_p, delong_interval, delong_test, score_interval
from fedbrain.evaluation.metrics import auc

SHARED = 0.5  # intraclass correlation of a subject's scans
METHODS = ("percentile", "bca", "delong", "delong_logit", "delong_t", "score", "analytic")
DESIGNS = [  # subjects, prevalence, true AUC, scans per subject, spread of cases / spread of controls
    *((n, 0.5, area, 1) for area in (0.75, 0.9) for n in (20, 50, 100, 500, 2000)),
    *((n, 0.3, 0.75, 1) for n in (20, 50, 100)),
    *((n, 0.1, 0.75, 1) for n in (20, 50, 100, 500, 2000)),
    *((n, 0.5, 0.75, 3) for n in (20, 50, 100, 500)),
    *((n, 0.1, 0.9, 3) for n in (50, 500)),
    *((n, share, 0.8, 1, 3.0) for n, share in ((20, 0.5), (50, 0.5), (50, 0.2), (200, 0.5))),
]


def study(rng, n: int, prevalence: float, area: float, scans: int, spread: float = 1.0):
    """Labels, scores and subjects of one made-up study, (n x scans,)."""
    cases = max(1, round(n * prevalence))
    subjects = np.repeat(np.arange(n), scans)
    labels = (subjects < cases).astype(int)
    own = rng.normal(size=n)[subjects]
    noise = own if scans == 1 else np.sqrt(SHARED) * own + np.sqrt(1 - SHARED) * rng.normal(size=len(subjects))
    shift = np.sqrt(1 + spread**2) * ndtri(area)
    return labels, shift * labels + np.where(labels == 1, spread, 1.0) * noise, subjects


def study_intervals(labels, scores, subjects, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of every method."""
    subject, strata = subject_strata(labels, subjects)
    metrics = {"auc": auc}
    drawn = replicates(metrics, labels, [scores], subject, strata, resamples=resamples, seed=seed)["auc"][0]
    left_out = [part[0] for part in jackknife(metrics, labels, [scores], subject, strata)["auc"]]
    value = auc(labels, scores)
    cases = len(strata[-1])
    return {
        "percentile": limits(drawn, value, 0.95),
        "bca": limits(drawn, value, 0.95, left_out),
        "delong": delong_interval(labels, scores, logit=False, small_sample=False, subjects=subjects)[1:],
        "delong_logit": delong_interval(labels, scores, small_sample=False, subjects=subjects)[1:],
        "delong_t": delong_interval(labels, scores, subjects=subjects)[1:],
        "score": score_interval(value, cases, subject.max() + 1 - cases),
        "analytic": analytic_interval(labels, [scores], subjects)[1:3],
    }


def coverage(design, studies: int, resamples: int):
    """Share of studies whose interval holds the true AUC, mean width, and share without a DeLong interval."""
    rng = np.random.default_rng([int(1000 * part) for part in design])
    hits, widths, without = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0), 0
    for number in range(studies):
        found = study_intervals(*study(rng, *design), resamples, number)
        without += np.isnan(found["delong_logit"][0])
        for method, (low, high) in found.items():
            hits[method] += low <= design[2] <= high
            widths[method] += np.nan_to_num(high - low)
    return (
        {method: count / studies for method, count in hits.items()},
        {method: width / studies for method, width in widths.items()},
        without / studies,
    )


def false_alarms(n: int, prevalence: float, scans: int, studies: int, resamples: int):
    """Share of studies of two equally good, correlated models in which a test finds p below 0.05."""
    rng = np.random.default_rng([n, int(100 * prevalence), scans])
    counts = {"delong": 0, "bootstrap": 0}
    for number in range(studies):
        labels, first, subjects = study(rng, n, prevalence, 0.8, scans)
        # The second model: half of the first one's score and half a new one, which leaves its AUC as it is.
        _, other, _ = study(rng, n, prevalence, 0.8, scans)
        shift = np.sqrt(2) * ndtri(0.8)
        second = shift * labels + np.sqrt(0.5) * ((first - shift * labels) + (other - shift * labels))
        counts["delong"] += delong_test(labels, first, second, subjects=subjects).p < 0.05
        subject, strata = subject_strata(labels, subjects)
        drawn = replicates({"auc": auc}, labels, [first, second], subject, strata, resamples=resamples, seed=number)[
            "auc"
        ]
        counts["bootstrap"] += bootstrap_p(drawn[0] - drawn[1], auc(labels, first) - auc(labels, second)) < 0.05
    return {test: count / studies for test, count in counts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--largest", type=int, default=2000, help="leave out designs with more subjects")
    arguments = parser.parse_args()
    studies, resamples = arguments.studies, arguments.resamples

    started = time.perf_counter()
    error = np.sqrt(0.95 * 0.05 / studies)
    print(f"share of {studies} studies covered (standard error {error:.4f} at 0.95; with 2000 subjects twice that),")
    print(f"{resamples} resamples; in brackets the mean width")
    print("| subjects | prevalence | AUC | scans | spread | " + " | ".join(METHODS) + " | no DeLong |", flush=True)
    print("|" + "---|" * (6 + len(METHODS)))
    for design in DESIGNS:
        if design[0] > arguments.largest:
            continue
        # Large studies take longest and have the least to show: a quarter of the studies, twice the standard error.
        shares, widths, without = coverage(design, studies if design[0] <= 1000 else studies // 4, resamples)
        cells = [f"{shares[method]:.3f} ({widths[method]:.2f})" for method in METHODS]
        print("| " + " | ".join([*map(str, (*design, 1.0)[:5]), *cells, f"{without:.3f}"]) + " |", flush=True)
    print(f"\nshare of {studies} studies of equally good models (AUC 0.8) with p < 0.05 (standard error {error:.4f})")
    print("| subjects | prevalence | scans | DeLong | bootstrap |", flush=True)
    print("|---|---|---|---|---|")
    for n, prevalence, scans in ((20, 0.5, 1), (50, 0.5, 1), (50, 0.2, 1), (200, 0.5, 1), (100, 0.5, 3)):
        shares = false_alarms(n, prevalence, scans, studies, resamples)
        print(f"| {n} | {prevalence} | {scans} | {shares['delong']:.3f} | {shares['bootstrap']:.3f} |", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
