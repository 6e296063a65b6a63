"""What each client holds: its scans' embeddings, labels and sides, with no person on two sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedbrain.cohorts.splits import SIDES, assert_no_leakage, known_without
from fedbrain.errors import StudyError
from fedbrain.provenance import digest
from fedbrain.tables import DROPPED, SCANS, SPLITS, read_table

RESIDENT = 0.4  # of a GPU's memory that inputs may take up for good, those of all clients together

ORIGIN = ("encoder", "weights", "cut")  # what the files of embeddings say of themselves


class Rows:
    """The inputs of N scans, each a tensor of the same shape, left where they are until they are asked for.

    They are views of memory-mapped files: nothing is read before it is used, the system keeps what it has room for, and
    many jobs on one machine share it.
    """

    def __init__(self, rows: Sequence[Tensor], device: str = "cpu", maps: Sequence[tuple | None] | None = None):
        self._rows = list(rows)
        self._device = device
        self._maps = [None] * len(self._rows) if maps is None else list(maps)  # gain and shift of channel means, by row

    @classmethod
    def joined(cls, parts: "Sequence[Tensor | Rows]") -> "Rows":
        """The rows of several, in their order, not copied."""
        parts = [part if isinstance(part, Rows) else cls(part) for part in parts]
        return cls([row for part in parts for row in part._rows], maps=[own for part in parts for own in part._maps])

    def with_means(self, gain: np.ndarray, shift: np.ndarray) -> "Rows":
        """The same rows (C, ...), moved whenever they are read: each channel's mean m over the positions becomes ``gain`` m + ``shift``.

        gain (C,), shift (N, C). What a position has beyond the mean stays, and so does the rows' precision.
        """
        gain = torch.as_tensor(gain, dtype=torch.float32)
        maps = [(gain, torch.as_tensor(own, dtype=torch.float32)) for own in shift]
        return Rows(self._rows, self._device, maps)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the rows; None where there are none."""
        return self._rows[0].dtype if self._rows else None

    def __getitem__(self, index: Tensor | slice) -> "Tensor | Rows":
        """With a tensor of places: (b, ...) on the device; with a slice: those rows, still where they are."""
        if isinstance(index, slice):
            return Rows(self._rows[index], self._device, self._maps[index])
        return torch.stack([_read(self._rows[i], self._maps[i]) for i in index.tolist()]).to(self._device)

    def at(self, places: Sequence[int]) -> "Rows":
        """The rows at some places, in that order, still where they are."""
        return Rows([self._rows[i] for i in places], self._device, [self._maps[i] for i in places])

    def to(self, device: str) -> "Tensor | Rows":
        """The same rows, wanted on ``device``: moved there for good if a GPU has room for them, else batch by batch."""
        if torch.device(device).type == "cuda" and self._rows:
            size = sum(row.numel() * row.element_size() for row in self._rows)
            free, total = torch.cuda.mem_get_info(device)
            if total - free + size < RESIDENT * total:
                return torch.stack([_read(*row) for row in zip(self._rows, self._maps)]).to(device)
        return Rows(self._rows, device, self._maps)


def _read(row: Tensor, own: tuple[Tensor, Tensor] | None) -> Tensor:
    if own is None:
        return row
    gain, shift = own
    values = row.float().flatten(1)  # (C, positions)
    mean = values.mean(1)
    return (values + ((gain - 1) * mean + shift)[:, None]).view(row.shape).to(row.dtype)


@dataclass(frozen=True)
class Samples:
    """N scans of one side: ``x`` (N, ...) what the model takes, ``y`` (N,) labels 0 or 1, and whose they are."""

    x: (
        Tensor | Rows
    )  # embeddings (N, 384, 8, 8, 8) float16, or tokens (N, 512, 768) or volumes (N, 1, 128, 128, 128) float32
    y: Tensor  # (N,) int64
    subjects: tuple[str, ...]
    sessions: tuple[str | None, ...]
    scans: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: str) -> "Samples":
        """The same scans on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def counts(self) -> tuple[int, int]:
        """Numbers of scans with label 0 and with label 1."""
        positives = int(self.y.sum())
        return len(self) - positives, positives


def pool(parts: Sequence[Samples]) -> Samples:
    """The scans of several clients as one, in their order."""
    return Samples(
        Rows.joined([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
        *(
            tuple(value for part in parts for value in getattr(part, name))
            for name in ("subjects", "sessions", "scans")
        ),
    )


@dataclass(frozen=True)
class ClientData:
    """One client (a cohort) and its three sides; ``absent`` counts its scans that have no embedding (failed before).

    ``origin`` is what the embeddings say of themselves: the encoder's digest, its weights ("random" or file and digest), the cut;
    where they are harmonized also by what.
    """

    name: str
    train: Samples
    validation: Samples
    test: Samples
    absent: int = 0
    origin: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""  # of the volumes that the embeddings were made from

    def to(self, device: str) -> "ClientData":
        """The same client with its scans on ``device``."""
        return replace(self, **{side: getattr(self, side).to(device) for side in SIDES})

    def without_test(self) -> "ClientData":
        """The same client without its test scans: all that training may see."""
        return replace(self, test=Samples(self.test.x[:0], self.test.y[:0], (), (), ()))


def pool_clients(clients: Sequence[ClientData], name: str = "pooled") -> ClientData:
    """All clients as one, as if the scans had been collected in one place."""
    sides = {side: pool([getattr(client, side) for client in clients]) for side in SIDES}
    return ClientData(
        name,
        **sides,
        absent=sum(client.absent for client in clients),
        origin=clients[0].origin,
        fingerprint=digest([client.fingerprint for client in clients]),
    )


def leave_out(clients: Mapping[str, ClientData], cohort: str, splits: pd.DataFrame) -> dict[str, ClientData]:
    """The same clients, but all scans of one cohort are test scans, so that it trains and chooses nothing.

    Its persons who train or validate in another cohort (column person of ``splits``, a table SPLITS) have no scan left there: the
    model knows them. Raises StudyError for an unknown cohort.
    """
    if cohort not in clients:
        raise StudyError(f"cohort {cohort} cannot be left out: the clients are {', '.join(clients)}")
    client, known = clients[cohort], known_without(cohort, splits)
    everything = pool([getattr(client, side) for side in SIDES])
    order = sorted(
        (place for place, subject in enumerate(everything.subjects) if subject not in known),
        key=everything.scans.__getitem__,
    )
    none = client.without_test().test
    return dict(clients) | {
        cohort: replace(client, train=none, validation=none, test=chosen_scans(everything, order)),
    }


def chosen_scans(samples: Samples, places: Sequence[int]) -> Samples:
    """The scans at some places, in that order."""
    labels = samples.y[torch.tensor(places, dtype=torch.int64)]
    names = (tuple(getattr(samples, name)[place] for place in places) for name in ("subjects", "sessions", "scans"))
    return Samples(samples.x.at(places), labels, *names)


def load_clients(
    embeddings: Mapping[str, Sequence[str | PathLike]],
    scans: Mapping[str, str | PathLike],
    splits: str | PathLike,
    dropped: str | PathLike | None = None,
) -> dict[str, ClientData]:
    """Reads each cohort's embedding shards, its scan table and the split into one ClientData per cohort.

    Scans in the table ``dropped`` (tables.DROPPED) take no part, though they have an embedding.

    The scans of a side are ordered by scan id, whatever the order of the shards. Scans without an embedding (failed in an
    earlier stage) are absent and counted. Raises StudyError where a person stands on two sides, where a scan with an
    embedding is unknown to the scan table or the split, and where shards come from different encoders or weights.
    """
    table = read_table(splits, SPLITS)
    assert_no_leakage(table, splits)
    out = read_table(dropped, DROPPED) if dropped is not None else pd.DataFrame(columns=list(DROPPED))
    clients = {
        cohort: _load_client(
            *(cohort, shards, read_table(scans[cohort], SCANS), table[table["cohort"] == cohort]),
            set(out.loc[out["cohort"] == cohort, "scan"]),
        )
        for cohort, shards in sorted(embeddings.items())
    }
    origins = {tuple(sorted(client.origin.items())) for client in clients.values()}
    if len(origins) > 1:
        raise StudyError(
            f"cohorts {', '.join(clients)}: their embeddings come from different encoders or weights; "
            "delete results/embeddings and run again"
        )
    return clients


def _load_client(
    cohort: str, shards: Sequence, scans: pd.DataFrame, splits: pd.DataFrame, dropped: set[str]
) -> ClientData:
    # Here and not above: whoever only trains on samples needs neither the encoder nor a reader of volumes.
    from fedbrain.models.embeddings import read_embeddings

    ids, keys, origins, inputs = [], [], set(), []
    for shard in shards:
        names, tensor, metadata = read_embeddings(shard)
        ids += names
        inputs += tensor  # rows: views of the memory-mapped file
        keys.append(metadata["keys"])
        origins.add(tuple(metadata.get(key, "") for key in ORIGIN))
    if not ids:
        raise StudyError(
            f"cohort {cohort}: no scan has an embedding; see the reasons in results/volumes/{cohort}/*.tsv"
        )
    if len(origins) > 1:
        raise StudyError(
            f"cohort {cohort}: its shards come from different encoders or weights; delete results/embeddings and run again"
        )
    table = pd.DataFrame({"scan": ids}).astype({"scan": "string"})
    table = table.merge(scans[["scan", "subject", "session", "label"]], on="scan", how="left", validate="1:1")
    table = table.merge(splits[["subject", "split"]], on="subject", how="left")
    table = table[~table["scan"].isin(dropped)]
    for column, source in (("label", "its scan table"), ("split", "the split")):
        if table[column].isna().any():
            count = int(table[column].isna().sum())
            raise StudyError(
                f"cohort {cohort}: {count} scan(s) with an embedding are not in {source}; run again from there"
            )

    by_side = {side: table[table["split"] == side].sort_values("scan") for side in SIDES}
    sides = {}
    for side, rows in by_side.items():
        sides[side] = Samples(
            Rows([inputs[place] for place in rows.index]),
            torch.as_tensor(rows["label"].to_numpy(dtype="int64")),
            tuple(rows["subject"]),
            tuple(None if pd.isna(session) else session for session in rows["session"]),
            tuple(rows["scan"]),
        )
    return ClientData(
        cohort,
        **sides,
        absent=len(scans) - len(ids),
        origin=dict(zip(ORIGIN, origins.pop())),
        fingerprint=digest([sorted(keys), sorted(dropped)]),
    )
