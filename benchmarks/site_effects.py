"""What ComBat takes out of simulated embeddings, what it leaves, and what it costs, by the number of training subjects.

Four hospitals, 96 channels whose means share half of their variance in eight common directions; every hospital shifts and
scales each channel, and its noise has directions of its own, which no shift of a channel takes out. Cases differ from
controls in every channel by a little. Hospitals have the same share of cases, or 0.2, 0.4, 0.6 and 0.8. A logistic regression learns the
diagnosis from the training subjects of all hospitals, and is tested on 400 subjects of each. Prints medians over repetitions.

    OMP_NUM_THREADS=1 python benchmarks/site_effects.py
"""

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedbrain.evaluation.site_effects import balanced_accuracy, predicted_cohorts, variance_shares
from fedbrain.federated.combat import adjustment, affine, pooled_estimates, site_sums

CHANNELS, SITES, TESTED, REPETITIONS = 96, 4, 400, 20
EFFECT = 0.1  # standard deviations of a channel between cases and controls
SHIFT = 0.7  # standard deviation of a hospital's shift


def simulated(rng, sizes, prevalence):
    """For each hospital features (n, G) and labels (n,); the same hospitals for all of ``sizes``."""
    common = rng.normal(size=(8, CHANNELS)) / np.sqrt(16)
    disease = EFFECT * rng.choice([-1, 1], CHANNELS)
    sites = []
    for share in prevalence:
        shift, scale = SHIFT * rng.normal(size=CHANNELS), rng.gamma(30, 1 / 30, CHANNELS)
        own = rng.normal(size=(4, CHANNELS)) / np.sqrt(16)
        parts = []
        for n in sizes:
            label = (np.arange(n) < round(share * n)).astype(int)
            noise = rng.normal(size=(n, 8)) @ common + rng.normal(size=(n, 4)) @ own
            noise = noise + rng.normal(size=(n, CHANNELS)) / 2
            parts.append((disease * label[:, None] + shift + scale * noise, label))
        sites.append(parts)
    return sites


def harmonized(sites):
    """Training and test features after ComBat of the training subjects."""
    sums = [site_sums(train, np.empty((len(train), 0))) for (train, _), _ in sites]
    pooled = pooled_estimates(sums)
    result = []
    for own, parts in zip(sums, sites):
        gain, shift = affine(pooled, adjustment(own, pooled), np.empty((1, 0)))
        result.append([(gain * y + shift, label) for y, label in parts])
    return result


def measured(sites):
    """Balanced accuracy of telling the hospital, median omega squared, and AUC of the diagnosis within and over hospitals."""
    tested = np.concatenate([test for _, (test, _) in sites])
    site = np.repeat(np.arange(SITES), TESTED)
    told = balanced_accuracy(site, predicted_cohorts(tested, site, np.arange(len(site)), folds=5).argmax(1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, class_weight="balanced"))
    model.fit(np.concatenate([y for (y, _), _ in sites]), np.concatenate([label for (_, label), _ in sites]))
    scores = model.predict_proba(tested)[:, 1]
    labels = np.concatenate([label for _, (_, label) in sites])
    within = [roc_auc_score(labels[site == k], scores[site == k]) for k in range(SITES)]
    return told, np.median(variance_shares(tested, site)[1]), np.mean(within), roc_auc_score(labels, scores)


def main():
    rows = []
    for prevalence in ([0.5] * 4, [0.2, 0.4, 0.6, 0.8]):
        for subjects in (5, 10, 30, 100, 300):
            found = {"before": [], "after": []}
            for repetition in range(REPETITIONS):
                sites = simulated(np.random.default_rng([subjects, repetition]), (subjects, TESTED), prevalence)
                found["before"].append(measured(sites))
                found["after"].append(measured(harmonized(sites)))
            before, after = (np.median(found[name], axis=0) for name in ("before", "after"))
            row = {"share of cases": "equal" if len(set(prevalence)) == 1 else "0.2 to 0.8", "subjects": subjects}
            for name, b, a in zip(("told", "omega squared", "AUC within", "AUC pooled"), before, after):
                row[name] = f"{b:.2f} -> {a:.2f}"
            rows.append(row)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
