"""What a membership attack needs of the engine: data for its shadow models, and the logits of a model that has been released.

A shadow model is trained by :func:`fedbrain.federated.cell.train_cell`, as the attacked one was, on a random half of the persons that
the attacked one was trained or tested on (Shokri et al., IEEE S&P 2017; Carlini et al., IEEE S&P 2022).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from fedbrain.federated.data import ClientData, chosen_scans, pool
from fedbrain.federated.released import released_models
from fedbrain.federated.task import TrainingOptions, derive_seed, evaluate
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.registry import build
from fedbrain.tables import MEMBERS

ATTACKED = ("train", "test")  # the sides whose subjects are members and non-members


def shadow_clients(
    clients: Mapping[str, ClientData], splits: pd.DataFrame, number: int, seed: int
) -> dict[str, ClientData]:
    """The clients that train, with other sides: trained on is a random half of the persons that were trained or tested on.

    The other half are test scans; validation scans stay what they are. Halves are drawn within label and cohort (that a person
    stands in first), and those of numbers 2j and 2j + 1 are each other's complement: after an even number of shadow models each
    person was in exactly half of them. splits: table SPLITS, whose person ties subjects together.
    """
    halves = _half(clients, splits, number, seed)
    result = {}
    for name, client in clients.items():
        if not len(client.train):
            continue
        everything = pool([getattr(client, side) for side in ATTACKED])
        order = sorted(range(len(everything)), key=everything.scans.__getitem__)
        inside = [place for place in order if (name, everything.subjects[place]) in halves]
        outside = [place for place in order if (name, everything.subjects[place]) not in halves]
        result[name] = replace(client, train=chosen_scans(everything, inside), test=chosen_scans(everything, outside))
    return result


def _half(clients, splits, number, seed) -> set[tuple[str, str]]:
    """Cohort and subject of those that the shadow model of this number is trained on."""
    trains = [name for name, client in clients.items() if len(client.train)]
    rows = splits[splits["cohort"].isin(trains) & splits["split"].isin(ATTACKED)]
    own = rows["cohort"].astype("string") + "/" + rows["subject"].astype("string")
    rows = rows.assign(person=rows["person"].astype("string").fillna(own))
    homes = rows.groupby("person", sort=True).agg(home=("cohort", "first"), label=("label", "max")).reset_index()
    pair, second = divmod(number, 2)
    persons, extra = set(), derive_seed(seed, "shadow", pair) % 2
    for _, stratum in homes.groupby(["home", "label"], sort=True):
        dealt = sorted(stratum["person"], key=lambda person: derive_seed(seed, "shadow", pair, person))
        persons.update(dealt[(second + extra) % 2 :: 2])
        extra += len(dealt) % 2  # who gets the odd one takes turns, so that halves differ by one person at most
    return set(zip(*(rows.loc[rows["person"].isin(persons), name] for name in ("cohort", "subject"))))


def member_logits(
    clients: Mapping[str, ClientData],
    *,
    head: str,
    tuning: str,
    aggregation: str,
    head_options: Mapping | None = None,
    tuning_options: Mapping | None = None,
    aggregation_options: Mapping | None = None,
    training: Mapping | TrainingOptions | None = None,
    source: EncoderSource | None = None,
    seed: int = 0,
    folder: str | Path,
    device: str = "cpu",
) -> pd.DataFrame:
    """The logit of every training and test scan under the model that its client was given: a table MEMBERS.

    ``folder`` is what :func:`fedbrain.federated.cell.train_cell` has written for these ``clients`` with the same arguments. That
    model is the global one, or the client's own where it has one. Clients that do not train have no members and no rows; those
    that were given no model have none either.
    """
    options = TrainingOptions.of(training or {})
    tuned = build("tuning", tuning, dict(tuning_options or {}))
    model = build_classifier(
        head, tuned, head_options=head_options, source=source, seed=derive_seed(seed, "model", head)
    )
    trains = [name for name, client in clients.items() if len(client.train)]
    models = released_models(folder, model, trains, aggregation=aggregation, aggregation_options=aggregation_options)
    model.to(device)
    parts = []
    for name, tensors in sorted(models.items()):
        model.load_state_dict({key: torch.as_tensor(array) for key, array in tensors.items()}, strict=False)
        for side in ATTACKED:
            scans = getattr(clients[name], side)
            if not len(scans):
                continue
            logits = evaluate(model, scans.to(device), options).logits  # (N,)
            part = {
                "cohort": name,
                "subject": scans.subjects,
                "session": scans.sessions,
                "member": int(side == "train"),
            }
            parts.append(pd.DataFrame(part | {"logit": np.where(scans.y.cpu().numpy() == 1, logits, -logits)}))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(MEMBERS))
    return table.astype(MEMBERS)
