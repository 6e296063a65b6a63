"""What each cell costs: parameters, bytes, operations, memory and time, side by side."""

from collections.abc import Mapping, Sequence

import pandas as pd

from fedbrain.tables import EFFICIENCY

MACS_PER_G = 1e9


def efficiency(cells: Sequence[tuple[str, str, str]], runs: Sequence[tuple[Mapping, pd.DataFrame]]) -> pd.DataFrame:
    """One row per cell, in the given order (table EFFICIENCY).

    Args:
        cells: head, tuning and aggregation.
        runs: for every cell and seed the summary that training wrote, and its table ROUNDS.

    Numbers that differ between the seeds of a cell are means over them (bytes, seconds) or the largest (memory). Bytes are those
    really sent, per round and client; the model that goes down once more after the last round is counted. ``sent_share`` is what methods
    are often compared by, parameters that travel over all parameters of the model (FLAP-SAM, arXiv 2407.21739, counts so);
    ``bytes_share`` is what really travelled in the run, both ways, over what all parameters as float32 would have in as many
    rounds. Seconds are those that the clients' messages took (training, and all validation): of a round, the sum over its clients, as they run one after the other here; of a
    scan, that divided by the training scans of all epochs, validation included.
    """
    by_cell: dict[tuple, list[tuple[Mapping, pd.DataFrame]]] = {}
    for summary, rounds in runs:
        by_cell.setdefault(tuple(summary["cell"].values()), []).append((summary, rounds))
    return pd.DataFrame([_row(cell, by_cell[tuple(cell)]) for cell in cells], columns=list(EFFICIENCY)).astype(
        EFFICIENCY
    )


def _row(cell, runs: Sequence[tuple[Mapping, pd.DataFrame]]) -> dict:
    first = runs[0][0]
    parameters, operations = first["parameters"], first["operations"]
    rounds = pd.concat([table.assign(run=number) for number, (_, table) in enumerate(runs)])
    messages = len(rounds)
    trained_rounds = len(rounds[["run", "round"]].drop_duplicates())
    bytes_run = float((rounds["bytes_down"] + rounds["bytes_up"]).sum()) / len(
        rounds[["run", "client"]].drop_duplicates()
    )
    full_bytes = 4.0 * parameters["full"]
    seconds = float(rounds["seconds"].sum())
    return {
        **dict(zip(("head", "tuning", "aggregation"), cell)),
        "seeds": len(runs),
        "trained": parameters["trained"],
        "trained_share": parameters["trained"] / parameters["full"] if parameters["full"] else 0.0,
        "sent": parameters["sent"],
        "sent_share": parameters["sent"] / parameters["full"] if parameters["full"] else 0.0,
        "bytes_down": float(rounds["bytes_down"].sum()) / messages,
        "bytes_up": float(rounds["bytes_up"].sum()) / messages,
        "bytes_run": bytes_run,
        "bytes_share": bytes_run / (2 * full_bytes * trained_rounds / len(runs)) if full_bytes else None,
        "rounds": trained_rounds / len(runs),
        "full_bytes": full_bytes,
        "gmacs": operations["volume"] / MACS_PER_G,
        "gmacs_step": operations["cut"] / MACS_PER_G,
        "gmacs_reference": operations["reference"] / MACS_PER_G if operations["reference"] else None,
        "peak_memory": max(summary["peak_memory"] for summary, _ in runs),
        "peak_memory_client": rounds["peak_memory"].max(),
        "seconds_client": seconds / int(rounds["seconds"].notna().sum()) if rounds["seconds"].notna().any() else None,
        "seconds_round": seconds / trained_rounds,
        "seconds_scan": seconds / (float(rounds["scans"].sum()) * first["training"]["local_epochs"]),
        "seconds_run": sum(summary["seconds"] for summary, _ in runs) / len(runs),
        "device": ", ".join(sorted({summary["device"] for summary, _ in runs})),
    }
