"""The models that a finished run has left, put together for each client as the run itself put them together."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.numpy import load_file
from torch import nn

from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.rule import State, Tensors, filled_up
from fedbrain.federated.sharing import adapted_layers
from fedbrain.registry import REFERENCES


def released_models(
    folder: str | Path,
    model: nn.Module,
    clients: Iterable[str],
    *,
    aggregation: str,
    aggregation_options: Mapping | None = None,
) -> dict[str, Tensors]:
    """The tensors that each client's model has beyond those of ``model``, to be loaded into it.

    ``folder`` is what :func:`fedbrain.federated.cell.train_cell` has written, ``model`` the cell's model as it is built. A client has
    the global model, or what is its own where the rule gives it that; one that was given none is left out.
    """
    folder, own, common = Path(folder), {}, {}
    for name, array in load_file(folder / "model.safetensors").items():
        client, _, tensor = name.rpartition("/")
        (own.setdefault(client, {}) if client else common)[tensor] = array
    if aggregation in REFERENCES:
        served = {name: common for name in clients}
        alone = aggregation == "local"
    else:
        rule = build_rule(aggregation, **dict(aggregation_options or {})).fitted(adapted_layers(model))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        state = State(summary["best_round"]["global"], common)
        served = {name: rule.down(state, name) for name in clients}
        alone = rule.personalised
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    return {
        name: {tensor: filled_up(array, shapes[tensor]) for tensor, array in arrays.items()} | own.get(name, {})
        for name, arrays in served.items()
        if name in own or not alone
    }
