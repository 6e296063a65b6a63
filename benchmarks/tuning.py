"""A training step of each tuning, with its frozen prefix kept and without, in one run.

    python benchmarks/tuning.py [--threads 2] [--repeats 3] [--scans 2] [--precision float32]

A step is forward, backward and AdamW for a batch of scans with a linear head. "without" starts from the volume, "kept" from the
tokens that enter the first trained block. Beside the seconds stands the ratio of the operations that either has to do, counted
from what torch runs: what a kept prefix can save at most where the machine computes at the same rate. The difference is that of the
losses of three steps. Times are the best of the repeats, both turns taken one after the other.
"""

import argparse
import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedbrain.federated.data import Samples
from fedbrain.federated.task import TrainingOptions, round_generator, train
from fedbrain.models.classifier import Classifier, build_classifier
from fedbrain.models.lora import LoRA
from fedbrain.models.sam_med3d import load_image_encoder
from fedbrain.models.tuning import Full, LastK, Norm, Tuning, start_of

TUNINGS = {
    "lora, last 2 blocks": (LoRA(), LoRA(cached=False)),
    "lora on q and v": (LoRA(targets=["q", "v"]), LoRA(targets=["q", "v"], cached=False)),
    "last block": (LastK(blocks=1), LastK(blocks=1, cached=False)),
    "norms, all blocks": (Norm(), Norm(cached=False)),
    "lora, all blocks": (LoRA(blocks="all"), LoRA(blocks="all", cached=False)),
    "full": (Full(), None),
}


def samples_of(model: Classifier, encoder: nn.Module, volumes: torch.Tensor) -> Samples:
    """The batch as the model takes it."""
    start = start_of(model.cut)
    with torch.no_grad():
        x = volumes if start is None else torch.cat([encoder.tokens(volume[None], start) for volume in volumes])
    ids = tuple(map(str, range(len(volumes))))
    return Samples(x, torch.arange(len(volumes)) % 2, ids, (None,) * len(volumes), ids)


def operations(model: Classifier, samples: Samples) -> int:
    """Multiply-accumulates of forward and backward for one scan, counted on tensors without memory.

    Not on the CPU's: torch's counter does not know the attention kernel that it takes there.
    """
    empty = copy.deepcopy(model).to("meta")
    with FlopCounterMode(display=False) as counter:
        empty(samples.x[:1].to("meta")).sum().backward()
    return counter.get_total_flops() // 2


def step_seconds(model: Classifier, samples: Samples, precision: str) -> tuple[float, float]:
    """Seconds and loss of one step of the whole batch."""
    options = TrainingOptions(rounds=1, batch_size=len(samples), precision=precision)
    start = time.perf_counter()
    loss = train(model, samples, options, round_generator(0, "benchmark", 1), "cpu")
    return time.perf_counter() - start, loss


def compare(name: str, tunings: tuple[Tuning, Tuning | None], encoder, volumes, repeats: int, precision: str) -> None:
    models = [build_classifier("linear", tuning, seed=1) for tuning in tunings if tuning]
    inputs = [samples_of(model, encoder, volumes) for model in models]
    counted = [operations(model, samples) for model, samples in zip(models, inputs)]
    seconds, losses = [[] for _ in models], [[] for _ in models]
    for _ in range(repeats):
        for model, samples, times, found in zip(models, inputs, seconds, losses):
            taken, loss = step_seconds(model, samples, precision)
            times.append(taken)
            found.append(loss)
    best = [min(times) / len(volumes) for times in seconds]
    if len(models) == 1:
        print(f"{name:20s} {'':10s} {best[0]:6.2f} s a scan                  GMACs {counted[0] / 1e9:6.1f}", flush=True)
        return
    difference = max(abs(a - b) / abs(b) for a, b in zip(*losses))
    print(
        f"{name:20s} {models[0].cut:10s} without {best[1]:6.2f} s  kept {best[0]:6.2f} s a scan: {best[1] / best[0]:4.1f} x   "
        f"GMACs {counted[1] / 1e9:6.1f} -> {counted[0] / 1e9:5.1f}: {counted[1] / counted[0]:4.1f} x   "
        f"losses differ by {difference:.0e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", help="the tunings whose name holds this text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    volumes = torch.randn(arguments.scans, 1, 128, 128, 128, generator=torch.Generator().manual_seed(2))
    encoder = load_image_encoder(None, seed=0)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.precision}, {arguments.scans} scans a step"
    )
    for name, tunings in TUNINGS.items():
        if not arguments.only or arguments.only in name:
            compare(name, tunings, encoder, volumes, arguments.repeats, arguments.precision)


if __name__ == "__main__":
    main()
