"""How often the intervals of a mean over few cohorts hold what they should: python benchmarks/cohort_means.py"""

import numpy as np

from fedbrain.evaluation.meta_analysis import random_effects

VARIANCES = [0.02, 0.05, 0.1, 0.2, 0.3]  # of the logit of the AUC, from cohorts of some 400 to 30 subjects
MEAN, TAU, RUNS = 1.0, 0.4, 1000


def main():
    print("cohorts  mean held  further cohort held")
    for cohorts in (3, 4, 5, 8):
        rng, held, predicted = np.random.default_rng(1), 0, 0
        variances = np.resize(VARIANCES, cohorts)
        for _ in range(RUNS):
            found = random_effects(rng.normal(MEAN, np.sqrt(TAU**2 + variances)), variances)
            held += found.low <= MEAN <= found.high
            predicted += found.prediction_low <= rng.normal(MEAN, TAU) <= found.prediction_high
        print(f"{cohorts:7}  {held / RUNS:9.1%}  {predicted / RUNS:19.1%}")


if __name__ == "__main__":
    main()
