"""Runs of the grid that share a job: other jobs, the same results, and nothing is trained that is there."""

from small_study import CONFIG

MODELS = "results/runs/**/model.safetensors"


def test_runs_share_a_job_where_the_config_says_so_and_only_what_is_missing_is_trained(study, tmp_path):
    copy = study.copy(tmp_path / "checkout")
    models = {path: path.read_bytes() for path in copy.folder.glob(MODELS)}
    lost = copy.folder / "results/runs/linear/frozen/fedce/seed-1/model.safetensors"
    lost.unlink()
    copy.write_config(CONFIG | {"resources": {"cells_per_job": 4, "gpu": {"train_cell": 0}}})
    target = "results/evaluation/performance.tsv"
    planned = copy.planned(target)
    # Eight runs start from embeddings. One starts from block 11 and one from volumes: they are alone in their jobs, as before.
    assert {rule: n for rule, n in planned.items() if rule.startswith("train")} == {
        f"train_cells_{number}": 1 for number in range(2)
    }
    copy.snakemake(target)
    assert {path: path.read_bytes() for path in copy.folder.glob(MODELS)} == models
    logs = "".join(path.read_text() for path in (copy.folder / "results/logs/train_cells").iterdir())
    assert logs.count("on cpu") == 8
    assert logs.count("it is there already") == 7
    assert not copy.planned(target)
