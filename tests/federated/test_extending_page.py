"""The rule that docs/extending.md shows is what it says: one file and one line."""

import importlib.util
import re
import sys

import numpy as np
import pytest
from federation import OPTIONS, as_bytes, federate
from safetensors.numpy import load_file
from small_clients import build_small_model, make_client

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.cell import train_cell
from fedbrain.registry import REGISTRY
from fedbrain.study.config import checked
from fedbrain.tables import ROUNDS, read_table


@pytest.fixture
def shown(root, tmp_path, monkeypatch):
    """The file and the line of the page, put where it says."""
    section = (root / "docs/extending.md").read_text().split("## An aggregation rule")[1]
    source, line = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)[:2]
    (place,) = re.findall(r"`src/(fedbrain/federated/aggregation/\w+)\.py`", section)
    name, target = next(iter(eval("{" + line + "}").items()))  # one line of a dict
    module = place.replace("/", ".")
    assert target.startswith(f"{module}:")
    assert name not in REGISTRY["aggregation"]
    file = tmp_path / "rule.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(module, file)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setitem(REGISTRY["aggregation"], name, target)
    return name


def length(one, other):
    return np.sqrt(sum(np.square(one[name].astype(float) - other[name]).sum() for name in one))


def test_the_rule_of_the_page_runs_and_does_what_it_says(shown, three_clients):
    start = {name: tensor.numpy() for name, tensor in build_small_model().state_dict().items()}
    result, grid = federate(three_clients, build_rule(shown, limit=0.05), OPTIONS)
    sent = [message.content["arrays"] for message in grid.down if message.metadata.message_type == "train"][::3]
    models = [{name: array.numpy() for name, array in record.items()} for record in sent]
    assert as_bytes(models[0]) == as_bytes(start)
    assert all(0 < length(b, a) <= 0.05 * (1 + 1e-6) for a, b in zip(models, models[1:]))
    far, plain = (federate(three_clients, rule)[0] for rule in (build_rule(shown, limit=1e6), "fedavg"))
    for name, tensor in plain.tensors.items():
        np.testing.assert_allclose(far.tensors[name], tensor, rtol=0, atol=1e-7)


def test_it_is_a_rule_of_the_grid_like_any_other(shown, tmp_path, config_schema):
    clients = {n: make_client(n, 4, 2, 2, seed=k, shape=(384, 2, 2, 2)) for k, n in enumerate("AB")}
    options = {"limit": 0.5, "private": ["head.classify.bias"]}
    train_cell(
        clients,
        head="linear",
        tuning="frozen",
        aggregation=shown,
        aggregation_options=options,
        training={"rounds": 2},
        folder=tmp_path,
    )
    assert read_table(tmp_path / "rounds.tsv", ROUNDS)["weight"].between(0, 1).all()
    assert {"A/head.classify.bias", "B/head.classify.bias"} < set(load_file(tmp_path / "model.safetensors"))

    config = {
        "title": "t",
        "cohorts": {"a": {"table": "a.tsv"}},
        "labels": {"CN": 0, "AD": 1},
        "encoder": {"weights": "random"},
        "grid": [{"heads": ["linear"], "aggregations": [shown]}],
    }
    checked(config | {"aggregation": {shown: options}}, config_schema)
    with pytest.raises(StudyError, match=f"aggregation.{shown}: .*limit must be above 0"):
        checked(config | {"aggregation": {shown: {"limit": 0}}}, config_schema)
    with pytest.raises(StudyError, match="unknown option limmit; known: limit, private"):
        checked(config | {"aggregation": {shown: {"limmit": 1}}}, config_schema)
