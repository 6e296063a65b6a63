import numpy as np
import pandas as pd
import pytest

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import interval, intervals
from fedbrain.evaluation.metrics import auc, sensitivity, specificity
from fedbrain.evaluation.subgroups import SUBGROUPS, age_band, field_band, rate_difference, subgroups, within
from fedbrain.tables import PREDICTIONS, SCANS, read_table, write_table

CELL = ("linear", "frozen", "fedavg")
CLIENTS = ["north", "south", "empty"]


def cohort(name, seed, subjects=60):
    """Predictions and scan table of one cohort; every sixth subject has a second session six years later."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(subjects):
        sex, age, label = ("F", "M")[number % 2], float(58 + number % 29), int(rng.random() < 0.5)
        for session in ("1", "2") if number % 6 == 0 else ("1",):
            score = 1 / (1 + np.exp(-(2 * label - 1 + rng.normal())))
            age_then = age + 6 * (session == "2")
            rows.append((name, f"{number:03d}", session, label, score, age_then, sex, f"s{number % 3}"))
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label", "score", "age", "sex", "site"])
    missing = {name: pd.NA for name in SCANS if name not in frame}
    return frame[list(PREDICTIONS)].astype(PREDICTIONS), frame.assign(**missing)[list(SCANS)].astype(SCANS)


@pytest.fixture(scope="module")
def study():
    parts = {name: cohort(name, seed) for seed, name in enumerate(CLIENTS[:2])}
    return pd.concat(part[0] for part in parts.values()), {name: part[1] for name, part in parts.items()}


@pytest.fixture(scope="module")
def table(study):
    predictions, tables = study
    return subgroups({CELL: {0: predictions}}, tables, clients=CLIENTS, resamples=400)


def one(table, client, group, metric):
    chosen = table[(table["client"] == client) & (table["group"] == group) & (table["metric"] == metric)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_age_bands_hold_their_lower_edge_and_missing_ages_are_a_band_of_their_own():
    bands = age_band([64.9, 65, 74.99, 75, np.nan, 40])
    assert bands.tolist() == ["under 65", "65 to 74", "65 to 74", "75 and over", "unknown", "under 65"]
    assert age_band([60.2, 60.7], [60.5]).tolist() == ["under 60.5", "60.5 and over"]
    with pytest.raises(ValueError, match="rising"):
        age_band([1], [70, 60])


def test_scanners_and_nominal_field_strengths_are_groups_across_cohorts(study):
    assert field_band([2.89362, 1.494, 3, 0.55, 7, np.nan]).tolist() == [
        "3 T",
        "1.5 T",
        "3 T",
        "0.55 T",
        "7 T",
        "unknown",
    ]
    predictions, tables = study
    tables = {
        name: table.assign(
            field_strength=[1.5, 2.9, pd.NA] * (len(table) // 3) + [3.0] * (len(table) % 3), scanner=maker
        )
        for (name, table), maker in zip(tables.items(), ("GE Signa", pd.NA))
    }
    table = subgroups(
        {CELL: {0: predictions}}, tables, clients=CLIENTS, attributes=["field_strength", "scanner"], resamples=100
    )
    pooled = table[(table["client"] == "pooled") & (table["metric"] == "auc")].set_index("group")
    assert sorted(pooled.index) == ["1.5 T", "3 T", "GE Signa", "unknown", "unknown"]
    scans = pooled["scans"]
    assert scans["1.5 T"] + scans["3 T"] + scans["unknown"].iloc[0] == len(predictions)
    assert scans["GE Signa"] == len(tables["north"])


def test_the_table_has_its_columns_and_survives_the_disk(table, tmp_path):
    assert list(table.columns) == list(SUBGROUPS)
    write_table(table, tmp_path / "subgroups.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "subgroups.tsv", SUBGROUPS), table)


def test_groups_part_the_scans_of_a_client(table, study):
    predictions, _ = study
    for client, scans in (("north", (predictions["cohort"] == "north").sum()), ("pooled", len(predictions))):
        own = table[(table["client"] == client) & (table["metric"] == "auc")]
        assert own.groupby("attribute")["scans"].sum().to_dict() == {"age": scans, "sex": scans, "site": scans}
    assert set(table.loc[(table["client"] == "pooled") & (table["attribute"] == "site"), "group"]) == {
        f"{name}/s{number}" for name in ("north", "south") for number in range(3)
    }


def test_a_groups_value_and_interval_are_those_of_its_own_subjects(table, study):
    predictions, tables = study
    both = predictions.merge(tables["north"][["subject", "session", "sex"]], on=["subject", "session"])
    women = both[(both["cohort"] == "north") & (both["sex"] == "F")]
    labels, scores = women["label"].to_numpy(int), women["score"].to_numpy(float)
    expected = interval(auc, labels, scores, women["subject"].to_numpy(str), resamples=4000)
    found = one(table, "north", "F", "auc")
    assert found["value"] == pytest.approx(expected[0])
    # Other resamples of the same subjects in the same strata: equal up to Monte Carlo error.
    assert tuple(found[["low", "high"]]) == pytest.approx(expected[1:], abs=0.03)
    assert found["subjects"] == women["subject"].nunique()


def test_a_subject_with_a_birthday_between_sessions_is_in_two_bands(table, study):
    _, tables = study
    ages = tables["north"].assign(band=age_band(tables["north"]["age"].to_numpy(float)))
    bands = table[(table["client"] == "north") & (table["attribute"] == "age") & (table["metric"] == "auc")]
    assert bands["subjects"].sum() == ages.drop_duplicates(["subject", "band"]).shape[0] > 60


def test_differences_are_of_rates_against_the_largest_group(table):
    reference = one(table, "north", "M", "tpr_difference")["reference"]
    assert reference == "F"  # 30 of each sex: the first by name
    sensitivities = [one(table, "north", sex, "sensitivity")["value"] for sex in ("M", "F")]
    specificities = [one(table, "north", sex, "specificity")["value"] for sex in ("M", "F")]
    assert one(table, "north", "M", "tpr_difference")["value"] == pytest.approx(sensitivities[0] - sensitivities[1])
    assert one(table, "north", "M", "fpr_difference")["value"] == pytest.approx(specificities[1] - specificities[0])
    found = table[table["metric"].isin(["tpr_difference", "fpr_difference"])].dropna(subset="value")
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
    assert found["reference"].notna().all()


def test_the_interval_of_a_difference_of_independent_groups_is_that_of_two_samples():
    rng = np.random.default_rng(0)
    labels, inside = np.repeat([1, 0], [200, 100]), np.arange(300) % 2 == 0
    scores = rng.random(300)
    metric = rate_difference("tpr_difference", inside, ~inside)
    groups = np.where(inside, "a", "b")
    found = intervals({"d": metric}, labels, [scores], np.arange(300), groups=groups, resamples=4000)["d"]
    shares = [(scores[(labels == 1) & mask] >= 0.5).mean() for mask in (inside, ~inside)]
    se = np.sqrt(sum(share * (1 - share) / 100 for share in shares))
    assert found.value == pytest.approx(shares[0] - shares[1])
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(se, rel=0.08)
    assert rate_difference("fpr_difference", inside, ~inside)(labels, scores) == pytest.approx(
        specificity(labels[~inside], scores[~inside]) - specificity(labels[inside], scores[inside])
    )
    assert within(sensitivity, inside)(labels, scores) == shares[0]


def test_small_groups_are_marked_and_missing_ones_say_why(study):
    predictions, tables = study
    north = predictions.query("cohort == 'north'").iloc[:24]
    scans = tables["north"].copy()
    scans.loc[:3, "sex"] = pd.NA
    scans.loc[:2, "age"] = pd.NA
    scans["site"] = pd.NA
    labels = north["label"].where(scans["sex"].iloc[:24].ne("M").fillna(True).to_numpy(bool), 0)
    found = subgroups(
        {CELL: {0: north.assign(label=labels)}}, {"north": scans}, clients=["north", "south"], resamples=100
    )
    assert one(found, "north", "M", "auc")["note"].endswith("no case: no AUC")
    assert "in M" in one(found, "north", "M", "auc")["note"]
    assert one(found, "north", "F", "fpr_difference")["reference"] == "M"  # the largest, also where it lacks a class
    assert pd.notna(one(found, "north", "F", "fpr_difference")["value"])
    assert one(found, "north", "F", "tpr_difference")["note"] == "no case in M: no rate to compare"
    unknown = found[(found["client"] == "north") & (found["group"] == "unknown") & (found["metric"] == "specificity")]
    assert unknown.set_index("attribute")["scans"].to_dict() == {"sex": 4, "age": 3}
    assert one(found, "north", "north/unknown", "auc")["scans"] == 24  # all sites missing: one group, no difference
    assert not (found.loc[found["attribute"] == "site", "metric"].isin(["tpr_difference"])).any()
    assert "a description, no evidence" in one(found, "north", "F", "auc")["note"]
    assert found.loc[found["client"] == "south", "note"].eq("no test subject: no group").all()


def test_a_missing_score_is_a_note(study):
    predictions, tables = study
    broken = predictions.reset_index(drop=True)
    broken.loc[0, "score"] = pd.NA
    found = subgroups({CELL: {0: broken}}, tables, clients=CLIENTS, attributes=["sex"], resamples=50)
    assert "finite score" in one(found, "north", "F", "auc")["note"]
    assert pd.notna(one(found, "south", "F", "auc")["value"])


def test_what_does_not_fit_is_refused(study):
    predictions, tables = study
    cells = {CELL: {0: predictions}}
    with pytest.raises(StudyError, match="no scan table of cohort south"):
        subgroups(cells, {"north": tables["north"]}, clients=CLIENTS)
    with pytest.raises(StudyError, match="1 predicted scan of north not in the scan table"):
        subgroups(cells, tables | {"north": tables["north"].iloc[1:]}, clients=CLIENTS)
    with pytest.raises(ValueError, match="known: sex, age, site"):
        subgroups(cells, tables, clients=CLIENTS, attributes=["race"])
    with pytest.raises(ValueError, match="known: auc"):
        subgroups(cells, tables, clients=CLIENTS, metrics=["f1"])
