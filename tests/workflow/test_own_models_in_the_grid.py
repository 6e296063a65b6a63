"""Cells whose clients have models of their own: their global models stand beside them, in tables and in a figure."""

from small_study import CONFIG

from fedbrain.tables import PERFORMANCE, read_table


def test_own_models_stand_beside_the_global_one_and_no_other_cell_is_trained_again(study, tmp_path):
    copy = study.copy(tmp_path / "checkout")
    tuned = {"heads": ["linear"], "aggregations": ["fedavg_ft"]}
    copy.write_config(CONFIG | {"grid": [*CONFIG["grid"], tuned]})
    targets = ["results/figures/personalisation-linear-frozen.svg", "results/evaluation/performance.tsv"]
    planned = copy.planned(*targets)
    assert {rule: count for rule, count in planned.items() if rule.startswith("train")} == {"train_cell": 1}
    copy.snakemake(*targets)

    runs = copy.folder / "results/runs/linear/frozen"
    for side in ("", "_validation"):  # before its clients fine-tune it, the model is FedAvg's
        common = (runs / "fedavg_ft/seed-0" / f"predictions_global{side}.tsv").read_bytes()
        assert common == (runs / "fedavg/seed-0" / f"predictions{side}.tsv").read_bytes()
        assert common != (runs / "fedavg_ft/seed-0" / f"predictions{side}.tsv").read_bytes()
    table = read_table(copy.folder / targets[1], PERFORMANCE)
    assert {"fedavg", "fedavg_ft", "fedavg_ft_global", "local"} <= set(table["aggregation"])
    assert (copy.folder / targets[0]).stat().st_size > 5000
    assert not copy.planned(*targets)
