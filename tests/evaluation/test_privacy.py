import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from fedbrain.errors import StudyError
from fedbrain.evaluation.bootstrap import auc_interval
from fedbrain.evaluation.privacy import ROWS, privacy
from fedbrain.tables import MEMBERS, SPLITS

RUN = (("linear", "frozen", "fedavg"), 0)
SHADOWS = 6


def tables(counts, *, shift=1.0, scans=1, seed=0):
    """The released model's table and those of shadow models; scans of members have a logit that is ``shift`` higher.

    counts: members and non-members of each cohort.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {"cohort": cohort, "subject": f"s{number:03d}", "session": f"{scan}", "member": int(number < members)}
        for cohort, (members, others) in counts.items()
        for number in range(members + others)
        for scan in range(scans)
    ]
    scans_of = pd.DataFrame(rows)
    hard = scans_of.groupby(["cohort", "subject"]).ngroup().map(dict(enumerate(rng.normal(0, 3, len(rows)))))
    result = []
    for model in range(SHADOWS + 1):
        table = scans_of.copy()
        if model:
            subjects = scans_of[["cohort", "subject"]].drop_duplicates()
            chosen = subjects.assign(member=(np.arange(len(subjects)) + model) % 2)
            table = table.drop(columns="member").merge(chosen, on=["cohort", "subject"])
        table["logit"] = hard + shift * table["member"] + rng.normal(0, 0.5, len(table))
        result.append(table[list(MEMBERS)].astype(MEMBERS))
    return result[0], result[1:]


def audit(counts, clients=None, splits=None, **options):
    released, shadows = tables(counts, **options)
    return privacy({RUN: released}, {RUN: shadows}, clients=clients or list(counts), splits=splits, resamples=300)


def test_each_client_and_all_together_have_each_attack_and_metric():
    table, curves = audit({"a": (30, 20), "b": (25, 25)})
    assert list(table["metric"]) == list(ROWS) * 6
    assert list(dict.fromkeys(zip(table["client"], table["attack"]))) == [
        (client, attack) for client in ("a", "b", "pooled") for attack in ("loss", "lira")
    ]
    assert dict(zip(table["client"], zip(table["members"], table["nonmembers"])))["pooled"] == (55, 45)
    assert set(zip(table["attack"], table["shadows"])) == {("loss", 0), ("lira", SHADOWS)}
    assert set(curves["client"]) == {"a", "b", "pooled"}


def test_the_loss_attack_is_the_auc_of_the_logits_and_the_ratio_that_of_the_two_densities():
    counts = {"a": (30, 20), "b": (25, 25)}
    released, shadows = tables(counts)
    table, _ = audit(counts)
    rows = table[table["metric"] == "auc"].set_index(["client", "attack"])["value"].astype(float)
    ratios = []
    for cohort in counts:
        own = released["cohort"] == cohort
        member, logit = released.loc[own, "member"].to_numpy(int), released.loc[own, "logit"].to_numpy(float)
        assert rows[cohort, "loss"] == pytest.approx(roc_auc_score(member, logit))
        under = np.array([shadow.loc[own, "logit"].to_numpy(float) for shadow in shadows])
        inside = np.array([shadow.loc[own, "member"].to_numpy(int) for shadow in shadows]) == 1
        density = []
        for chosen in (inside, ~inside):
            parts = [under[chosen[:, n], n] for n in range(len(logit))]
            spread = np.sqrt(np.mean([part.var(ddof=1) for part in parts]))
            density.append(norm.logpdf(logit, [part.mean() for part in parts], spread))
        ratios.append(density[0] - density[1])
        assert rows[cohort, "lira"] == pytest.approx(roc_auc_score(member, ratios[-1]))
    assert rows["pooled", "lira"] == pytest.approx(roc_auc_score(released["member"], np.concatenate(ratios)))
    assert (
        rows["pooled", "loss"] + 0.1 < rows["pooled", "lira"]
    )  # scans differ in how hard they are, three times the shift


def test_intervals_are_over_subjects_with_all_their_scans_and_persons_count_once():
    counts = {"a": (30, 20)}
    table, _ = audit(counts, scans=3)
    released, _ = tables(counts, scans=3)
    row = table[(table["attack"] == "loss") & (table["metric"] == "auc")].iloc[0]
    members, logits, subjects = released["member"], released["logit"].astype(float), released["subject"]
    expected = auc_interval(members, logits, "a/" + subjects, resamples=300)
    assert tuple(row[["value", "low", "high"]]) == pytest.approx(expected)
    rows = [
        {"cohort": "a", "subject": f"s{n:03d}", "person": f"p{n // 2}", "label": 0, "split": "test"} for n in range(50)
    ]
    table, _ = audit(counts, splits=pd.DataFrame(rows).astype(SPLITS))
    assert set(zip(table["members"], table["nonmembers"])) == {(15, 10)}


def test_a_rate_of_one_percent_has_a_value_from_a_hundred_non_members_on():
    few, _ = audit({"a": (60, 20)})
    enough, _ = audit({"a": (60, 100)})
    for table, told in ((few, False), (enough, True)):
        rows = table[(table["client"] == "a") & (table["attack"] == "lira")].set_index("metric")
        assert rows.loc["tpr_at_fpr_0.01", "fpr"] == 0.01
        assert pd.notna(rows.loc["tpr_at_fpr_0.01", "value"]) == told
        assert ("20 non-members: a false-positive rate below 0.05 cannot be told" in str(rows["note"].iloc[2])) != told
        assert rows.loc["tpr_at_least_fpr", "fpr"] == 1 / (100 if told else 20)
        assert rows.loc["tpr_at_least_fpr", "note"].startswith("few non-members set the threshold")
        assert 0 <= rows.loc["tpr_at_least_fpr", "low"] <= rows.loc["tpr_at_least_fpr", "value"] <= 1


def test_clients_without_members_or_non_members_say_so_and_are_no_part_of_the_pooled():
    table, curves = audit({"a": (30, 20), "b": (9, 0)}, clients=["a", "b", "outside"])
    notes = table.drop_duplicates("client").set_index("client")["note"]
    assert "no test subject" in notes["b"]
    assert "no subject of it trains" in notes["outside"]
    assert table.loc[table["client"].isin(["b", "outside"]), "value"].isna().all()
    assert set(table.loc[table["client"] == "pooled", "members"]) == {30}
    assert set(curves["client"]) == {"a", "pooled"}


def test_scans_without_shadow_logits_have_no_value_rather_than_a_wrong_one():
    released, shadows = tables({"a": (30, 20)})
    shadows = [shadow[shadow["subject"] != "s000"] for shadow in shadows]
    table, _ = privacy({RUN: released}, {RUN: shadows}, clients=["a"], resamples=300)
    rows = table[(table["client"] == "a") & (table["metric"] == "auc")].set_index("attack")
    assert pd.notna(rows.loc["loss", "value"])
    assert pd.isna(rows.loc["lira", "value"])
    assert rows.loc["lira", "note"].startswith("1 scan without a score")


def test_a_scan_that_stands_twice_and_an_unknown_cohort_are_told():
    released, shadows = tables({"a": (3, 3)})
    with pytest.raises(StudyError, match="shadow 1: a scan stands twice"):
        privacy({RUN: released}, {RUN: [shadows[0], pd.concat([shadows[1], shadows[1]])]}, clients=["a"])
    with pytest.raises(StudyError, match="not among the clients"):
        privacy({RUN: released}, {RUN: shadows}, clients=["b"])
