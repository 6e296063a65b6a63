"""What a model of a client's own is worth to the client: its AUC against the global model, training alone, and pooled data."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from fedbrain.evaluation.comparison import compare_cells
from fedbrain.evaluation.predictions import OWN_MODELS, POOLED, Cell, cell_name
from fedbrain.tables import PERSONALISATION

AGAINST = ("global", "local", "centralized")


def personalisation(
    predictions: Mapping[Cell, Mapping[int, pd.DataFrame]],
    personal: Mapping[Cell, Cell | None],
    *,
    clients: Sequence[str],
    splits: pd.DataFrame,
    own_models: Collection[str] = OWN_MODELS,
    **options,
) -> pd.DataFrame:
    """Paired differences in AUC, own model minus another, for each client and pooled: a table :data:`PERSONALISATION`.

    predictions, clients, splits, own_models: as :func:`fedbrain.evaluation.comparison.compare_cells` takes them, and ``options``
    further ones of its. personal: the cells whose clients have models of their own, with the cell of the global model that each is
    compared with, if there is one. The others are ``local`` and ``centralized`` with the same head and tuning, where
    they are among the predictions. ``training`` counts the client's training subjects.

    Raises what compare_cells raises.
    """
    against: dict[tuple[Cell, Cell], str] = {}
    for cell, common in personal.items():
        others = (common, *((*cell[:2], name) for name in AGAINST[1:]))
        against |= {(cell, other): name for name, other in zip(AGAINST, others) if other in predictions}
    table = compare_cells(
        predictions, pairs=list(against), clients=clients, splits=splits, own_models=own_models, **options
    )
    named = {(cell_name(a), cell_name(b)): name for (a, b), name in against.items()}
    trained = splits[splits["split"] == "train"].groupby("cohort")["subject"].nunique()
    counts = {client: int(trained.get(client, 0)) for client in clients}
    counts[POOLED] = sum(counts.values())
    return table.assign(
        against=[named[pair] for pair in zip(table["cell_a"], table["cell_b"])],
        training=table["client"].map(counts),
    )[list(PERSONALISATION)].astype(PERSONALISATION)
