from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import brunnermunzel, norm

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import interval
from fedbrain.evaluation.comparison import (
    COMPARISONS,
    analytic_interval,
    bootstrap_p,
    compare_cells,
    delong_covariance,
    delong_interval,
    delong_test,
    holm,
    mean_delong_interval,
    score_interval,
)
from fedbrain.evaluation.metrics import auc
from fedbrain.tables import PREDICTIONS, SPLITS, read_table, write_table


@pytest.fixture(scope="module")
def patients():
    frame = pd.read_csv(Path(__file__).parents[1] / "data" / "delong_1988.tsv", sep="\t")
    assert frame.shape == (43, 4)
    return frame


def test_delong_agrees_with_published_results_on_the_patients_of_its_paper(patients):
    """Output of "Comparing Receiver Operating Characteristic Curves" in the SAS/STAT User's Guide, PROC LOGISTIC; many ties."""
    labels, reference = patients["benefit"], patients["kg_score"]
    for other, difference, error, p in (
        ("albumin", 0.0108, 0.0953, 0.9102),
        ("total_protein", -0.0780, 0.1046, 0.4561),
    ):
        found = delong_test(labels, patients[other], reference)
        assert found.auc_a - found.auc_b == pytest.approx(difference, abs=5e-5)
        assert (found.auc_a - found.auc_b) / found.z == pytest.approx(error, abs=5e-5)
        assert found.p == pytest.approx(p, abs=5e-5)


def test_delongs_interval_agrees_with_published_results_on_the_patients_of_its_paper(patients):
    """The same output; Wald intervals."""
    for name, expected in (
        ("kg_score", (0.7258, 0.5243, 0.9273)),
        ("albumin", (0.7366, 0.5549, 0.9182)),
        ("total_protein", (0.6478, 0.4518, 0.8439)),
    ):
        found = delong_interval(patients["benefit"], patients[name], logit=False, small_sample=False)
        assert found == pytest.approx(expected, abs=5e-5)


def by_definition(labels, scores, subjects):
    """AUCs and covariance in O(mn), term by term as Obuchowski (1997) writes them."""
    labels, subjects = np.asarray(labels), np.asarray(subjects)
    wins = [
        np.array(
            [[float(x > y) + 0.5 * float(x == y) for y in np.array(s)[labels == 0]] for x in np.array(s)[labels == 1]]
        )
        for s in scores
    ]
    owner, other = subjects[labels == 1], subjects[labels == 0]
    m, n, people = len(owner), len(other), sorted(set(subjects))
    aucs = [w.mean() for w in wins]
    rows = [[(w.mean(axis=1)[owner == i] - area).sum() for i in people] for w, area in zip(wins, aucs)]
    columns = [[(w.mean(axis=0)[other == i] - area).sum() for i in people] for w, area in zip(wins, aucs)]
    i10, i01, i11 = len(set(owner)), len(set(other)), len(people)
    covariance = np.zeros((len(scores), len(scores)))
    for r in range(len(scores)):
        for s in range(len(scores)):
            s10 = i10 / ((i10 - 1) * m) * np.dot(rows[r], rows[s])
            s01 = i01 / ((i01 - 1) * n) * np.dot(columns[r], columns[s])
            s11 = i11 / (i11 - 1) * (np.dot(rows[r], columns[s]) + np.dot(rows[s], columns[r]))
            covariance[r, s] = s10 / m + s01 / n + s11 / (m * n)
    return np.array(aucs), covariance


@st.composite
def two_models(draw):
    n = draw(st.integers(5, 25))
    labels = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    labels[:4] = 0, 1, 0, 1
    scores = np.array(draw(st.lists(st.integers(0, 6), min_size=2 * n, max_size=2 * n)), dtype=float).reshape(2, n)
    subjects = np.array(draw(st.lists(st.integers(0, 30), min_size=n, max_size=n)))
    subjects[:4] = 0, 1, 2, 3
    return labels, scores, subjects


@settings(max_examples=100, deadline=None)
@given(two_models())
def test_midranks_agree_with_the_definition_for_single_and_repeated_scans(case):
    labels, scores, subjects = case
    for units in (np.arange(len(labels)), subjects):
        aucs, covariance = delong_covariance(labels, scores, units)
        expected_aucs, expected = by_definition(labels, scores, units)
        np.testing.assert_allclose(aucs, expected_aucs, atol=1e-12)
        np.testing.assert_allclose(covariance, expected, atol=1e-12)
    np.testing.assert_allclose(aucs, [auc(labels, s) for s in scores], atol=1e-12)
    alone = delong_covariance(labels, scores)[1]  # without subjects every scan is one
    np.testing.assert_allclose(alone, delong_covariance(labels, scores, np.arange(len(labels)))[1], atol=1e-15)


def clustered(rng, subjects, scans, both=0):
    """Scans whose scores share half of their variance within a subject; the first ``both`` subjects have both labels."""
    subject = np.repeat(np.arange(subjects), scans)
    labels = subject % 2
    labels[subject < both] = np.tile(np.arange(scans) % 2, both)
    own = rng.normal(size=subjects)[subject]
    return labels, 0.9 * labels + np.sqrt(0.5) * (own + rng.normal(size=len(subject))), subject


@pytest.mark.parametrize("both", [0, 80])
def test_the_clustered_standard_error_is_that_of_repeated_studies(both):
    rng = np.random.default_rng(0)
    studies = [clustered(rng, 80, 3, both) for _ in range(400)]
    areas = [auc(labels, scores) for labels, scores, _ in studies]
    clusters, single = (
        np.mean([delong_covariance(labels, [scores], units(subject))[1][0, 0] for labels, scores, subject in studies])
        for units in (lambda subject: subject, lambda subject: None)
    )
    assert np.sqrt(clusters) == pytest.approx(np.std(areas), rel=0.1)
    ignored = np.sqrt(single) / np.std(areas)
    assert ignored < 0.85 if both == 0 else ignored > 1.1  # too sure, or, where pairs lie within subjects, too unsure


def test_copied_scans_of_a_subject_add_no_certainty_to_delong():
    labels, scores, subjects = clustered(np.random.default_rng(1), 30, 1)
    once = delong_interval(labels, scores)
    thrice = delong_interval(np.tile(labels, 3), np.tile(scores, 3), subjects=np.tile(subjects, 3))
    assert thrice == pytest.approx(once, abs=1e-12)


def test_the_logit_interval_stays_within_bounds_and_keeps_its_ends_under_a_mirror():
    labels = np.repeat([0, 1], [10, 6])
    scores = np.r_[np.arange(10), 8.5, 10, 11, 12, 13, 14]
    value, low, high = delong_interval(labels, scores)
    assert 0 < low < value < high < 1
    assert delong_interval(labels, -scores) == pytest.approx((1 - value, 1 - high, 1 - low))
    plain = delong_interval(labels, scores, logit=False)
    assert plain[2] == 1  # cut off
    assert value - low > high - value


@pytest.mark.parametrize(("controls", "cases"), [(30, 20), (12, 3), (2, 9)])
def test_small_samples_take_the_degrees_of_freedom_of_brunner_and_munzel(controls, cases):
    """scipy's Brunner-Munzel test of the same two samples has the same standard error and degrees of freedom."""
    rng = np.random.default_rng(controls)
    x, y = rng.normal(size=controls), rng.normal(0.4, 2, size=cases)
    labels, scores = np.repeat([0, 1], [controls, cases]), np.r_[x, y]
    statistic, p = brunnermunzel(x, y, distribution="t")
    value, low, high = delong_interval(labels, scores, level=1 - p, logit=False)
    assert min(abs(low - 0.5), abs(high - 0.5)) == pytest.approx(0, abs=1e-9)  # the interval of that level ends at 0.5
    se = np.sqrt(delong_covariance(labels, [scores])[1][0, 0])
    assert (value - 0.5) / se == pytest.approx(statistic)


def test_where_delong_has_no_variance_there_is_no_interval():
    assert np.isnan(delong_interval([0, 0, 1, 1], [1, 2, 3, 4])[1:]).all()  # separated
    assert delong_interval([0, 0, 1], [1, 3, 2])[0] == 0.5
    assert np.isnan(delong_interval([0, 0, 1], [1, 3, 2])[1:]).all()  # one case
    assert np.isnan(delong_interval([0, 0], [1, 3])).all()  # no case
    assert np.isnan(delong_interval([0, 1], [1, np.nan])).all()
    assert np.isnan(delong_interval([0, 0, 1, 1], [1, 4, 2, 3], subjects=["a", "b", "c", "c"])[1:]).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        delong_interval([0, 1], [0, 1], 95)
    with pytest.raises(ValueError, match="do not fit"):
        delong_covariance([0, 1], [[0, 1, 2]])


def test_models_that_rank_alike_do_not_differ_and_a_mirror_image_of_separation_is_no_test():
    labels, scores = [0, 0, 1, 1, 1], np.array([1, 3, 2, 4, 5.0])
    assert delong_test(labels, scores, np.exp(scores)) == (5 / 6, 5 / 6, 0, 1)
    opposite = delong_test(labels, [0, 0, 1, 1, 1], [1, 1, 0, 0, 0])
    assert opposite[:2] == (1, 0)
    assert np.isnan(opposite[2:]).all()


def test_seeds_enter_delong_as_their_mean():
    rng = np.random.default_rng(2)
    labels, scores, subjects = clustered(rng, 60, 2)
    noisy = [scores + rng.normal(size=len(scores)) for _ in range(3)]
    same = mean_delong_interval(labels, [scores] * 3, subjects=subjects)
    assert same == pytest.approx(delong_interval(labels, scores, subjects=subjects), abs=1e-12)
    value, low, high = mean_delong_interval(labels, noisy, subjects=subjects)
    assert value == pytest.approx(np.mean([auc(labels, s) for s in noisy]))
    single = np.mean([np.diff(delong_interval(labels, s, subjects=subjects)[1:]) for s in noisy])
    assert high - low < single  # errors of the seeds' own noise average out


def test_the_score_interval_is_where_hanley_and_mcneils_variance_puts_the_auc():
    cases, controls, level = 12, 30, 0.9
    for value in (0.3, 0.77, 0.98):
        for limit in score_interval(value, cases, controls, level):
            k = (cases + controls) / 2 - 1
            variance = limit * (1 - limit) * (1 + k * (1 - limit) / (2 - limit) + k * limit / (1 + limit))
            assert (value - limit) ** 2 == pytest.approx(norm.ppf(0.95) ** 2 * variance / (cases * controls))
    low, high = score_interval(1, 5, 5)
    assert 0.5 < low < 0.9
    assert high == 1
    assert score_interval(0, 5, 5) == (0, pytest.approx(1 - low))
    assert score_interval(0.8, 50, 50)[0] > score_interval(0.8, 10, 10)[0]
    assert np.isnan(score_interval(np.nan, 5, 5)).all()
    assert np.isnan(score_interval(0.5, 0, 5)).all()


def test_where_delong_says_nothing_the_score_interval_stands_in_with_a_note():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([1, 4, 2, 3, 5.0])
    assert analytic_interval(labels, [scores], np.arange(5)) == (*delong_interval(labels, scores), "")
    separated = analytic_interval([0, 0, 0, 1, 1], [[1, 2, 3, 4, 5]], np.arange(5))
    assert separated == (1, *score_interval(1, 2, 3), "complete separation: interval of Newcombe, from the counts")
    # Three scans of one case are one case.
    one_case = analytic_interval([0, 0, 1, 1, 1], [[1, 3, 2, 2, 4]], ["a", "b", "c", "c", "c"])
    assert one_case[1:3] == score_interval(one_case[0], 1, 2)
    assert one_case[3].startswith("1 case only")
    assert np.isnan(analytic_interval([0, 0], [[1, 2]], ["a", "b"])[:3]).all()


def test_holm_by_hand_and_against_statsmodels():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    with_gap = holm([0.01, np.nan, 0.04])
    assert with_gap[[0, 2]] == pytest.approx([0.02, 0.04])  # a comparison without a test is none of the family
    assert np.isnan(with_gap[1])
    assert holm([]).shape == (0,)
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(3).random(40) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_the_bootstraps_p_is_small_where_resamples_lie_on_one_side():
    assert bootstrap_p(np.linspace(0.01, 0.2, 999), 0.1) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.linspace(-1, 1, 1001), 0.0) == 1
    assert bootstrap_p(np.zeros(50), 0.0) == 1
    assert np.isnan(bootstrap_p(np.full(50, 0.3), 0.3))
    assert np.isnan(bootstrap_p([np.nan], 0.3))


CLIENTS = ["north", "south", "controls"]
A, B, C = (("linear", "frozen", rule) for rule in ("fedavg", "fedce", "local"))


def predictions(seed, strength=1.0, sizes=((14, 12), (11, 10), (6, 0))):
    rows = [
        (cohort, f"{number:03d}", pd.NA, int(number >= controls))
        for cohort, (controls, cases) in zip(CLIENTS, sizes)
        for number in range(controls + cases)
    ]
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    rng = np.random.default_rng(seed)
    score = strength * frame["label"] + rng.normal(size=len(frame))
    return frame.assign(score=1 / (1 + np.exp(-score))).astype(PREDICTIONS)


@pytest.fixture(scope="module")
def cells():
    return {
        A: {seed: predictions(seed, 2.0) for seed in range(3)},
        B: {seed: predictions(seed + 10, 0.3) for seed in range(2)},
        C: {0: predictions(0, 2.0)},
    }


@pytest.fixture(scope="module")
def table(cells):
    return compare_cells(cells, clients=CLIENTS, resamples=800)


def one(table, a, b, client):
    chosen = table[(table["cell_a"] == "/".join(a)) & (table["cell_b"] == "/".join(b)) & (table["client"] == client)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_every_pair_has_a_row_for_every_client_and_the_pool_and_survives_the_disk(table, tmp_path):
    assert list(table.columns) == list(COMPARISONS)
    assert len(table) == 3 * 4
    write_table(table, tmp_path / "comparisons.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "comparisons.tsv", COMPARISONS), table)


def test_a_comparison_by_other_means(cells, table):
    """Difference and interval from a bootstrap of the mean AUCs in one; p from the contrast of DeLong's covariance."""
    frames = [cells[A][seed] for seed in range(3)] + [cells[B][seed] for seed in range(2)]
    north = [frame.query("cohort == 'north'") for frame in frames]
    labels = north[0]["label"].to_numpy(int)
    scores = np.stack([frame["score"].to_numpy(float) for frame in north])  # (5, N)
    weights = np.array([1 / 3] * 3 + [-1 / 2] * 2)

    def difference(labels, row, weights_of_scans=None):
        index = np.asarray(row, dtype=int)  # carries the scan's place, so that all models can be looked up
        values = [auc(labels, s[index], weights_of_scans) for s in scores]
        return np.tensordot(weights, np.array(values), axes=1)

    expected = interval(difference, labels, np.arange(len(labels)), north[0]["subject"].to_numpy(str), resamples=800)
    found = one(table, A, B, "north")
    assert tuple(found[["difference", "low", "high"]]) == pytest.approx(expected)
    aucs, covariance = delong_covariance(labels, scores)
    z = weights @ aucs / np.sqrt(weights @ covariance @ weights)
    assert found["p_delong"] == pytest.approx(2 * norm.sf(abs(z)))
    assert found["p_bootstrap"] == pytest.approx(found["p_delong"], abs=0.05)
    spread = [np.var(aucs[:3], ddof=1) / 3, np.var(aucs[3:], ddof=1) / 2]
    assert found["seed_se"] == pytest.approx(np.sqrt(sum(spread)))
    assert found[["seeds_a", "seeds_b", "subjects", "positives", "negatives"]].tolist() == [3, 2, 26, 12, 14]


def test_one_seed_against_one_is_delongs_test_and_a_cell_does_not_differ_from_itself(cells):
    single = {A: {0: cells[A][0]}, B: {0: cells[B][0]}, C: cells[C]}
    table = compare_cells(single, clients=CLIENTS, resamples=200)
    south = cells[A][0]["cohort"] == "south"
    labels = cells[A][0].loc[south, "label"]
    expected = delong_test(labels, *(frame.loc[south, "score"] for frame in (cells[A][0], cells[B][0])))
    found = one(table, A, B, "south")
    assert tuple(found[["value_a", "value_b", "p_delong"]]) == pytest.approx((*expected[:2], expected.p))
    assert pd.isna(found["seed_se"])
    same = one(table, A, C, "north")  # A and C hold the same predictions
    assert same[["difference", "low", "high", "p_delong", "p_bootstrap"]].tolist() == [0, 0, 0, 1, 1]
    assert "without a difference" in same["note"]


def test_one_class_is_a_reason_and_no_test_and_does_not_weigh_on_the_family(table):
    none = one(table, A, B, "controls")
    assert none["note"] == "one class only in test: 6 controls, no case: no AUC"
    assert none[["difference", "low", "p_delong", "p_holm"]].isna().all()
    tested = table.dropna(subset="p_delong")
    assert len(tested) == 9
    assert tested["p_holm"].to_numpy(float) == pytest.approx(holm(tested["p_delong"].to_numpy(float)))


def test_holm_can_be_over_the_comparisons_of_a_client(cells, table):
    by_client = compare_cells(cells, clients=CLIENTS, resamples=800, family="client")
    for _, rows in by_client.dropna(subset="p_delong").groupby("client"):
        assert rows["p_holm"].to_numpy(float) == pytest.approx(holm(rows["p_delong"].to_numpy(float)))
    pd.testing.assert_frame_equal(by_client.drop(columns="p_holm"), table.drop(columns="p_holm"))


def test_a_reference_or_pairs_choose_rows_and_leave_their_numbers(cells, table):
    against = compare_cells(cells, clients=CLIENTS, resamples=800, reference=C)
    assert set(against["cell_b"]) == {"/".join(C)}
    columns = ["difference", "low", "high", "p_delong", "p_bootstrap"]
    for cell in (A, B):
        assert one(against, cell, C, "pooled")[columns].tolist() == one(table, cell, C, "pooled")[columns].tolist()
    turned = compare_cells(cells, clients=CLIENTS, resamples=800, pairs=[(B, A)])
    assert one(turned, B, A, "north")["difference"] == -one(table, A, B, "north")["difference"]
    assert one(turned, B, A, "north")["p_delong"] == one(table, A, B, "north")["p_delong"]


def test_scores_of_different_models_and_few_subjects_are_noted(table, cells):
    assert "scores of different models" in one(table, A, C, "pooled")["note"]
    assert pd.isna(one(table, A, B, "pooled")["note"])
    few = {cell: {0: predictions(seed, 1.0, ((9, 1), (4, 3), (2, 0)))} for seed, cell in enumerate((A, B))}
    table = compare_cells(few, clients=CLIENTS, resamples=200)
    assert one(table, A, B, "north")["note"] == (
        "1 case and 9 controls only: no test, and limits that leave out that class"
    )
    assert one(table, A, B, "north")[["p_delong", "p_bootstrap", "p_holm"]].isna().all()
    assert one(table, A, B, "south")["note"] == "3 cases and 4 controls only: p-values and limits are rough"


def test_other_metrics_have_the_bootstrap_alone(cells):
    for metric in ("brier", "balanced_accuracy"):
        table = compare_cells(cells, clients=CLIENTS, resamples=300, metric=metric, method="bca")
        assert table["p_delong"].isna().all()
        row = one(table, A, B, "north")
        assert row["low"] < row["difference"] < row["high"]
        assert pd.notna(row["p_holm"])


def test_a_score_that_is_missing_is_a_note_of_its_pairs_only(cells):
    broken = cells[B][0].copy()
    broken.loc[0, "score"] = pd.NA
    table = compare_cells({**cells, B: {0: broken}}, clients=CLIENTS, resamples=100)
    assert one(table, A, B, "north")["note"] == "linear/frozen/fedce: no AUC on these scans"
    assert pd.notna(one(table, A, C, "north")["difference"])
    assert pd.notna(one(table, A, B, "south")["difference"])


def test_persons_are_the_units(cells):
    """South repeats north under other ids: where the split says so, the pooled interval is north's own."""
    frames = {}
    for cell in (A, B):
        north = cells[cell][0].query("cohort == 'north'")
        frames[cell] = {0: pd.concat([north, north.assign(cohort="south")])}
    own = frames[A][0][["cohort", "subject", "label"]].assign(split="test", person="p/" + frames[A][0]["subject"])
    table = compare_cells(frames, clients=CLIENTS[:2], resamples=400, splits=own[list(SPLITS)].astype(SPLITS))
    columns = ["difference", "low", "high", "p_delong", "p_bootstrap", "subjects"]
    assert one(table, A, B, "pooled")[columns].tolist() == pytest.approx(one(table, A, B, "north")[columns].tolist())


def test_what_does_not_fit_is_refused_with_the_mend(cells):
    with pytest.raises(StudyError, match="linear/frozen/fedce was tested on other scans than linear/frozen/fedavg"):
        compare_cells({A: {0: cells[A][0]}, B: {0: cells[B][0].iloc[1:]}}, clients=CLIENTS)
    with pytest.raises(StudyError, match="no predictions of conv_s/full/fedavg"):
        compare_cells(cells, clients=CLIENTS, reference=("conv_s", "full", "fedavg"))
    with pytest.raises(ValueError, match="not both"):
        compare_cells(cells, clients=CLIENTS, reference=A, pairs=[(A, B)])
    with pytest.raises(ValueError, match="known: auc"):
        compare_cells(cells, clients=CLIENTS, metric="f1")
    with pytest.raises(ValueError, match="known: table, client"):
        compare_cells(cells, clients=CLIENTS, family="none")
    with pytest.raises(StudyError, match="rename it"):
        compare_cells(cells, clients=["pooled"])


def test_no_cells_or_one_give_an_empty_table_with_its_columns(cells):
    for few in ({}, {A: cells[A]}):
        empty = compare_cells(few, clients=CLIENTS)
        assert list(empty.columns) == list(COMPARISONS)
        assert empty.empty


def test_a_cell_without_a_client_says_so_there_and_in_the_pool_and_is_compared_elsewhere(cells):
    less = cells[B][0][cells[B][0]["cohort"] != "south"]
    south = cells[B][0].query("cohort == 'south'")["subject"].nunique()
    whole = compare_cells({A: {0: cells[A][0]}, B: {0: cells[B][0]}}, clients=CLIENTS, resamples=200)
    for pair in ({A: {0: cells[A][0]}, B: {0: less}}, {B: {0: less}, A: {0: cells[A][0]}}):
        table = compare_cells(pair, clients=CLIENTS, pairs=[(A, B)], resamples=200)
        pd.testing.assert_series_equal(
            table[table["client"] == "north"].iloc[0].drop("p_holm"),
            whole[whole["client"] == "north"].iloc[0].drop("p_holm"),
            check_names=False,
        )
        for client, reason in (
            ("south", f"{south} test subjects, but no model"),
            ("pooled", "without south, which has no model"),
        ):
            (row,) = table[table["client"] == client].to_dict("records")
            assert row["note"].startswith(f"linear/frozen/fedce: {reason}")
            assert pd.isna(row["difference"])
            assert row["value_a"] == whole.loc[whole["client"] == client, "value_a"].item()
