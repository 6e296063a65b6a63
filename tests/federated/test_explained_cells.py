"""A cell that was trained on volumes of a tiny study is explained: the model is found again, maps are kept, groups are means."""

from dataclasses import replace

import nibabel
import numpy as np
import pandas as pd
import pytest

import tiny_encoder
from fedbrain import registry
from fedbrain.errors import StudyError
from fedbrain.federated import explanation
from fedbrain.federated.cell import train_cell
from fedbrain.federated.data import load_clients
from fedbrain.federated.explanation import ExplanationOptions, chosen_scans, explain_cell
from fedbrain.federated.harmonization import ComBat
from fedbrain.imaging import derivatives
from fedbrain.imaging.map_names import group_map, map_name
from fedbrain.imaging.maps import read_map
from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import EncoderSource
from fedbrain.models.embeddings import embed_shard
from fedbrain.registry import build
from fedbrain.tables import PREDICTIONS, SCANS, SPLITS, VOLUMES, read_table, write_table

SIDES = ["train"] * 6 + ["validation"] * 2 + ["test"] * 4
COHORTS = ("alpha", "beta")
SOURCE = EncoderSource("tiny", None, seed=3)
TRAINING = {"rounds": 2, "batch_size": 4, "learning_rate": 0.01}
OPTIONS = ExplanationOptions(subjects=1, steps=2, block=64, stride=64)


@pytest.fixture(scope="module", autouse=True)
def _tiny_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.REGISTRY["encoder"], "tiny", "tiny_encoder:load_tiny")
        patch.setitem(CARDS, "tiny", tiny_encoder.CARD)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Volumes of two cohorts, their tables and the split; cases are brighter in one corner."""
    folder = tmp_path_factory.mktemp("tiny")
    splits, tables = [], {}
    for number, cohort in enumerate(COHORTS):
        labels = [place % 2 for place in range(len(SIDES))]
        scans = [f"sub-{cohort}{place:02d}" for place in range(len(SIDES))]
        shard = folder / "volumes" / cohort / "0"
        shard.mkdir(parents=True)
        for place, (scan, label) in enumerate(zip(scans, labels)):
            coarse = np.random.default_rng(100 * number + place).normal(size=(12, 12, 12))
            coarse[:6, :6, :6] += 2 * label
            volume = np.full((128, 128, 128), -1, np.float32)
            volume[40:88, 40:88, 40:88] = np.kron(coarse, np.ones((4, 4, 4)))
            derivatives.write(shard, scan, volume, volume != -1, {"key": scan})
        table = pd.DataFrame({"scan": scans, "status": "ok", "key": [f"key of {scan}" for scan in scans]})
        write_table(table.reindex(columns=list(VOLUMES)).astype(VOLUMES), f"{shard}.tsv")
        rows = {"scan": scans, "subject": scans, "label": labels, "shard": 0, "age": np.linspace(60, 80, len(scans))}
        tables[cohort] = pd.DataFrame(rows).reindex(columns=list(SCANS)).astype(SCANS)
        write_table(tables[cohort], folder / f"{cohort}.tsv")
        splits += [(cohort, scan, scan, label, side) for scan, label, side in zip(scans, labels, SIDES)]
    write_table(pd.DataFrame(splits, columns=list(SPLITS)).astype(SPLITS), folder / "splits.tsv")
    return folder, tables


def trained(study, tmp_path, head, tuning, aggregation, tuning_options=None):
    """Runs embedding and training as the workflow does; what explain_cell asks for."""
    folder, tables = study
    tuned = build("tuning", tuning, tuning_options)
    cut, files = tuned.cut(tiny_encoder.DEPTH), {}
    for cohort in COHORTS:
        shard = folder / "volumes" / cohort / "0"
        files[cohort] = [folder / f"{cut}-{cohort}.safetensors"]
        embed_shard(
            read_table(f"{shard}.tsv", VOLUMES), shard, files[cohort][0], encoder="tiny", cut=cut, seed=SOURCE.seed
        )
    clients = load_clients(files, {cohort: folder / f"{cohort}.tsv" for cohort in COHORTS}, folder / "splits.tsv")
    harmonization = None
    if tuned.harmonization != "none":
        harmonization, _ = ComBat.fit(clients, tables, covariates=tuned.covariates)
        clients = harmonization.apply(clients, tables)
    cell = {
        "head": head,
        "tuning": tuning,
        "aggregation": aggregation,
        "tuning_options": tuning_options,
        "source": SOURCE,
    }
    train_cell(clients, folder=tmp_path / "run", seed=5, training=TRAINING, **cell)
    cell |= {"training_seed": 5, "harmonization": harmonization, "folder": tmp_path / "maps"}
    files = (tables, str(folder / "volumes" / "{cohort}" / "{shard}"), tmp_path / "run/model.safetensors")
    return (read_table(tmp_path / "run/predictions.tsv", PREDICTIONS), *files), cell


CELLS = {
    "frozen": ("linear", "frozen", "fedavg", None),
    "own models": ("linear", "frozen", "local", None),
    "harmonized": ("linear", "frozen", "fedavg", {"harmonization": "combat", "covariates": ["age"]}),
    "adapters with a frozen half": ("linear", "lora", "ffa_lora", {"blocks": 1, "rank": 2}),
    "adapters merged by the server": ("linear", "lora", "flora", {"blocks": 2, "rank": 2, "targets": ["q", "v"]}),
    "adapters that stay": ("linear", "lora", "fedsa_lora", {"blocks": 1, "rank": 2}),
    "all of the encoder": ("linear", "full", "fedavg", None),
    "class centres": ("ncc", "frozen", "simpleavg", None),
}


@pytest.mark.parametrize("kind", CELLS)
def test_the_model_of_a_cell_is_found_again_and_explained(study, tmp_path, kind):
    given, cell = trained(study, tmp_path, *CELLS[kind])
    checked = kind in ("frozen", "adapters that stay")
    table, checks = explain_cell(*given, **cell, options=replace(OPTIONS, randomised=int(checked)))
    assert table.groupby("method")["label"].apply(sorted).to_dict() == {
        "integrated_gradients": [0, 1],
        "rollout": [0, 1],
    }
    # The evidence is of a model that was put together anew, the score of the one that was trained.
    np.testing.assert_allclose(1 / (1 + np.exp(-table["evidence"].to_numpy(float))), table["score"], atol=1e-4)
    rows = table[table["method"] == "integrated_gradients"]
    for row in rows.itertuples():
        values = read_map(tmp_path / "maps" / row.cohort / map_name(row.scan, "integratedgradients"))
        assert float(values.sum(dtype=np.float64)) == pytest.approx(row.total, rel=1e-4, abs=1e-6)
    if not checked:
        return
    stages = ["head", "blocks 2 to 3", "blocks 1 to 1", "patch embedding"]
    assert (
        checks[checks["method"] == "rollout"].groupby("scan", sort=False)["stage"].apply(list).tolist() == [stages] * 2
    )
    unchanged = checks[(checks["method"] == "rollout") & (checks["stage"] == "head")]
    assert (unchanged["spearman"] > 1 - 1e-9).all()  # roll-out does not know the head
    changed = checks[(checks["method"] == "integrated_gradients") & (checks["stage"] == "patch embedding")]
    assert (changed["spearman"].abs() < 0.9).all()


@pytest.fixture(scope="module")
def explained(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    given, cell = trained(study, folder, *CELLS["frozen"])
    options = ExplanationOptions(("occlusion", "rollout"), subjects=2, block=64, stride=64, randomised=0)
    explain_cell(*given, **cell, options=options)
    return given, cell, options


def test_groups_are_means_over_subjects_on_the_mni_grid(explained):
    given, cell, _ = explained
    folder, labels = cell["folder"], given[0].set_index("subject")["label"]
    for name in ("occlusion", "rollout"):
        maps = {path.name.partition("_")[0]: read_map(path) for path in folder.glob(f"*/*desc-{name}_*.nii.gz")}
        means = [
            np.mean([values for scan, values in maps.items() if labels[scan] == label], axis=0) for label in (1, 0)
        ]
        assert len(maps) == 4
        paths = [folder / group_map(group, name) for group in ("case", "control", "difference")]
        for path, expected in zip(paths, (*means, means[0] - means[1])):
            np.testing.assert_allclose(read_map(path), expected, atol=1e-6)
        header = nibabel.load(paths[0])
        # voxel (0, 0, 0) lies 63.5 voxels of 1.5 mm before the grid's centre at MNI (0, -17, 5)
        np.testing.assert_allclose(header.affine[:3, 3], [-95.25, -112.25, -90.25])
        assert int(header.header["sform_code"]) == 4


def test_what_is_there_is_not_computed_again_and_who_is_not_chosen_any_more_is_deleted(explained, monkeypatch):
    given, cell, options = explained
    folder = cell["folder"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    gone = next(folder.glob("*/*_desc-rollout_relevance.json"))
    gone.unlink()  # as if the job had been killed before it was written
    made, real = [], explanation.rollout_map
    monkeypatch.setattr(explanation, "rollout_map", lambda *given: made.append(1) or real(*given))
    monkeypatch.setattr(explanation, "occlusion", lambda *_, **__: pytest.fail("occlusion was there"))
    explain_cell(*given, **cell, options=options)
    assert len(made) == 1
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    timed = {gone, folder / "explanation.tsv"}  # hold the seconds that it took
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before.keys() - timed)

    fewer = ExplanationOptions(options.methods, subjects=1, block=64, stride=64, randomised=0)
    table, _ = explain_cell(*given, **cell, options=fewer)
    assert len(made) == 1
    scans = {path.name.partition("_")[0] for path in folder.glob("*/*_relevance.*")}
    assert scans == set(table["scan"])
    assert len(scans) == 2


def test_another_model_than_that_of_the_predictions_is_refused(explained, tmp_path):
    (predictions, *given), cell, options = explained
    other = predictions.assign(score=predictions["score"] + 0.001)
    with pytest.raises(StudyError, match=r"cohort \w+, row \d+ of predictions.tsv: the model .* the prediction is 0\."):
        explain_cell(other, *given, **cell | {"folder": tmp_path}, options=options)


def test_subjects_are_drawn_once_and_for_all(study):
    _, tables = study
    rows = [(cohort, scan, None, n % 2, 0.5) for cohort in COHORTS for n, scan in enumerate(tables[cohort]["scan"])]
    predictions = pd.DataFrame(rows, columns=list(PREDICTIONS)).astype(PREDICTIONS)
    drawn = {count: set(chosen_scans(predictions, tables, count, 1)["scan"]) for count in (1, 3, 6, None)}
    assert [len(scans) for scans in drawn.values()] == [2, 6, 12, 24]
    assert drawn[1] < drawn[3] < drawn[6] < drawn[None]
    assert drawn[6] != set(chosen_scans(predictions, tables, 6, 2)["scan"])
    chosen = chosen_scans(predictions, tables, 3, 1)
    assert sorted(chosen["label"]) == [0, 0, 0, 1, 1, 1]
    assert (chosen["score"] == 0.5).all()
    with pytest.raises(StudyError, match="no case among the test subjects"):
        chosen_scans(predictions[predictions["label"] == 0], tables, 1, 1)


def test_a_subjects_first_scan_is_explained(study):
    _, tables = study
    table = tables["alpha"].iloc[:4].assign(subject=["a", "a", "b", "b"], session=["2", "1", "1", "2"])
    table = table.assign(scan=["sub-a_ses-2", "sub-a_ses-1", "sub-b_ses-1", "sub-b_ses-2"], label=[0, 0, 1, 1])
    predictions = table.assign(cohort="alpha", score=0.5)[list(PREDICTIONS)].astype(PREDICTIONS)
    chosen = chosen_scans(predictions, {"alpha": table.astype(SCANS)}, None, 0)
    assert chosen["scan"].tolist() == ["sub-a_ses-1", "sub-b_ses-1"]
    assert chosen["row"].tolist() == [2, 3]
