"""What each cell costs to train, to send and to run."""

from collections.abc import Callable, Mapping

import pandas as pd

from fedbrain.report.figures import figure
from fedbrain.report.html import Cell, Column, Html, columns, folded, join, p, table
from fedbrain.report.material import AXES, Material
from fedbrain.report.numbers import fixed, listed, percent, size, small

Shown = tuple[str, str, str, Callable]  # column of the table, name, unit, how it is written


def _count(value) -> Cell:
    return Cell(f"{int(value):,}", float(value))


# What a cell is, the same on every machine, and what it took on this one.
FIXED: tuple[Shown, ...] = (
    ("trained", "trained", "parameters", _count),
    ("trained_share", "of all", "of encoder and head", percent),
    ("sent", "sent", "parameters", _count),
    ("bytes_down", "down", "bytes, round and client", size),
    ("bytes_up", "up", "bytes, round and client", size),
    ("bytes_run", "whole run", "bytes, client", size),
    ("bytes_share", "of full tuning", "share of bytes", percent),
    ("gmacs", "forward pass", "GMACs, scan", lambda value: fixed(value, 1)),
    ("gmacs_step", "of a step", "GMACs, scan", small),
    ("gmacs_reference", "published", "GMACs, scan", lambda value: fixed(value, 1)),
)
MACHINE: tuple[Shown, ...] = (
    ("peak_memory", "peak memory", "job", size),
    ("peak_memory_client", "peak memory", "client", size),
    ("seconds_client", "a client's round", "s", small),
    ("seconds_round", "a round", "s", small),
    ("seconds_scan", "a scan and epoch", "s", small),
    ("seconds_run", "a run", "s", lambda value: fixed(value, 1)),
)


def cost(material: Material) -> Html:
    """Parameters, bytes, operations; memory and time."""
    return join(
        p(_words(material)),
        _table(material, "cost-table", "The same on every machine", FIXED),
        _table(material, "machine-table", f"On this machine ({_devices(material)})", MACHINE),
        figure(material, "auc_by_cost"),
        folded("What a client exchanges", exchanged) if (exchanged := figure(material, "communication")) else "",
    )


def _table(material: Material, id: str, caption: str, shown: tuple[Shown, ...]) -> Html:
    efficiency = material.efficiency
    header = columns("head", "tuning", "aggregation") + [Column(name, unit, True) for _, name, unit, _ in shown]
    rows = [
        [*(row[axis] for axis in AXES), *(_written(row, name, write) for name, *_, write in shown)]
        for row in efficiency.to_dict("records")
    ]
    return table(id, caption, header, rows, file="results/evaluation/efficiency.tsv", heads=3)


def _written(row: Mapping, name: str, write: Callable) -> Cell | None:
    return None if pd.isna(row[name]) else write(row[name])


def _devices(material: Material) -> str:
    return listed(dict.fromkeys(material.efficiency["device"].dropna()))


def _words(material: Material) -> str:
    full = size(material.efficiency["full_bytes"].max()).shown
    return (
        "Bytes are counted from what was really sent, per round and client (the last model goes down once more, to be "
        "validated); local and centralized training send nothing. Training all of encoder and head would send up to "
        f"{full} each way. GMACs are billions of multiply-accumulates for one scan, counted from the operations that run: a forward "
        "pass from the volume on; of a training step, from what is kept of the scan; as published, from the volume on with the encoder's own "
        "implementation, whose results ours equals. Memory is a peak. Seconds are of clients that train and validate one "
        "after the other, and of a whole run with everything around it."
    )
