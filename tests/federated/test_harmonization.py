"""Harmonized embeddings: fitted on first scans of training subjects, applied to channel means, with nothing copied or leaked."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_clients import make_client

from fedbrain.errors import StudyError
from fedbrain.federated.cell import train_cell
from fedbrain.federated.combat import adjustment, affine, pooled_estimates, site_sums
from fedbrain.federated.data import Rows, pool, pool_clients
from fedbrain.federated.harmonization import ComBat, channel_features
from fedbrain.tables import SCANS

SHAPE = (384, 2, 2, 2)
SIDES = ("train", "validation", "test")


@pytest.fixture
def clients():
    """Three clients, the second shifted and spread by channel."""
    result = {}
    for k, (name, count) in enumerate([("A", 12), ("B", 8), ("C", 5)]):
        client = make_client(name, count, seed=k, shape=SHAPE, effect=0.1)
        if name == "B":
            client = replace(client, **{side: moved(getattr(client, side)) for side in SIDES})
        result[name] = client
    return result


def moved(samples):
    channels = torch.linspace(-1, 1, SHAPE[0]).view(-1, 1, 1, 1)
    return replace(samples, x=(samples.x.float() * (2 + channels) + 3 * channels).half())


def scan_tables(clients):
    """Ages and sexes that differ within and between clients."""
    result = {}
    for place, (name, client) in enumerate(clients.items()):
        ids = [scan for side in SIDES for scan in getattr(client, side).scans]
        subjects = [subject for side in SIDES for subject in getattr(client, side).subjects]
        table = pd.DataFrame({"scan": ids, "subject": subjects})
        table["age"] = 60.0 + 5 * place + np.arange(len(ids)) % 7
        table["sex"] = np.where(np.arange(len(ids)) % 3 == 0, "F", "M")
        result[name] = table.reindex(columns=list(SCANS)).astype(SCANS)
    return result


def read(samples):
    return samples.x[torch.arange(len(samples))]


def test_features_are_mean_and_deviation_over_positions():
    x = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[0.0, 4.0], [-1.0, 1.0]]]).view(2, 2, 2, 1, 1)
    means, spreads = channel_features(x)
    assert means.tolist() == [[2, 5], [2, 0]]
    assert spreads.tolist() == [[1, 0], [2, 1]]
    many = torch.randn(37, 3, 2, 2, 2)
    assert np.allclose(channel_features(many)[0], many.double().mean((2, 3, 4)))


@pytest.mark.parametrize("covariates", [(), ("age", "sex")])
def test_what_is_read_is_combat_of_the_channel_means(clients, covariates):
    tables = scan_tables(clients)
    combat, _ = ComBat.fit(clients, tables, covariates=covariates)
    after = combat.apply(clients, tables)
    x = {}
    for name, client in clients.items():
        own = tables[name].set_index("scan").loc[list(client.train.scans)]
        columns = {"age": own["age"].to_numpy(float), "sex": (own["sex"] == "F").to_numpy(float)}
        x[name] = np.column_stack([columns[c] for c in covariates]) if covariates else np.empty((len(own), 0))
    sums = {name: site_sums(channel_features(client.train.x)[0], x[name]) for name, client in clients.items()}
    pooled = pooled_estimates(list(sums.values()))
    for name, client in clients.items():
        gain, shift = affine(pooled, adjustment(sums[name], pooled), x[name])
        before = read(client.train).double().numpy()
        means = before.mean((2, 3, 4))
        expected = before + (gain * means + shift - means)[..., None, None, None]
        found = read(after[name].train)
        assert found.dtype == torch.float16
        assert np.abs(found.double().numpy() - expected).max() < 2e-3 * np.abs(expected).max()  # float16
        spreads = channel_features(client.train.x)[1], channel_features(after[name].train.x)[1]
        assert np.abs(spreads[0] - spreads[1]).max() < 4e-3  # the pattern over the positions stays
    between = np.ptp([channel_features(after[name].train.x)[0].mean(0) for name in clients], axis=0).mean()
    assert between < np.ptp([channel_features(clients[name].train.x)[0].mean(0) for name in clients], axis=0).mean() / 3


def test_labels_and_scans_that_are_held_out_have_no_part_in_the_fit(clients):
    tables = scan_tables(clients)
    combat, _ = ComBat.fit(clients, tables)
    other = {
        name: replace(
            client,
            train=replace(client.train, y=1 - client.train.y),
            validation=moved(client.validation),
            test=moved(client.test),
        )
        for name, client in clients.items()
    }
    again, _ = ComBat.fit(other, tables)
    assert np.array_equal(combat.pooled.mean, again.pooled.mean)
    assert all(np.array_equal(combat.clients[name].scale, again.clients[name].scale) for name in clients)


def test_a_subjects_first_scan_stands_for_it(clients):
    tables = scan_tables(clients)
    once, record = ComBat.fit(clients, tables)
    train = clients["A"].train
    places = torch.tensor([i for i in range(len(train)) for _ in range(1 + i % 3)])  # one to three scans a subject
    first = torch.cat([torch.tensor([True]), places[1:] != places[:-1]])
    x = train.x[places] + torch.where(first, 0.0, 5.0).view(-1, 1, 1, 1, 1).half()
    ids = tuple(f"{train.scans[i]}-{k}" for k, i in enumerate(places.tolist()))
    visits = replace(train, x=x, y=train.y[places], scans=ids, subjects=tuple(train.subjects[i] for i in places))
    several = clients | {"A": replace(clients["A"], train=visits)}
    twice, more = ComBat.fit(several, scan_tables(several))
    assert np.allclose(once.clients["A"].location, twice.clients["A"].location)
    assert list(record["subjects"]) == list(more["subjects"]) == [12, 8, 5]


def test_what_is_written_is_read_and_the_bytes_are_the_same_each_time(clients, tmp_path):
    tables = scan_tables(clients)
    combat, record = ComBat.fit(clients, tables, covariates=["age"])
    combat.write(tmp_path / "a")
    combat.write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = ComBat.read(tmp_path / "a")
    one, two = combat.apply(clients, tables)["B"], again.apply(clients, tables)["B"]
    assert torch.equal(read(one.test), read(two.test))
    assert one.origin == two.origin
    assert (
        one.origin["harmonization"]
        != ComBat.fit(clients, tables)[0].apply(clients, tables)["B"].origin["harmonization"]
    )
    # n; means of features and age; squares of features; squares of age; products: by hand
    assert set(record["numbers_up"]) == {1 + 384 + 1 + 384 + 1 + 384}
    assert set(record["bytes_down"]) == {8 * (384 + 384 + 384)}
    assert (
        record.loc[record["client"] == "B", "location"].item() > record.loc[record["client"] == "A", "location"].item()
    )
    (tmp_path / "c").write_bytes(b"nonsense")
    with pytest.raises(StudyError, match="not a readable harmonization"):
        ComBat.read(tmp_path / "c")


def test_rows_keep_their_maps_when_they_are_sliced_pooled_and_moved():
    x = torch.arange(12.0).view(3, 2, 2).half()
    rows = Rows(list(x)).with_means(np.array([2.0, 1.0]), np.array([[0.0, 1.0], [0.0, 2.0], [10.0, 3.0]]))
    expected = x.clone()
    expected[:, 0] += x[:, 0].mean(1, keepdim=True)  # twice the mean, the same pattern
    expected[:, 1] += torch.tensor([1.0, 2.0, 3.0])[:, None]
    expected[2, 0] += 10
    assert torch.equal(rows[torch.tensor([2, 0])], expected[[2, 0]])
    assert torch.equal(rows[1:][torch.tensor([0, 1])], expected[1:])
    joined = Rows.joined([x[:1], rows, Rows(list(x[1:]))])
    assert torch.equal(joined[torch.arange(6)], torch.cat([x[:1], expected, x[1:]]))
    assert torch.equal(joined.to("cpu")[torch.tensor([3])], expected[2:])


def test_refusals_name_cohort_and_mend(clients):
    tables = scan_tables(clients)
    small = clients | {"C": make_client("C", 2, seed=9, shape=SHAPE)}
    with pytest.raises(StudyError, match="cohort C: 2 training subjects, and ComBat needs 3"):
        ComBat.fit(small, scan_tables(small))
    tables["B"].loc[:1, "sex"] = "O"
    tables["B"].loc[:2, "age"] = pd.NA
    for covariate, count, wanted in (("sex", 2, "F or M"), ("age", 3, "a number")):
        with pytest.raises(StudyError, match=rf"cohort B: {covariate} of {count} scan\(s\) is not {wanted}"):
            ComBat.fit(clients, tables, covariates=[covariate])
    alike = scan_tables(clients)
    for table in alike.values():
        table["age"] = 70.0
    with pytest.raises(StudyError, match="covariates age: the covariates do not vary"):
        ComBat.fit(clients, alike, covariates=["age"])
    combat, _ = ComBat.fit({name: clients[name] for name in "AB"}, tables)
    with pytest.raises(StudyError, match="cohort C: its harmonization was fitted on other embeddings or without"):
        combat.apply(clients, tables)


def test_a_cell_trains_on_harmonized_embeddings_and_refuses_the_wrong_ones(clients, tmp_path):
    tables = scan_tables(clients)
    combat, _ = ComBat.fit(clients, tables)
    after = combat.apply(clients, tables)
    harmonized = {"kind": "frozen", "harmonization": "combat"}
    options = {"head": "linear", "aggregation": "fedavg", "training": {"rounds": 2, "batch_size": 4}, "seed": 1}
    summary = train_cell(after, tuning="combat", tuning_options=harmonized, folder=tmp_path / "on", **options)
    assert summary["harmonization"] == after["A"].origin["harmonization"]
    plain = {
        name: replace(client, **{side: replace(getattr(client, side), x=read(getattr(client, side))) for side in SIDES})
        for name, client in after.items()
    }
    train_cell(plain, tuning="combat", tuning_options=harmonized, folder=tmp_path / "eager", **options)
    for file in ("predictions.tsv", "model.safetensors"):
        assert (tmp_path / "on" / file).read_bytes() == (tmp_path / "eager" / file).read_bytes()
    assert len(pool_clients(list(after.values())).train.x) == 25
    with pytest.raises(StudyError, match="harmonization none, and the clients' embeddings are harmonized"):
        train_cell(after, tuning="frozen", folder=tmp_path / "no", **options)
    with pytest.raises(StudyError, match="harmonization combat, and the clients' embeddings are not harmonized"):
        train_cell(clients, tuning="combat", tuning_options=harmonized, folder=tmp_path / "no", **options)


def without_sides(client):
    """The client as one that trains nothing: all its scans are test scans."""
    whole = pool([client.train, client.validation, client.test])
    return replace(client, train=whole_of(whole, 0), validation=whole_of(whole, 0), test=whole)


def whole_of(samples, count):
    return replace(
        samples, x=samples.x[:count], y=samples.y[:count], subjects=samples.subjects[:count],
        sessions=samples.sessions[:count], scans=samples.scans[:count],
    )  # fmt: skip


def test_an_unseen_cohort_changes_nothing_for_the_others_and_is_adjusted_by_its_own_scans(clients):
    scans = scan_tables(clients)
    alone = {name: client for name, client in clients.items() if name != "B"}
    expected, table_alone = ComBat.fit(alone, scans, covariates=["age"])
    unseen = clients | {"B": without_sides(clients["B"])}
    found, table = ComBat.fit(unseen, scans, covariates=["age"], unseen=["B"])
    for name in ("mean", "slopes", "variance"):
        np.testing.assert_array_equal(getattr(found.pooled, name), getattr(expected.pooled, name))
    for name in alone:
        np.testing.assert_array_equal(found.clients[name].location, expected.clients[name].location)
    pd.testing.assert_frame_equal(table[table["client"] != "B"].reset_index(drop=True), table_alone)
    row = table[table["client"] == "B"].iloc[0]
    assert (row["numbers_up"], row["bytes_up"], row["subjects"]) == (0, 0, len(set(unseen["B"].test.subjects)))
    # Its shift of three channel units and its spread are undone, so that its means lie where the others' are.
    harmonized = found.apply(unseen, scans)
    before, after = (channel_features(of["B"].test.x)[0] for of in (unseen, harmonized))
    centre = channel_features(unseen["A"].train.x)[0].mean(0)
    assert np.abs(after.mean(0) - centre).mean() < 0.2 * np.abs(before.mean(0) - centre).mean()
    turned = unseen | {"B": replace(unseen["B"], test=replace(unseen["B"].test, y=1 - unseen["B"].test.y))}
    again, _ = ComBat.fit(turned, scans, covariates=["age"], unseen=["B"])
    np.testing.assert_array_equal(again.clients["B"].location, found.clients["B"].location)  # labels have no part


def test_an_unseen_cohort_of_two_subjects_cannot_be_adjusted(clients):
    unseen = clients | {"C": replace(clients["C"], test=whole_of(clients["C"].test, 2))}
    with pytest.raises(StudyError, match="cohort C: 2 test subjects, and ComBat needs 3"):
        ComBat.fit(unseen, scan_tables(clients), unseen=["C"])
