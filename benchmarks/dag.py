"""What starting the workflow costs on a large study that has nothing to do: seconds and memory of `snakemake --dry-run`.

    python benchmarks/dag.py --scans 10000

Pretends a study of two cohorts (empty scans, outputs that are merely there) in a temporary folder, and beside it, as the
reference, a workflow over the same scans with one job per scan and stage instead of one per shard and stage.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = """
SCANS = range({scans})
rule all:
    input: expand("{{scan}}.embedding", scan=SCANS)
rule mask:
    output: "{{scan}}.mask"
    shell: "touch {{output}}"
rule volume:
    input: "{{scan}}.mask"
    output: "{{scan}}.volume"
    shell: "touch {{output}}"
rule embedding:
    input: "{{scan}}.volume"
    output: "{{scan}}.embedding"
    shell: "touch {{output}}"
"""


def snakemake(folder: Path, *arguments: str) -> tuple[str, float, float, float]:
    """Output, seconds, CPU seconds and peak megabytes of one call."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    # wait4 gives the peak of this one process; RUSAGE_CHILDREN would give that of the largest so far.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0)
        text = output.read()
    if status:
        raise SystemExit(text[-3000:])
    return text, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def pretend(folder: Path, scans: int) -> None:
    """A checkout with the tables of ``scans`` scans and all outputs of the workflow, as if it had run."""
    for part in ("Snakefile", "rules", "profiles", "workflow_scripts", "envs", "src"):
        (folder / part).symlink_to(ROOT / part)
    cohorts = {}
    for cohort in ("alpha", "beta"):
        data = folder / "data" / cohort
        data.mkdir(parents=True)
        rows = ["subject\tpath\tdiagnosis\tage\tsex"]
        for number in range(scans // 2):
            (data / f"{number}.nii.gz").touch()
            rows.append(
                f"{cohort}{number:06d}\t{number}.nii.gz\t{('CN', 'AD')[number % 3 == 0]}\t{60 + number % 30}\tF"
            )
        (data / "scans.tsv").write_text("\n".join(rows) + "\n")
        cohorts[cohort] = {"table": f"data/{cohort}/scans.tsv", "shards": max(1, scans // 100)}
    grid = [{"heads": ["linear", "conv_s", "conv_l"], "aggregations": ["fedavg", "fedce", "local"], "seeds": [0, 1, 2]}]
    study = {
        "title": "t",
        "cohorts": cohorts,
        "labels": {"CN": 0, "AD": 1},
        "encoder": {"weights": "random"},
        "grid": grid,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    text, seconds, cpu, _ = snakemake(folder, "--dry-run")
    print(f"the first start, with all to be done: {seconds:.1f} s ({cpu:.1f} CPU-s)", flush=True)
    outputs = [name for line in re.findall(r"^    output: (.*)$", text, re.MULTILINE) for name in line.split(", ")]
    for name in outputs:
        name = name.removesuffix(" (update)")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "results/cohorts/splits.json").write_text('{"parameters": {}}')  # read at the start
    snakemake(folder, "--touch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=10_000)
    scans = parser.parse_args().scans
    folder = Path(tempfile.mkdtemp())
    try:
        ours, reference = folder / "ours", folder / "reference"
        ours.mkdir()
        reference.mkdir()
        pretend(ours, scans)
        text, seconds, cpu, megabytes = snakemake(ours, "--dry-run")
        assert "Nothing to be done" in text, text[-3000:]
        print(
            f"{scans} scans in shards: nothing to be done, known after {seconds:.1f} s ({cpu:.1f} CPU-s), {megabytes:.0f} MB",
            flush=True,
        )
        (reference / "Snakefile").write_text(REFERENCE.format(scans=scans))
        for number in range(scans):
            for stage in ("mask", "volume", "embedding"):
                (reference / f"{number}.{stage}").touch()
        text, reference_seconds, reference_cpu, reference_megabytes = snakemake(reference, "--dry-run")
        assert "Nothing to be done" in text, text[-3000:]
        print(
            f"one job per scan and stage: {reference_seconds:.1f} s ({reference_cpu:.1f} CPU-s), {reference_megabytes:.0f} MB"
        )
        print(f"ratio: {reference_cpu / cpu:.1f} in CPU time, {reference_megabytes / megabytes:.1f} in memory")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
