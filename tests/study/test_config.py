"""Every mistake in the config is found before anything runs, with its place and the mend."""

import copy
import subprocess
import sys

import pytest
import yaml

from fedbrain.errors import StudyError
from fedbrain.registry import REGISTRY
from fedbrain.study.config import (
    Cell,
    Kept,
    cells,
    checked,
    drawn_aggregation,
    evaluated,
    external_cohorts,
    harmonization,
    kept,
    kind_of,
    left_out_cells,
    options_of,
    own_models,
    personalised_cells,
    training_cohorts,
    training_options,
    weights_to_train,
)

CONFIG = {
    "title": "t",
    "cohorts": {"a": {"table": "a.tsv"}, "b": {"bids": "b"}},
    "labels": {"CN": 0, "AD": 1},
    "encoder": {"weights": "random"},
    "grid": [{"heads": ["linear"], "aggregations": ["fedavg", "local"]}],
}


def changed(*path, value):
    config = copy.deepcopy(CONFIG)
    place = config
    for key in path[:-1]:
        place = place[key] if isinstance(place, list) else place.setdefault(key, {})
    place[path[-1]] = value
    return config


def test_defaults_are_filled_in_at_every_depth_and_the_input_stays_as_it_was(config_schema):
    before = copy.deepcopy(CONFIG)
    study = checked(CONFIG, config_schema)
    assert before == CONFIG
    assert study["training"]["rounds"] == 20
    assert study["cohorts"]["a"]["shards"] == 1
    assert study["grid"][0]["tunings"] == ["frozen"]
    assert study["resources"]["gpu"]["embed_shard"] == 1
    assert study["resources"]["gpu"]["evaluate_cells"] == 0


def test_the_shipped_config_is_valid(config_schema, root):
    study = checked(yaml.safe_load((root / "config.yaml").read_text()), config_schema)
    assert len(study["cohorts"]) >= 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed("trainig", value={}), ["unknown key 'trainig'", "'training'"]),
        (changed("training", "round", value=3), ["training: unknown key 'round'", "'rounds'"]),
        (changed("training", "rounds", value=0), ["training.rounds", "0 is less than"]),
        (changed("cohorts", "a", "tabel", value="x"), ["cohorts.a: unknown key 'tabel'", "'table'"]),
        (changed("cohorts", "a", value={}), ["cohorts.a: needs exactly one of table, bids, phantom", "nothing"]),
        (changed("cohorts", "a", "bids", value="x"), ["cohorts.a: needs exactly one of", "table and bids"]),
        (
            changed("cohorts", "b", "t1w", value={"acquisition": "x"}),
            ["cohorts.b.t1w: unknown key 'acquisition'", "acq"],
        ),
        (changed("cohorts", "b", "t1w", value={"acq": "mp-rage"}), ["cohorts.b.t1w.acq", "A value in the file's name"]),
        (changed("cohorts", "b", "t1w", value={"choose": "best"}), ["cohorts.b.t1w.choose", "'best' is not one of"]),
        (changed("cohorts", "b", "t1w", value={"series": ["*"]}), ["cohorts.b.t1w.series", "this cohort has no table"]),
        (changed("cohorts", "a", "t1w", value={"run": 1}), ["cohorts.a.t1w.run", "this cohort has no bids"]),
        (changed("cohorts", "pooled", value={"table": "x"}), ["cohorts.pooled", "choose another"]),
        (changed("labels", value={"CN": 0, "MCI": 0}), ["cohorts.a", "one for 1"]),
        (changed("labels", "AD", value=2), ["labels.AD", "2 is not one of"]),
        (changed("grid", 0, "heads", value=["conv"]), ["grid.0.heads: unknown head 'conv'", "did you mean conv_"]),
        (changed("grid", 0, "aggregations", value=["fedavgg"]), ["unknown aggregation 'fedavgg'", "fedavg?"]),
        (changed("preprocessing", "extractor", value="bet"), ["preprocessing.extractor", "deepbet"]),
        (changed("preprocessing", "extractor", value="hd_bet"), ["preprocessing.extractor_weights", "zenodo.org"]),
        (changed("preprocessing", "extractor_sha256", value="abc"), ["preprocessing.extractor_sha256", "SHA-256"]),
        (changed("splits", value={"validation": 0.5, "test": 0.5}), ["splits", "nothing to train on"]),
        (changed("encoder", "weights", value="no.pth"), ["encoder.weights: no file no.pth", "blueyo0/SAM-Med3D"]),
        (changed("aggregation", "fedcee", value={}), ["aggregation.fedcee", "did you mean fedce?"]),
        (changed("aggregation", "fedce", value={"version": "3"}), ["aggregation.fedce", "version"]),
        (changed("aggregation", "fedce", value={"combined": "plus"}), ["aggregation.fedce", "combine"]),
        (changed("aggregation", "rate_my_lora", value={"gamma": "5"}), ["aggregation.rate_my_lora"]),
        (
            changed("tuning", "lora", value={"harmonization": "combat"}),
            ["tuning.lora: harmonization goes with frozen only"],
        ),
        (changed("tuning", "frozen", value={"harmonization": "comat"}), ["tuning.frozen", "did you mean combat?"]),
        (changed("cohorts", "a", value={"phantom": {"case": 3}}), ["cohort a", "'case'", "cases"]),
        (changed("resources", "gpu", "embed", value=1), ["resources.gpu: unknown key 'embed'", "embed_shard"]),
        (
            changed("quality", "limits", value={"mask_dize": {"min": 0.9}}),
            ["metric 'mask_dize'", "did you mean 'mask_dice'"],
        ),
        (
            changed("quality", "limits", value={"mask_dice": {"minimum": 0.9}}),
            ["limits.mask_dice: unknown key 'minimum'"],
        ),
        (
            changed("quality", "limits", value={"cjv": {"min": 1, "max": 0.5}}),
            ["quality.limits.cjv: min 1 is over max 0.5"],
        ),
        (changed("quality", "drop", value="outliers"), ["quality.drop", "flagged"]),
        (changed("quality", "outlier_z", value=0), ["quality.outlier_z", "0 is less than"]),
        ({key: value for key, value in CONFIG.items() if key != "grid"}, ["missing key 'grid'"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_mend(config, words, config_schema):
    with pytest.raises(StudyError) as error:
        checked(config, config_schema)
    for word in words:
        assert word in str(error.value)


def test_the_defaults_of_training_are_those_of_the_library(config_schema):
    from fedbrain.federated.task import TrainingOptions

    study = checked(CONFIG, config_schema)
    assert training_options(study, "linear", "frozen") == TrainingOptions().as_dict()


def test_the_defaults_of_preprocessing_are_those_of_the_library(config_schema):
    from fedbrain.imaging.shard import RECIPE_DEFAULTS

    preprocessing = checked(CONFIG, config_schema)["preprocessing"]
    assert preprocessing.pop("nyul") == {"scale": "client"}  # of the stage after the split
    assert preprocessing == RECIPE_DEFAULTS


def test_diagnoses_that_yaml_takes_for_numbers_are_text(config_schema):
    study = checked(changed("labels", value={0: 0, 1: 1}), config_schema)
    assert study["labels"] == {"0": 0, "1": 1}
    with pytest.raises(StudyError, match="quote it"):
        checked(changed("labels", value={False: 0, True: 1}), config_schema)


def test_the_figure_by_head_shows_an_aggregation_that_is_run(config_schema):
    assert drawn_aggregation(checked(CONFIG, config_schema)) == "fedavg"
    config = changed("grid", 0, "aggregations", value=["local", "fedce"])
    assert drawn_aggregation(checked(config, config_schema)) == "fedce"
    with pytest.raises(StudyError, match=r"figures\.aggregation: no block of the grid has 'fedce'"):
        checked(changed("figures", value={"aggregation": "fedce"}), config_schema)


def test_all_mistakes_are_told_at_once(config_schema):
    config = changed("trainig", value={}) | {"seed": -1}
    with pytest.raises(StudyError) as error:
        checked(config, config_schema)
    assert "trainig" in str(error.value)
    assert "seed" in str(error.value)


def test_the_grid_is_a_list_of_products_and_each_cell_comes_once(config_schema):
    grid = [
        {"heads": ["linear", "conv_s"], "aggregations": ["fedavg"], "seeds": [0, 1]},
        {"heads": ["linear"], "aggregations": ["fedavg", "local"], "seeds": [1, 2]},
    ]
    study = checked(changed("grid", value=grid), config_schema)
    assert cells(study) == {
        Cell("linear", "frozen", "fedavg"): [0, 1, 2],
        Cell("conv_s", "frozen", "fedavg"): [0, 1],
        Cell("linear", "frozen", "local"): [1, 2],
    }


def test_options_of_a_head_override_the_defaults_for_this_head_alone(config_schema):
    study = checked(changed("training", value={"rounds": 3, "heads": {"linear": {"rounds": 7}}}), config_schema)
    assert training_options(study, "linear", "frozen")["rounds"] == 7
    assert training_options(study, "conv_s", "frozen")["rounds"] == 3
    assert not {"heads", "tunings"} & set(training_options(study, "linear", "frozen"))
    assert options_of(study, "aggregation", "fedavg") == {}


def test_options_of_a_tuning_override_those_of_the_head_and_a_name_those_of_its_kind(config_schema):
    training = {
        "heads": {"linear": {"rounds": 7, "batch_size": 2}},
        "tunings": {"lora": {"rounds": 5, "learning_rate": 0.1}, "lora_qv": {"learning_rate": 0.2}},
    }
    config = changed("training", value=training) | {"tuning": {"lora_qv": {"kind": "lora", "targets": ["q", "v"]}}}
    options = training_options(checked(config, config_schema), "linear", "lora_qv")
    assert (options["batch_size"], options["rounds"], options["learning_rate"]) == (2, 5, 0.2)


def test_what_is_meant_for_the_encoder_does_not_reach_the_references(config_schema):
    training = {"rounds": 9, "tunings": {"full": {"learning_rate": 1e-5}, "frozen": {"batch_size": 3}}}
    study = checked(changed("training", value=training), config_schema)
    assert training_options(study, "linear", "full")["learning_rate"] == 1e-5
    assert training_options(study, "resnet18", "full")["learning_rate"] == 0.001
    assert training_options(study, "ncc", "frozen") == training_options(study, "resnet18", "full") | {"rounds": 1}


@pytest.mark.parametrize(
    ("head", "tuning", "expected"),
    [
        ("linear", "frozen", None),
        ("resnet18", "full", None),
        ("linear", "lora", "w.pth"),
        ("linear", "full", "w.pth"),
        ("linear", "scratch", "random"),
    ],
)
def test_a_job_loads_weights_only_where_it_trains_some_of_the_encoder(
    head, tuning, expected, config_schema, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    config = changed("encoder", value={"weights": "w.pth"}) | {
        "tuning": {"scratch": {"kind": "full", "weights": "random"}}
    }
    assert weights_to_train(checked(config, config_schema), head, tuning) == expected


def test_a_thing_can_be_in_a_study_under_several_names(config_schema):
    config = changed("tuning", value={"lora_qv": {"kind": "lora", "targets": ["q", "v"]}, "lora": {"rank": 2}})
    config["aggregation"] = {"fedce_times": {"kind": "fedce", "combine": "times"}}
    config["grid"] = [{"heads": ["linear"], "tunings": ["lora", "lora_qv"], "aggregations": ["fedce", "fedce_times"]}]
    study = checked(config, config_schema)
    assert [kind_of(study, "tuning", name) for name in ("lora", "lora_qv", "frozen")] == ["lora", "lora", "frozen"]
    assert kind_of(study, "aggregation", "fedce_times") == "fedce"
    assert kind_of(study, "aggregation", "local") == "local"
    assert len(cells(study)) == 4


@pytest.mark.parametrize(
    ("head", "tuning", "expected"),
    [
        ("linear", "frozen", Kept("sam_med3d", "w.pth", "output")),
        ("ncc", "frozen", Kept("sam_med3d", "w.pth", "output")),
        ("conv_s", "lora", Kept("sam_med3d", "w.pth", "block9")),
        ("conv_s", "last_k", Kept("sam_med3d", "w.pth", "block10")),
        ("conv_s", "norm", Kept("sam_med3d", "w.pth", "block0")),
        ("conv_s", "uncached", Kept("none", "random", "volume")),
        ("conv_s", "full", Kept("none", "random", "volume")),
        ("resnet18", "full", Kept("none", "random", "volume")),
        ("linear", "control", Kept("sam_med3d-random", "random", "output")),
    ],
)
def test_cells_train_on_the_longest_frozen_prefix(head, tuning, expected, config_schema, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    config = changed("encoder", value={"weights": "w.pth"})
    config["tuning"] = {
        "lora": {"blocks": 3},
        "uncached": {"kind": "lora", "cached": False},
        "control": {"kind": "frozen", "weights": "random"},
    }
    assert kept(checked(config, config_schema), head, tuning) == expected


def test_an_untrained_encoder_is_its_own_control(config_schema):
    config = changed("tuning", value={"control": {"kind": "frozen", "weights": "random"}})
    study = checked(config, config_schema)
    assert kept(study, "linear", "control") == kept(study, "linear", "frozen")


def private(rule, entries, tuning, head="linear"):
    """A study with one rule that keeps ``entries`` with the clients."""
    config = changed("aggregation", value={rule: {"private": entries}})
    return config | {"grid": [{"heads": [head], "tunings": [tuning], "aggregations": [rule]}]}


def test_what_stays_with_the_clients_may_be_a_kind_a_pattern_or_a_part(config_schema):
    for config in (
        private("fedavg", ["norm"], "last_k"),
        private("fedper", ["norm"], "last_k"),
        private("fedavg", ["head.classify.*"], "frozen", head="conv_s"),
        private("fedex_lora", ["local"], "dual_lora"),
        private("rate_my_lora", ["lora_B"], "lora"),
        changed("training", value={"sample": 1, "quorum": 1}),
        changed("training", value={"sample": 3}) | {"grid": [{"heads": ["linear"], "aggregations": ["local"]}]},
    ):
        assert checked(config, config_schema)


def test_behind_a_personalised_cell_stands_its_global_model(config_schema):
    own = {
        "fedce_own_head": {"kind": "fedce", "private": ["head.classify.*"]},
        "ditto_2": {"kind": "ditto", "strength": 2},
    }
    grid = [
        {"heads": ["conv_s"], "aggregations": ["fedavg", "ditto_2", "fedbn", "fedce_own_head", "fedavg_ft", "local"]}
    ]
    config = checked(changed("grid", value=grid) | {"aggregation": own}, config_schema)
    found = {name.aggregation: (cell.aggregation, table) for name, (cell, table) in evaluated(config).items()}
    assert list(found.items()) == [
        ("fedavg", ("fedavg", "predictions")),
        ("ditto_2", ("ditto_2", "predictions")),
        ("ditto_2_global", ("ditto_2", "predictions_global")),
        ("fedbn", ("fedbn", "predictions")),
        ("fedce_own_head", ("fedce_own_head", "predictions")),
        ("fedavg_ft", ("fedavg_ft", "predictions")),
        ("fedavg_ft_global", ("fedavg_ft", "predictions_global")),
        ("local", ("local", "predictions")),
    ]
    grid = [{"heads": ["linear"], "aggregations": ["ditto"]}, {"heads": ["linear"], "aggregations": ["ditto_global"]}]
    config = changed("grid", value=grid) | {"aggregation": {"ditto_global": {"kind": "fedavg"}}}
    with pytest.raises(
        StudyError, match="ditto_global: the global model of ditto is evaluated under this name; choose"
    ):
        checked(config, config_schema)


def test_own_models_are_compared_with_the_rules_global_model_or_that_of_fedavg(config_schema):
    grid = [
        {"heads": ["conv_s"], "aggregations": ["fedavg", "ditto", "fedbn"]},
        {"heads": ["conv_l"], "aggregations": ["flop", "local"]},
    ]
    config = checked(changed("grid", value=grid), config_schema)
    assert {str(cell): common and str(common) for cell, common in personalised_cells(config).items()} == {
        "conv_s/frozen/ditto": "conv_s/frozen/ditto_global",
        "conv_s/frozen/fedbn": "conv_s/frozen/fedavg",
        "conv_l/frozen/flop": None,
    }
    assert own_models(config) == ["ditto", "fedbn", "flop", "local"]
    assert own_models(checked(CONFIG, config_schema)) == ["local"]


def test_class_centres_are_of_all_clients(config_schema):
    study = checked(changed("training", value={"sample": 1}), config_schema)
    assert training_options(study, "ncc", "frozen")["sample"] is None
    assert training_options(study, "linear", "frozen")["sample"] == 1


NCC = [{"heads": ["ncc"], "aggregations": ["simpleavg", "median"]}]
KRUM = {"grid": [{"heads": ["linear"], "aggregations": ["krum"]}]}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed("tuning", value={"lora": {"rang": 3}}), ["tuning.lora", "unknown option rang", "rank"]),
        (changed("tuning", value={"lora": {"rank": 0}}), ["tuning.lora", "rank must be a whole number"]),
        (changed("tuning", value={"lora": {"blocks": 13}}), ["tuning.lora", "12 blocks"]),
        (changed("tuning", value={"lorra": {}}), ["tuning.lorra", "did you mean lora?"]),
        (changed("tuning", value={"full": {"kind": "lora"}}), ["tuning.full", "a name of its own"]),
        (changed("tuning", value={"Lora-qv": {"kind": "lora"}}), ["tuning.Lora-qv", "small letters"]),
        (changed("head", value={"linear": {"downsample": 2}}), ["head.linear", "only resnet18 takes downsample"]),
        (changed("head", value={"resnet18": {"downsample": 3}}), ["head.resnet18.downsample"]),
        (changed("training", value={"tunings": {"lorra": {}}}), ["training.tunings.lorra", "did you mean lora?"]),
        (changed("training", value={"precision": "float16"}), ["training.precision"]),
        (changed("training", value={"heads": {"ncc": {"rounds": 5}}}), ["training.heads.ncc", "one round"]),
        (changed("tuning", value={"lora": {"cached": "no"}}), ["tuning.lora", "cached must be true or false"]),
        (changed("tuning", value={"lora": {"alpha": 0}}), ["tuning.lora", "alpha must be a number above 0"]),
        (changed("tuning", value={"lora": {"targets": [["q"]]}}), ["tuning.lora", "targets must be a list of"]),
        (changed("tuning", value={"lora": {"targets": 5}}), ["tuning.lora", "targets must be a list of"]),
        (changed("aggregation", value={"centralized": {"kind": "fedavg"}}), ["a name of its own"]),
        (changed("grid", value=NCC), ["grid.0: ncc goes with simpleavg, fedavg, centralized, local, not with median"]),
        (
            changed("grid", 0, "heads", value=["linear", "resnet18"]),
            ["grid.0: resnet18 goes with tunings: [full] only"],
        ),
        (changed("grid", 0, "tunings", value=["frozen", "lorra"]), ["grid.0.tunings", "did you mean lora?"]),
        (changed("grid", 0, "aggregations", value=["flexlora"]), ["grid.0", "no LoRA factors", "tuning lora"]),
        (
            changed("grid", 0, "aggregations", value=["ffa_lora"]),
            ["grid.0", "tuning frozen", "use it with tuning lora"],
        ),
        (
            changed("grid", value=[{"heads": ["linear"], "tunings": ["lora"], "aggregations": ["flexlora"]}])
            | {"aggregation": {"flexlora": {"ranks": {"a": 9}}}},
            ["grid.0", "a has 9, more than the 8"],
        ),
        (
            changed("training", value={"sample": 2, "heads": {"linear": {"quorum": 0}}}),
            ["training.heads.linear.quorum"],
        ),
        (changed("training", value={"schedule": "linear"}), ["training.schedule", "cosine"]),
        (changed("grid", 0, "aggregations", value=["fedper"]), ["grid.0", "FedPer keeps the head", "tuning or head"]),
        (changed("grid", 0, "aggregations", value=["flop"]), ["grid.0", "FLOP keeps the head", "tuning or head"]),
        (
            changed("grid", 0, value={"heads": ["conv_s"], "aggregations": ["fedper"]}),
            ["grid.0", "FedPer keeps the head", "private: [head.classify.*]"],
        ),
        (private("fedavg", ["head.classify.*"], "frozen"), ["grid.0", "trains nothing else"]),
        (private("fedavg", ["head.*"], "frozen", head="conv_s"), ["grid.0", "trains nothing else"]),
        (
            private("fedavg", ["norms"], "lora"),
            ["grid.0: aggregation fedavg", "nothing called 'norms'; kinds are head"],
        ),
        (private("fedavg", [3], "lora"), ["grid.0: aggregation fedavg", "nothing called 3"]),
        (private("fedavg", ["lora_A"], "last_k"), ["tuning last_k", "use it with tuning lora"]),
        (private("fedavg", ["local"], "lora"), ["tuning lora", "use it with tuning dual_lora"]),
        (private("flexlora", ["lora_B"], "lora"), ["grid.0", "no LoRA factors A and B that both travel"]),
        (private("fedex_lora", ["lora_B"], "lora"), ["grid.0", "no LoRA factors A and B that both travel"]),
        (changed("training", value={"sample": 3}), ["grid.0: linear/frozen: training: sample is 3", "2 cohorts"]),
        (changed("training", value={"quorum": 3}), ["grid.0: linear/frozen: training: quorum is 3", "2 cohorts"]),
        (
            changed("training", value={"sample": 1, "heads": {"linear": {"quorum": 2}}}),
            ["grid.0: linear/frozen: training: quorum is 2, and there are 1 clients of a round (sample)"],
        ),
        (changed("grid", 0, "aggregations", value=["fedbn"]), ["grid.0", "FedBN, linear/frozen", "conv_s, conv_l"]),
        (changed("grid", 0, "aggregations", value=["fedopal"]), ["grid.0", "use it with tuning dual_lora"]),
        (
            changed("aggregation", value={"fedavg": {"private": "head"}}),
            ["grid.0: aggregation fedavg: private must be a list, it is 'head'"],
        ),
        (
            changed("tuning", value={"dual_lora": {"local_rank": 0}}),
            ["tuning.dual_lora", "rank must be a whole number"],
        ),
        (changed("aggregation", value={"krum": {"byzantine": 1}}) | KRUM, ["grid.0", "needs 5 clients, there are"]),
        (
            changed("cohorts", value={name: {"bids": name} for name in "abcde"})
            | KRUM
            | {"aggregation": {"krum": {"byzantine": 1}}, "training": {"sample": 4}},
            ["grid.0", "needs 5 clients, there are 4"],
        ),
    ],
)
def test_mistakes_in_tunings_and_heads_are_named(config, words, config_schema):
    with pytest.raises(StudyError) as error:
        checked(config, config_schema)
    for word in words:
        assert word in str(error.value)


def test_the_config_is_checked_without_torch(root):
    program = "import sys, fedbrain.study.config; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_harmonized_tuning_trains_on_the_same_embeddings_as_the_plain_one(config_schema):
    options = {"kind": "frozen", "harmonization": "combat", "covariates": ["sex"]}
    study = checked(changed("tuning", "combat", value=options), config_schema)
    assert kept(study, "linear", "combat") == kept(study, "linear", "frozen")
    assert harmonization(study, "combat") == {"name": "combat", "covariates": ["sex"]}
    assert harmonization(study, "frozen") is None
    assert harmonization(study, "lora") is None


def test_a_tuning_says_itself_which_adapters_it_has(config_schema, monkeypatch):
    """As docs/extending.md says: nothing but the registry knows the name of a new one."""
    monkeypatch.setitem(REGISTRY["tuning"], "pairs", "fedbrain.models.lora:DualLoRA")
    for rule, entries in (("flexlora", []), ("med_dual_lora", ["local"]), ("fedavg", ["local"])):
        assert checked(private(rule, entries, "pairs"), config_schema)
    with pytest.raises(StudyError, match="FedBN, linear/pairs"):
        checked(private("fedbn", [], "pairs"), config_schema)


def leaving(left_out, *, external=(), aggregations=("fedavg",), **more):
    config = changed("grid", value=[{"heads": ["linear"], "aggregations": list(aggregations), "leave_out": left_out}])
    config["cohorts"] = {name: {"table": f"{name}.tsv", "external": name in external} for name in "abcd"}
    return config | more


def test_cells_without_a_cohort_stand_beside_the_cells_and_change_none(config_schema):
    config = leaving("each", external=["c"], aggregations=("fedavg", "fedce"))
    config["grid"][0]["seeds"] = [0, 1]
    config["grid"].append({"heads": ["linear"], "aggregations": ["fedavg", "local"], "seeds": [2], "leave_out": ["b"]})
    config["grid"][1] = {**config["grid"][1], "aggregations": ["fedavg"]}
    study = checked(config, config_schema)
    cell = Cell("linear", "frozen", "fedavg")
    assert left_out_cells(study)[cell, "a"] == [0, 1]
    assert left_out_cells(study)[cell, "b"] == [0, 1, 2]
    assert list(left_out_cells(study)) == [
        (Cell("linear", "frozen", rule), cohort) for cohort in "abd" for rule in ("fedavg", "fedce")
    ]
    for block in config["grid"]:
        del block["leave_out"]
    assert cells(study) == cells(checked(config, config_schema))
    assert left_out_cells(checked(config, config_schema)) == {}
    assert (external_cohorts(study), training_cohorts(study)) == (["c"], ["a", "b", "d"])


NYUL = {"preprocessing": {"intensity": "nyul"}}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (leaving(["nort"]), "grid.0.leave_out: there is no cohort 'nort'; known: a, b, c, d"),
        (leaving(["a"], external=["a"]), "grid.0.leave_out: a is external and never trains"),
        (leaving("each", external="abc"), "grid.0.leave_out: d alone trains, and nobody would be left"),
        (leaving([], external="abcd"), "cohorts: all of them are external, and nobody is left to train"),
        (leaving("each", aggregations=["fedavg", "local"]), "give local a block of its own"),
        (leaving("every"), "grid.0.leave_out"),
        (leaving("each", **NYUL), "preprocessing.intensity nyul is fitted on all cohorts' training scans"),
        (leaving(None, external="a"), "grid.0.leave_out"),
        (
            leaving(["a"], external="b", aggregations=["krum"], aggregation={"krum": {"byzantine": 0}}),
            "grid.0: aggregation krum: with byzantine 0 it needs 3 clients, there are 2",
        ),
        (leaving(["a"], training={"sample": 4}), "sample is 4, and there are 3 cohorts where one is left out"),
    ],
)
def test_cohorts_that_cannot_be_left_out_or_kept_apart_are_told_at_the_start(config_schema, config, words):
    if config["grid"][0]["leave_out"] == []:
        del config["grid"][0]["leave_out"]
    with pytest.raises(StudyError) as error:
        checked(config, config_schema)
    assert words in str(error.value)


def test_an_external_cohort_needs_a_scale_of_the_others(config_schema):
    config = leaving(["b"], external=["a"], preprocessing={"intensity": "nyul", "nyul": {"scale": "client"}})
    del config["grid"][0]["leave_out"]
    with pytest.raises(StudyError, match=r"cohorts\.a: it is external and has no training scans to fit a scale"):
        checked(config, config_schema)
    config["preprocessing"]["nyul"]["scale"] = "shared"
    assert external_cohorts(checked(config, config_schema)) == ["a"]
