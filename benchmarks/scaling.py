"""What each stage costs per scan, measured on a few phantoms, and what that makes for 1,000 and 10,000 scans.

    python benchmarks/scaling.py [--scans 2] [--threads 1]

Each stage runs in a process of its own, so that its peak memory is its own. Seconds are CPU seconds per further scan: every stage
works on one scan first, which pays for imports, networks and templates ("start"), and on ``--scans`` scans after that. "cores" is
CPU seconds over wall seconds: how many cores the stage really kept busy (a busy machine lowers it). The encoder has random weights,
which cost what trained ones cost. With ``--threads 2`` the volume is also compared with that of one thread.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fedbrain.devices import keep_freed_memory, set_threads

HEADS = ("linear", "conv_s", "conv_l")
STAGES = ("preprocessing", "volume", "output", "block10", *HEADS)  # cuts and heads by their names
SIZES = (1_000, 10_000)
ROUNDS = 20
TRAINING_SCANS = 32


def draw(folder: Path, count: int) -> pd.DataFrame:
    """Phantoms with default options; MANIFEST rows."""
    from fedbrain.cohorts.phantom import plan_cohort, write_scan
    from fedbrain.tables import MANIFEST

    options, rows = {"controls": count, "cases": 0}, []
    for number, plan in enumerate(plan_cohort("scaling", options, 1).to_dict("records")):
        path = folder / f"{number}.nii.gz"
        write_scan(plan, options, 1, path)
        rows.append({"scan": f"sub-{number}", "subject": str(number), "path": str(path), "fingerprint": "f"})
    return pd.DataFrame(rows).reindex(columns=list(MANIFEST)).astype(MANIFEST)


def preprocess(scans: pd.DataFrame, folder: Path) -> None:
    from fedbrain.imaging.shard import preprocess_shard

    table, _ = preprocess_shard(scans, folder, {}, cohort="scaling")
    assert (table["status"] == "ok").all(), list(table["reason"])
    table.to_csv(folder.with_suffix(".tsv"), sep="\t", index=False, na_rep="n/a")


def embed(cut: str, scans: pd.DataFrame, folder: Path, root: Path) -> None:
    from fedbrain.models.embeddings import embed_shard
    from fedbrain.tables import VOLUMES, read_table

    table = read_table(root / "volumes.tsv", VOLUMES)
    embed_shard(table[table["scan"].isin(scans["scan"])], root / "volumes", folder / "kept.safetensors", cut=cut)


def train_head(head: str, scans: int) -> None:
    """One round on synthetic embeddings, and the validation on a quarter as many."""
    import torch

    from fedbrain.federated.data import Samples
    from fedbrain.federated.task import TrainingOptions, evaluate, round_generator, train
    from fedbrain.models.heads import build_head

    def samples(count):
        ids = tuple(map(str, range(count)))
        return Samples(torch.randn(count, 384, 8, 8, 8).half(), torch.arange(count) % 2, ids, (None,) * count, ids)

    model = build_head(head)
    train(model, samples(scans), TrainingOptions(), round_generator(0, "client", 1), "cpu")
    evaluate(model, samples(max(1, scans // 4)))


def measure(stage: str, root: Path, threads: int) -> None:
    """Runs one stage; prints a line of JSON."""
    set_threads(threads)
    keep_freed_memory()
    scans = pd.read_pickle(root / "scans.pkl")
    counts, costs = (1, len(scans) - 1), []
    if stage in HEADS:
        counts = (4, TRAINING_SCANS)
    for part, count in enumerate(counts):
        folder = root / f"{stage}-{part}"
        folder.mkdir()
        cpu, wall = time.process_time(), time.perf_counter()
        mine = scans.iloc[:1] if part == 0 else scans.iloc[1:]
        if stage == "preprocessing":
            preprocess(mine, folder)
        elif stage in HEADS:
            train_head(stage, count)
        else:
            embed(stage, mine, folder, root)
        costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    (first, _), (rest, wall) = costs
    found = {
        "cpu": rest / counts[1],
        "start": first - rest / counts[1] * counts[0],
        "cores": rest / wall,
        "threads": len(os.listdir("/proc/self/task")),
        "memory": peak_megabytes(),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()) / counts[1],
    }
    print(json.dumps(found))


def peak_megabytes() -> float:
    """Of this process alone; getrusage's would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def in_own_process(stage: str, root: Path, threads: int) -> dict:
    command = [sys.executable, __file__, "--measure", stage, str(root), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare_threads(root: Path, threads: int) -> None:
    """The first volume made with ``threads`` threads beside that of one."""
    import nibabel

    from fedbrain.imaging.layout import mask_path, volume_path

    volumes, masks = [], []
    for name in ("preprocessing-0", "one-thread"):
        volumes.append(nibabel.load(volume_path(root / name, "sub-0")).get_fdata())
        masks.append(nibabel.load(mask_path(root / name, "sub-0")).get_fdata() > 0)
    inside = masks[0] & masks[1]
    apart = np.abs(volumes[0] - volumes[1])[inside] / volumes[1][inside].std()
    print(
        f"{threads} threads beside one: {np.count_nonzero(masks[0] ^ masks[1])} of {np.count_nonzero(masks[1])} mask voxels "
        f"differ; intensities by {apart.mean():.4f} SD on average, {apart.max():.3f} at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure[0], Path(arguments.measure[1]), arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root, arguments.scans + 1).to_pickle(root / "scans.pkl")
        print(
            f"{'stage':<16}{'CPU-s/scan':>11}{'start':>7}{'cores':>7}{'threads':>9}{'peak MB':>9}{'MB/scan':>9}",
            flush=True,
        )
        found = {}
        for stage in STAGES:
            if stage == "volume":  # the cuts need the volumes of all scans
                gather(root)
            cost = found[stage] = in_own_process(stage, root, arguments.threads)
            print(
                f"{stage:<16}{cost['cpu']:>11.3f}{cost['start']:>7.1f}{cost['cores']:>7.2f}{cost['threads']:>9}"
                f"{cost['memory']:>9.0f}{cost['bytes'] / 1e6:>9.2f}",
                flush=True,
            )
        for size in SIZES:
            print(f"{size} scans, on one core:")
            for stage, cost in found.items():
                times = ROUNDS * 0.6 if stage in HEADS else 1  # three fifths of the scans are trained on
                words = f"{times * cost['cpu'] * size / 3600:.1f} CPU-h"
                words += f" for {ROUNDS} rounds" if stage in HEADS else f", {cost['bytes'] * size / 1e9:.1f} GB"
                print(f"    {stage:<16}{words}")
        if arguments.threads > 1:
            one_thread(root)
            compare_threads(root, arguments.threads)


def gather(root: Path) -> None:
    """The volumes and tables of both parts of preprocessing as those of one shard."""
    (root / "volumes").mkdir()
    parts = [root / "preprocessing-0", root / "preprocessing-1"]
    for part in parts:
        for path in part.iterdir():
            (root / "volumes" / path.name).symlink_to(path)
    tables = [pd.read_csv(part.with_suffix(".tsv"), sep="\t", dtype=str, keep_default_na=False) for part in parts]
    pd.concat(tables).to_csv(root / "volumes.tsv", sep="\t", index=False)


def one_thread(root: Path) -> None:
    """The first scan again, in a process with one thread."""
    code = "import sys; from pathlib import Path; import pandas as pd; from fedbrain.devices import set_threads; set_threads(1); "
    code += "import scaling; root = Path(sys.argv[1]); "
    code += "scaling.preprocess(pd.read_pickle(root / 'scans.pkl').iloc[:1], root / 'one-thread')"
    subprocess.run([sys.executable, "-c", code, str(root)], cwd=Path(__file__).parent, check=True, capture_output=True)


if __name__ == "__main__":
    main()
