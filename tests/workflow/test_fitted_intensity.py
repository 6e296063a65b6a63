"""A study whose intensity method is fitted on training subjects, from phantoms to the report."""

import json
import os

import nibabel
import numpy as np
import pytest
import yaml
from small_study import fresh_checkout

from fedbrain.imaging.nyul import mean_landmarks
from fedbrain.tables import HISTOGRAM, SPLITS, VOLUMES, concatenate, read_table

CONFIG = {
    "title": "Fitted intensity",
    "seed": 3,
    "cohorts": {
        "alpha": {"phantom": {"controls": 3, "cases": 3}, "shards": 2},
        "beta": {"phantom": {"controls": 3, "cases": 3, "scanner": "grainy"}},
    },
    "labels": {"CN": 0, "AD": 1},
    "splits": {"validation": 0.25, "test": 0.35},
    "preprocessing": {"intensity": "nyul", "registration_resolution": 4},
    "encoder": {"weights": "random"},
    "grid": [{"heads": ["ncc"], "aggregations": ["fedavg"]}],
    "evaluation": {"resamples": 200},
}


@pytest.fixture(scope="module")
def fitted(root, tmp_path_factory):
    study = fresh_checkout(root, tmp_path_factory.mktemp("fitted") / "checkout")
    study.write_config(CONFIG)
    study.snakemake()
    return study


def shard_tables(folder, cohort):
    return sorted(path for path in (folder / cohort).glob("*.tsv") if path.stem.isdigit())


def test_it_runs_to_the_report_which_names_the_method(fitted):
    assert (fitted.folder / "results/report.html").is_file()
    assert "own standard scale from its own training scans" in (fitted.folder / "results/report/study.html").read_text()


def test_a_finished_study_has_nothing_to_do_and_touching_everything_changes_that_not(fitted, tmp_path):
    assert not fitted.planned()
    copy = fitted.copy(tmp_path / "copy")
    for path in copy.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert not copy.planned()


def test_each_cohorts_scale_is_that_of_its_own_training_scans(fitted):
    results = fitted.folder / "results"
    splits = read_table(results / "cohorts/splits.tsv", SPLITS)
    for cohort in ("alpha", "beta"):
        training = set(splits.query(f"cohort == '{cohort}' and split == 'train'")["subject"])
        found = []
        for path in shard_tables(results / "volumes", cohort):
            for scan in read_table(path, VOLUMES).query("status == 'ok'").itertuples():
                (record,) = path.with_suffix("").glob(f"{scan.scan}_*T1w.json")
                (step,) = (step for step in json.loads(record.read_text())["steps"] if step["name"] == "intensity")
                found += [step["parameters"]["landmarks"]] if scan.subject in training else []
        scale = json.loads((results / f"standardized/{cohort}/scale.json").read_text())
        assert scale["scans"] == len(found) > 0
        np.testing.assert_allclose(scale["scale"], mean_landmarks(found))


def test_what_was_embedded_are_the_standardized_volumes(fitted):
    results = fitted.folder / "results"
    for cohort in ("alpha", "beta"):
        for path in shard_tables(results / "standardized", cohort):
            table = read_table(path, VOLUMES)
            summary = json.loads((results / f"embeddings/sam_med3d/output/{cohort}/{path.stem}.json").read_text())
            assert summary["scans"] == (table["status"] == "ok").sum()
            for volume in path.with_suffix("").glob("*_desc-preproc_T1w.nii.gz"):
                values = nibabel.load(volume).get_fdata(dtype=np.float32)
                inside = values[values > values.min()].astype(float)
                np.testing.assert_allclose([inside.mean(), inside.std()], [0, 1], atol=1e-3)
            counts = concatenate([path.with_name(f"{path.stem}_intensity.tsv")], HISTOGRAM)
            assert set(counts["stage"]) == {"before", "after"}


def test_another_kind_of_scale_preprocesses_and_splits_nothing_again(fitted, tmp_path):
    copy = fitted.copy(tmp_path / "copy")
    config = yaml.safe_load((copy.folder / "config.yaml").read_text())
    config["preprocessing"]["nyul"] = {"scale": "shared"}
    copy.write_config(config)
    planned = copy.planned()
    assert planned["share_intensity"] == 1
    assert planned["standardize_shard"] == planned["embed_shard"] == 3
    assert not {"preprocess_shard", "make_phantoms", "split_subjects", "fit_intensity"} & set(planned)
    copy.snakemake("--until", "standardize_shard")
    scales = [
        json.loads((copy.folder / f"results/standardized/{name}/scale.json").read_text()) for name in ("alpha", "beta")
    ]
    shared = json.loads((copy.folder / "results/standardized/scale.json").read_text())
    weights = [scale["scans"] for scale in scales]
    np.testing.assert_allclose(
        shared["scale"], np.average([scale["scale"] for scale in scales], axis=0, weights=weights)
    )


def test_the_standardized_volumes_are_those_that_are_exported(fitted, tmp_path):
    copy = fitted.copy(tmp_path / "copy")
    copy.snakemake("derivatives")
    results = copy.folder / "results"
    for cohort in ("alpha", "beta"):
        volumes = [
            path
            for shard in shard_tables(results / "standardized", cohort)
            for path in shard.with_suffix("").glob("*_T1w.nii.gz")
        ]
        exported = {path.name: path for path in (results / "derivatives" / cohort).rglob("*_desc-preproc_T1w.nii.gz")}
        assert len(exported) == len(volumes) == 6
        assert all(exported[path.name].read_bytes() == path.read_bytes() for path in volumes)
        description = json.loads((results / f"derivatives/{cohort}/dataset_description.json").read_text())
        assert description["DatasetType"] == "derivative"
    assert not copy.planned("derivatives")
