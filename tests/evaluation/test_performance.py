import numpy as np
import pandas as pd
import pytest

from fedbrain.errors import StudyError
from fedbrain.evaluation.baseline import CELL, site_only, with_baseline
from fedbrain.evaluation.bootstrap import auc_interval, seed_mean_interval
from fedbrain.evaluation.calibration import calibration_slope
from fedbrain.evaluation.comparison import delong_interval, score_interval
from fedbrain.evaluation.metrics import auc
from fedbrain.evaluation.performance import ROWS, performance
from fedbrain.evaluation.predictions import read_runs
from fedbrain.tables import PERFORMANCE, PREDICTIONS, SPLITS, read_table, write_table

CLIENTS = ["north", "south", "controls", "empty"]


def scans_of(cohort, labels):
    return [(cohort, f"{number:03d}", pd.NA, label) for number, label in enumerate(labels)]


def predictions(seed=0):
    rows = scans_of("north", [0] * 12 + [1] * 8) + scans_of("south", [0] * 6 + [1] * 9) + scans_of("controls", [0] * 5)
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    score = np.random.default_rng(seed).normal(size=len(frame)) + frame["label"].to_numpy(float)
    return frame.assign(score=1 / (1 + np.exp(-score))).astype(PREDICTIONS)


def splits():
    rows = [("north", 3, 1), ("south", 1, 3), ("controls", 4, 0)]  # training controls, training cases
    frame = pd.concat(
        pd.DataFrame({"cohort": cohort, "label": [0] * controls + [1] * cases, "split": "train"})
        for cohort, controls, cases in rows
    )
    test = predictions()[["cohort", "subject", "label"]].assign(split="test")
    frame = pd.concat([frame.assign(subject=[f"t{i}" for i in range(len(frame))]), test])
    return frame.assign(person=frame["cohort"] + "/" + frame["subject"])[list(SPLITS)].astype(SPLITS)


def row(table, client, metric="auc", **cell):
    chosen = (table["client"] == client) & (table["metric"] == metric)
    for name, value in cell.items():
        chosen &= table[name] == value
    assert chosen.sum() == 1
    return table[chosen].iloc[0]


FEDAVG = ("linear", "frozen", "fedavg")


@pytest.fixture(scope="module")
def table():
    seeds = {seed: predictions(seed) for seed in range(3)}
    cells = {FEDAVG: seeds, ("linear", "frozen", "local"): seeds}
    return performance(cells, clients=CLIENTS, resamples=500, splits=splits())


def test_every_cell_has_every_client_and_metric_and_survives_the_disk(table, tmp_path):
    assert list(table.columns) == list(PERFORMANCE)
    assert len(table) == 3 * (len(CLIENTS) + 1) * len(ROWS)
    write_table(table, tmp_path / "performance.tsv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "performance.tsv", PERFORMANCE), table)


def test_a_client_row_is_the_interval_of_its_own_subjects_over_all_seeds(table):
    frames = [predictions(seed).query("cohort == 'north'") for seed in range(3)]
    labels, subjects = frames[0]["label"].to_numpy(int), frames[0]["subject"].to_numpy(str)
    scores = [frame["score"].to_numpy(float) for frame in frames]
    expected = seed_mean_interval(auc, labels, scores, subjects, resamples=500)
    found = row(table, "north", aggregation="fedavg")
    assert tuple(found[["value", "low", "high", "seed_sd"]]) == pytest.approx(expected[:4])
    assert found[["seeds", "subjects", "positives", "negatives"]].tolist() == [3, 20, 8, 12]
    assert pd.isna(found["note"])


def test_the_auc_stands_again_with_an_interval_that_needs_no_resampling():
    frame = predictions()
    found = performance({FEDAVG: {0: frame}}, clients=CLIENTS, resamples=50)
    north = frame.query("cohort == 'north'")
    expected = delong_interval(north["label"].to_numpy(int), north["score"].to_numpy(float))
    columns = ["value", "low", "high"]
    assert tuple(row(found, "north", "auc_delong")[columns]) == pytest.approx(expected)
    assert pd.isna(row(found, "north", "auc_delong")["note"])
    apart = frame.assign(score=0.3 + 0.4 * frame["label"])
    separated = row(performance({FEDAVG: {0: apart}}, clients=CLIENTS, resamples=50), "north", "auc_delong")
    assert tuple(separated[columns]) == (1, *score_interval(1, 8, 12))
    assert separated["note"] == "complete separation: interval of Newcombe, from the counts"


def test_a_calibration_slope_has_a_value_or_a_reason():
    frame = predictions()
    labels, scores = frame["label"].to_numpy(int), frame["score"].to_numpy(float)
    separated = frame.assign(score=0.3 + 0.4 * frame["label"])
    found, without = (performance({FEDAVG: {0: table}}, clients=CLIENTS, resamples=300) for table in (frame, separated))
    pooled = row(found, "pooled", "calibration_slope")
    assert pooled["value"] == pytest.approx(calibration_slope(labels, scores))
    assert pooled["low"] < pooled["value"] < pooled["high"]
    none = row(without, "pooled", "calibration_slope")
    assert none[["value", "low", "high"]].isna().all()
    assert none["note"] == "the score separates cases from controls: the calibration slope has no finite value"


def test_the_same_id_in_two_cohorts_is_two_subjects(table):
    assert row(table, "pooled", aggregation="fedavg")[["subjects", "positives"]].tolist() == [40, 17]


def test_missing_values_say_why_in_words_and_are_never_a_half(table):
    found = row(table, "controls", aggregation="fedavg")
    assert found["note"] == "one class only in test: 5 controls, no case: no AUC"
    assert found[["value", "low", "high"]].isna().all()
    assert row(table, "controls", "specificity", aggregation="fedavg")["value"] >= 0
    assert row(table, "empty", aggregation="fedavg")["note"] == "no test subject: no AUC"
    assert (table["value"].notna() | table["note"].notna()).all()


def test_pooling_scores_of_different_models_is_noted(table):
    assert "scores of different models" in row(table, "pooled", aggregation="local")["note"]
    assert pd.isna(row(table, "north", aggregation="local")["note"])


def test_the_site_only_baseline_by_hand(table):
    scores = site_only(splits()).groupby("cohort")["score"].unique()
    assert {cohort: values.tolist() for cohort, values in scores.items()} == {
        "north": [0.25],
        "south": [0.75],
        "controls": [0.0],
    }
    # Cases: 8 north, 9 south. Controls: 12 north, 6 south, 5 controls. Ties within a cohort count one half.
    won = 8 * (5 + 12 / 2) + 9 * (5 + 12 + 6 / 2)
    assert row(table, "pooled", head="site_only")["value"] == pytest.approx(won / (17 * 23))
    assert row(table, "north", head="site_only")["value"] == 0.5
    assert "knows the site only" in row(table, "north", head="site_only")["note"]


def test_the_site_only_baseline_scores_the_scans_it_is_given_and_cohorts_without_training():
    scans = predictions().iloc[[0, 0, 25]].assign(session=["1", "2", "1"], cohort=["north", "north", "new"])
    scored = site_only(splits(), scans)
    assert scored["session"].tolist() == ["1", "2", "1"]
    assert scored["score"].tolist() == [0.25, 0.25, pytest.approx(4 / 12)]


def test_the_scans_of_a_subject_move_together():
    once = predictions()
    twice = pd.concat([once.assign(session=name) for name in ("1", "2")])
    tables = [
        performance({FEDAVG: {0: frame}}, clients=CLIENTS, resamples=300).astype({"value": float})
        for frame in (once, twice)
    ]
    pd.testing.assert_frame_equal(*tables)


def linked(splits, south, north):
    """The split with one subject of south being a person of north."""
    same = (splits["cohort"] == "south") & (splits["subject"] == south)
    assert same.sum() == 1
    return splits.assign(person=splits["person"].mask(same, north))


def test_a_person_in_two_cohorts_is_one_subject_of_the_pool_and_one_of_each_client():
    frame = predictions()
    apart, one, cases = (
        performance({FEDAVG: {0: frame}}, clients=CLIENTS, resamples=200, splits=table)
        for table in (splits(), linked(splits(), "003", "north/003"), linked(splits(), "008", "north/013"))
    )
    counts = ["subjects", "positives", "negatives"]
    assert row(apart, "pooled", head="linear")[counts].tolist() == [40, 17, 23]
    assert row(one, "pooled", head="linear")[counts].tolist() == [39, 17, 22]
    assert row(cases, "pooled", head="linear")[counts].tolist() == [39, 16, 23]
    for client, expected in (("north", [20, 8, 12]), ("south", [15, 9, 6])):
        assert row(one, client, head="linear")[counts].tolist() == expected
    values = ["value", "seeds", "note"]  # the scans are what they were
    pd.testing.assert_frame_equal(one[values], apart[values])


def test_scans_of_a_person_in_two_cohorts_move_together_in_the_pool():
    """South repeats north: linked, the pooled interval is north's own; taken for further subjects, it is narrower."""
    north = predictions().query("cohort == 'north'")
    frame = pd.concat([north, north.assign(cohort="south")])
    own = frame[["cohort", "subject", "label"]].assign(split="test", person="north/" + frame["subject"])
    own = own[list(SPLITS)].astype(SPLITS)
    found = performance({FEDAVG: {0: frame}}, clients=["north", "south"], resamples=500, splits=own)
    columns = ["value", "low", "high", "subjects", "positives", "negatives"]
    pooled, alone = (row(found, client, head="linear")[columns].tolist() for client in ("pooled", "north"))
    assert pooled == pytest.approx(alone)
    unlinked = performance({FEDAVG: {0: frame}}, clients=["north", "south"], resamples=500)
    wide, narrow = (row(table, "pooled", head="linear") for table in (found, unlinked))
    assert narrow["high"] - narrow["low"] < 0.9 * (wide["high"] - wide["low"])
    without = own.assign(person=own["person"].mask(own["cohort"] == "south"))  # n/a: a person of its own
    table = performance({FEDAVG: {0: frame}}, clients=["north", "south"], resamples=500, splits=without)
    assert row(table, "pooled", head="linear")[columns].tolist() == narrow[columns].tolist()


def test_one_case_and_complete_separation_are_noted():
    labels = {"north": [0, 0, 0, 1], "south": [0, 0, 1, 1]}
    rows = [scan for cohort, values in labels.items() for scan in scans_of(cohort, values)]
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    frame = frame.assign(score=0.2 + 0.6 * frame["label"]).astype(PREDICTIONS)
    table = performance({FEDAVG: {0: frame}}, clients=["north", "south"], resamples=50)
    assert row(table, "north")["note"].startswith("1 case only")
    assert "no width" in row(table, "south")["note"]


def test_resamples_that_lack_a_class_are_counted_in_the_note():
    rows = [("north", "001", "1", 0), ("north", "001", "2", 1), ("north", "002", "1", 1), ("north", "003", "1", 1)]
    frame = pd.DataFrame(rows, columns=["cohort", "subject", "session", "label"])
    frame = frame.assign(score=[0.3, 0.5, 0.2, 0.9]).astype(PREDICTIONS)
    note = row(performance({FEDAVG: {0: frame}}, clients=["north"], resamples=4000), "north")["note"]
    share = float(note.split("no value in ")[1].split("%")[0]) / 100
    assert share == pytest.approx((2 / 3) ** 3, abs=0.03)  # without 001 there is no control


def test_a_score_that_is_not_a_number_is_a_note_and_no_crash():
    frame = predictions()
    frame.loc[0, "score"] = pd.NA
    table = performance({FEDAVG: {0: frame}}, clients=CLIENTS, resamples=50)
    assert row(table, "north")["note"].startswith("1 scan without a finite score")
    assert row(table, "south")["value"] > 0


def test_cells_meet_the_same_resamples_whatever_the_order_of_their_rows():
    frame = predictions()
    cells = {FEDAVG: {0: frame}, ("conv_s", "frozen", "fedavg"): {0: frame.sample(frac=1, random_state=1)}}
    table = performance(cells, clients=CLIENTS, resamples=200)
    columns = ["client", "metric", "value", "low", "high"]
    first, second = (table.loc[table["head"] == head, columns].reset_index(drop=True) for head in ("linear", "conv_s"))
    pd.testing.assert_frame_equal(first, second)


def test_pooled_interval_is_over_all_subjects():
    frame = predictions()
    subjects = (frame["cohort"] + frame["subject"]).to_numpy(str)
    expected = auc_interval(frame["label"].to_numpy(int), frame["score"].to_numpy(float), subjects, resamples=4000)
    found = row(performance({FEDAVG: {0: frame}}, clients=CLIENTS, resamples=4000), "pooled")
    assert tuple(found[["value", "low", "high"]]) == pytest.approx(expected, abs=5e-3)


def test_tables_that_do_not_fit_are_refused_with_the_mend():
    frame = predictions()
    with pytest.raises(StudyError, match="linear/frozen/fedavg: seed 1 was tested on other scans than seed 0"):
        performance({FEDAVG: {0: frame, 1: frame.iloc[1:]}}, clients=CLIENTS)
    with pytest.raises(StudyError, match="two predictions"):
        performance({FEDAVG: {0: pd.concat([frame, frame.iloc[:1]])}}, clients=CLIENTS)
    with pytest.raises(StudyError, match="cohort south, which is not among the clients"):
        performance({FEDAVG: {0: frame}}, clients=["north", "controls"])
    with pytest.raises(StudyError, match="rename it"):
        performance({FEDAVG: {0: frame}}, clients=["pooled"])


def test_no_cells_give_an_empty_table_with_its_columns():
    empty = performance({}, clients=CLIENTS)
    assert list(empty.columns) == list(PERFORMANCE)
    assert empty.empty


def test_the_baseline_stands_on_the_scans_of_the_cell_that_has_most():
    every = predictions()
    few = every[every["cohort"] != "south"]
    both = with_baseline({("linear", "frozen", "local"): {0: few}, FEDAVG: {0: every}}, splits())
    assert list(both)[-1] == CELL
    assert len(both[CELL][0]) == len(every)
    assert with_baseline({}, splits()) == {}


def test_runs_are_read_by_cell_and_seed(tmp_path):
    paths = [tmp_path / f"{seed}.tsv" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_table(predictions(seed), path)
    read = read_runs([[*FEDAVG, 0], [*FEDAVG, 4], ["conv_s", "frozen", "local", 0]], paths)
    assert {cell: list(by_seed) for cell, by_seed in read.items()} == {
        FEDAVG: [0, 4],
        ("conv_s", "frozen", "local"): [0],
    }
    pd.testing.assert_frame_equal(read[FEDAVG][4], read_table(paths[1], PREDICTIONS))


def test_an_external_cohort_has_its_rows_and_no_part_in_pooled():
    """Its scores are turned round, so that a pooled number with it would show."""
    inside = predictions()
    outside = inside.query("cohort == 'north'").assign(cohort="away", score=lambda t: 1 - t["score"])
    everything = pd.concat([inside, outside], ignore_index=True).astype(PREDICTIONS)
    away = outside[["cohort", "subject", "label"]].assign(split="test", person=outside["cohort"] + outside["subject"])
    known = pd.concat([splits(), away]).astype(SPLITS)
    cells = {FEDAVG: {0: everything}, ("linear", "frozen", "local"): {0: inside}}
    options = {"resamples": 200, "clients": [*CLIENTS, "away"]}
    table = performance(cells, splits=known, **options)
    alone = performance({FEDAVG: {0: inside}}, splits=splits(), **options)
    found, expected = (
        of[(of["client"] == "pooled") & (of["aggregation"] == "fedavg")].reset_index(drop=True) for of in (table, alone)
    )
    pd.testing.assert_frame_equal(found, expected)
    north, turned = (row(table, client, aggregation="fedavg") for client in ("north", "away"))
    assert turned["value"] == pytest.approx(1 - north["value"])
    local = row(table, "away", aggregation="local")
    assert pd.isna(local["value"])
    assert "no model for them" in local["note"]
    assert row(table, "empty", aggregation="local")["note"] == "no test subject: no AUC"
    assert row(table, "away", head="site_only")["subjects"] == 20  # scored with the share of all cohorts
