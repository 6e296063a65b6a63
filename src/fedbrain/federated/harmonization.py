"""Harmonization of embeddings: the channel means of all clients, fitted on their training subjects, applied as training reads.

A channel's feature is its mean over the 8 x 8 x 8 positions, a subject's value that of its first training scan: subjects are independent
and all values alike in variance, which means over several visits are not. Each scan's channel is moved as a whole, by what its
mean is to change; the pattern over the positions stays (ours). So what a linear head sees is harmonized exactly. To scale the
pattern with the mean's scale would mark every client by it: the scale is that of subjects about their mean, and patterns
differ little between subjects. A location and scale for every position would be 512 times the parameters, with as few subjects
to tell them from.

Labels have no part. The covariates age and sex may be kept, since they are known of every scan; the diagnosis may not: it would have to be
known of a test scan before it is classified.

A cohort that takes no part in the training (external, or left out) takes none in the pooled estimates. Its location and scale it tells by
itself, from all its subjects and without their labels, against those estimates: so it must have some scans together before
the first can be harmonized, and where its share of cases differs, some of the disease's effect goes with its location.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from fedbrain.cohorts.splits import SIDES
from fedbrain.errors import StudyError
from fedbrain.federated.combat import FEWEST, Adjustment, Pooled, adjustment, affine, pooled_estimates, site_sums
from fedbrain.federated.data import ClientData, Rows, Samples
from fedbrain.provenance import digest
from fedbrain.tables import HARMONIZATION, written_atomically

BYTES = 8  # of a number, as float64
BLOCK = 16  # scans whose features are computed at once: 25 MB

ENCODED = {"sex": {"F": 1.0, "M": 0.0}}


@dataclass(frozen=True)
class ComBat:
    """What was fitted: the pooled estimates and each client's location and scale (:mod:`fedbrain.federated.combat`)."""

    covariates: tuple[str, ...]
    origin: Mapping[str, str]  # of the embeddings
    pooled: Pooled
    clients: Mapping[str, Adjustment]

    @classmethod
    def fit(
        cls,
        clients: Mapping[str, ClientData],
        scans: Mapping[str, pd.DataFrame],
        *,
        covariates: Sequence[str] = (),
        unseen: Collection[str] = (),
    ) -> "tuple[ComBat, pd.DataFrame]":
        """Fits on the training subjects; also returns a table HARMONIZATION: what travelled and what was found, by client.

        scans: for each client its table SCANS, from which covariates are read. unseen: clients without a part in the pooled
        estimates, which tell their location and scale from their test subjects.
        Raises StudyError for a client with fewer than three training subjects (test subjects, where unseen), a missing age or
        sex, or covariates that do not vary within any client.
        """
        sums = {}
        for name, client in clients.items():
            part, which = (client.test, "test") if name in unseen else (client.train, "training")
            first = _first_scans(part)
            if len(first) < FEWEST:
                raise StudyError(
                    f"cohort {name}: {len(first)} {which} subjects, and ComBat needs {FEWEST} of every client to tell its "
                    "location and scale; add subjects, leave the cohort out, or train with harmonization: none"
                )
            means, _ = channel_features(part.x)
            x = _covariates(name, part.scans, scans[name], covariates)
            sums[name] = site_sums(means[first], x[first])
        try:
            pooled = pooled_estimates([own for name, own in sums.items() if name not in unseen])
            found = {name: adjustment(own, pooled) for name, own in sums.items()}
        except ValueError as error:
            raise StudyError(f"harmonization with covariates {', '.join(covariates) or 'none'}: {error}") from error
        varies = pooled.variance > 0
        rows = [
            {
                "client": name,
                "subjects": own.count,
                "numbers_up": 0 if name in unseen else own.numbers,
                "numbers_down": pooled.numbers,
                "bytes_up": 0 if name in unseen else BYTES * own.numbers,
                "bytes_down": BYTES * pooled.numbers,
                "location": np.median(np.abs(found[name].location[varies])),
                "scale": np.median(found[name].scale[varies]),
                "iterations": found[name].iterations,
                "constant_channels": int((~varies).sum()),
            }
            for name, own in sums.items()
        ]
        origin = dict(next(iter(clients.values())).origin)
        return cls(tuple(covariates), origin, pooled, found), pd.DataFrame(rows).astype(HARMONIZATION)

    def apply(self, clients: Mapping[str, ClientData], scans: Mapping[str, pd.DataFrame]) -> dict[str, ClientData]:
        """The same clients, the embeddings of all sides harmonized when they are read; nothing is copied.

        Raises StudyError where the embeddings are not those that it was fitted on, a client had no part in the fit, or an
        age or sex is missing.
        """
        identity = digest([self.covariates, {name: array.tolist() for name, array in self._arrays().items()}])
        result = {}
        for name, client in clients.items():
            if dict(client.origin) != dict(self.origin) or name not in self.clients:
                raise StudyError(
                    f"cohort {name}: its harmonization was fitted on other embeddings or without this cohort; delete "
                    "results/harmonization and run again"
                )
            sides = {side: self._harmonized(name, getattr(client, side), scans[name]) for side in SIDES}
            origin = dict(client.origin) | {"harmonization": identity}
            result[name] = replace(client, **sides, origin=origin)
        return result

    def change(self, name: str, ids: Sequence[str], scans: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Gain (C,) and shift (N, C) of the channel means of a client's scans, by their ids; ``scans`` is its table SCANS.

        Raises StudyError where an age or sex is missing.
        """
        return affine(self.pooled, self.clients[name], _covariates(name, ids, scans, self.covariates))

    def write(self, path: str | PathLike) -> None:
        """Writes the parameters as float64 safetensors."""
        iterations = {client: own.iterations for client, own in self.clients.items()}
        about = {"covariates": self.covariates, "origin": dict(self.origin), "iterations": iterations}
        with written_atomically(path) as temporary:
            # One key: the library writes several in random order.
            save_file(
                {name: np.ascontiguousarray(array) for name, array in self._arrays().items()},
                temporary,
                metadata={"harmonization": json.dumps(about, sort_keys=True)},
            )

    @classmethod
    def read(cls, path: str | PathLike) -> "ComBat":
        """Reads what ``write`` wrote. Raises StudyError for a file of another kind."""
        try:
            with safe_open(path, framework="np") as file:
                about = json.loads(file.metadata()["harmonization"])
                pooled = Pooled(*(file.get_tensor(f"pooled/{name}") for name in ("mean", "slopes", "variance")))
                clients = {
                    client: Adjustment(
                        file.get_tensor(f"{client}/location"), file.get_tensor(f"{client}/scale"), iterations
                    )
                    for client, iterations in about["iterations"].items()
                }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StudyError(f"{path}: not a readable harmonization ({error}); delete it and run again") from error
        return cls(tuple(about["covariates"]), about["origin"], pooled, clients)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"pooled/{name}": array for name, array in asdict(self.pooled).items()}
        for client, own in self.clients.items():
            arrays |= {f"{client}/location": own.location, f"{client}/scale": own.scale}
        return arrays

    def _harmonized(self, name: str, samples: Samples, scans: pd.DataFrame) -> Samples:
        gain, shift = self.change(name, samples.scans, scans)
        return replace(samples, x=Rows.joined([samples.x]).with_means(gain, shift))


def channel_features(x: Tensor | Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the positions of each channel of N scans: two arrays (N, C), float64."""
    means, spreads = [], []
    for start in range(0, len(x), BLOCK):
        block = x[torch.arange(start, min(start + BLOCK, len(x)))].double().flatten(2)  # (b, C, positions)
        means.append(block.mean(2))
        spreads.append(block.std(2, correction=0))
    if not means:
        return np.empty((0, 0)), np.empty((0, 0))
    return torch.cat(means).cpu().numpy(), torch.cat(spreads).cpu().numpy()


def _first_scans(samples: Samples) -> list[int]:
    """The place of each subject's first scan."""
    first: dict[str, int] = {}
    for place, subject in enumerate(samples.subjects):
        first.setdefault(subject, place)
    return list(first.values())


def _covariates(cohort: str, ids: Sequence[str], scans: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """(N, P) of float64, in the order of ``ids``; sex is 1 for F and 0 for M."""
    rows = scans.set_index("scan").loc[list(ids)]
    columns = []
    for name in names:
        values = rows[name].map(ENCODED[name]) if name in ENCODED else rows[name]
        missing = int(values.isna().sum())
        if missing:
            wanted = "F or M" if name in ENCODED else "a number"
            raise StudyError(
                f"cohort {cohort}: {name} of {missing} scan(s) is not {wanted}; complete the scan table, or leave {name} "
                "out of the covariates of the harmonization"
            )
        columns.append(values.to_numpy(dtype=np.float64))
    return np.column_stack(columns) if columns else np.empty((len(rows), 0))
