"""How far the numbers of the privacy audit can be trusted: coverage of their intervals, and what more shadow models bring.

    OMP_NUM_THREADS=1 python benchmarks/membership.py

Two tables in Markdown. Coverage: members' and non-members' scores are normal, a distance apart, one scan each. Shadow models: logistic
regressions on made-up subjects whose labels can partly be learned; the attacked one and the shadows are trained on halves of them.
"""

import numpy as np
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from fedbrain.evaluation.bootstrap import intervals
from fedbrain.evaluation.comparison import analytic_interval
from fedbrain.evaluation.membership import at_rate, least_fpr, likelihood_ratio, loss_score
from fedbrain.evaluation.metrics import auc

STUDIES, RESAMPLES = 500, 500
SETTINGS = [
    (members, others, distance)
    for distance in (0, 1)
    for members, others in ((20, 8), (60, 25), (200, 100), (700, 300))
]
MODELS = (4, 8, 16, 32, 64)
TARGETS, SUBJECTS, FEATURES = 40, 120, 60


def coverage(members: int, others: int, distance: float) -> dict[str, tuple[float, float, float]]:
    """Of each metric: how often its interval holds the truth, the truth, and the metric's mean."""
    rng, label = np.random.default_rng(0), np.r_[np.ones(members, int), np.zeros(others, int)]
    rates = {"least": least_fpr(others)} | ({"0.01": 0.01} if others >= 100 else {})
    truth = {name: norm.sf(norm.isf(rate) - distance) for name, rate in rates.items()}
    truth |= dict.fromkeys(("auc", "auc_delong"), norm.cdf(distance / np.sqrt(2)))
    metrics = {"auc": auc} | {name: at_rate(rate) for name, rate in rates.items()}
    held, values = dict.fromkeys(truth, 0), {name: [] for name in truth}
    for number in range(STUDIES):
        scores = rng.normal(distance * label)
        found = intervals(metrics, label, [scores], np.arange(len(label)), resamples=RESAMPLES, seed=number)
        found = {name: own[:3] for name, own in found.items()}
        found["auc_delong"] = analytic_interval(label, scores[None], np.arange(len(label)))[:3]
        for name, (value, low, high) in found.items():
            held[name] += low <= truth[name] <= high
            values[name].append(value)
    return {name: (held[name] / STUDIES, truth[name], float(np.mean(values[name]))) for name in truth}


def trained(x, y, inside):
    """Each subject's logit of the own label under a model that was trained on those ``inside``."""
    model = LogisticRegression(max_iter=500).fit(x[inside], y[inside])
    return model.decision_function(x) * np.where(y == 1, 1, -1)


def power(models: int) -> dict[str, tuple[float, float]]:
    """Mean AUC of each attack over made-up studies, and its standard error."""
    rng, values = np.random.default_rng(1), {"loss": [], "lira": []}
    for _ in range(TARGETS):
        y = np.arange(SUBJECTS) % 2
        x = rng.normal(2 * (2 * y - 1)[:, None] / np.sqrt(FEATURES), 1, (SUBJECTS, FEATURES))
        member = rng.permutation(SUBJECTS) < SUBJECTS // 2
        halves = np.array([rng.permutation(SUBJECTS) < SUBJECTS // 2 for _ in range(models // 2)])
        halves = np.concatenate([halves, ~halves])
        logits, shadows = trained(x, y, member), np.array([trained(x, y, half) for half in halves])
        values["loss"].append(auc(member.astype(int), loss_score(logits)))
        values["lira"].append(auc(member.astype(int), likelihood_ratio(logits, shadows, halves)))
    return {name: (float(np.mean(own)), float(np.std(own, ddof=1) / np.sqrt(TARGETS))) for name, own in values.items()}


if __name__ == "__main__":
    print("| members | non-members | true AUC | `auc` | `auc_delong` | rate | true | mean | `tpr` at the rate |")
    print("|---|---|---|---|---|---|---|---|---|")
    for members, others, distance in SETTINGS:
        found = coverage(members, others, distance)
        for name in [name for name in found if not name.startswith("auc")]:
            rate = least_fpr(others) if name == "least" else 0.01
            held, true, mean = found[name]
            row = [
                members,
                others,
                f"{found['auc'][1]:.2f}",
                *(f"{found[key][0]:.3f}" for key in ("auc", "auc_delong")),
            ]
            print("|", " | ".join(map(str, [*row, f"{rate:.3g}", f"{true:.3f}", f"{mean:.3f}", f"{held:.3f}"])), "|")
    print("\n| shadow models | loss | lira |\n|---|---|---|")
    for models in MODELS:
        cells = [f"{mean:.3f} ({error:.3f})" for mean, error in power(models).values()]
        print("|", " | ".join([str(models), *cells]), "|", flush=True)
