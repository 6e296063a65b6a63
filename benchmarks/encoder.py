"""The image encoder beside medim's implementation: forward, training step, peak memory and agreement, in one run.

    python benchmarks/encoder.py [--threads 2] [--repeats 3] [--device cuda] [--batches 1 4 16] [--precisions float32 bfloat16]

Each measurement runs in a process of its own, one after another, so that peak memory belongs to it alone: on a CPU the maximum
resident set, with the interpreter, torch and the weights; on a GPU that of the tensors there. Times are the best of the repeats. Both
hold the same random weights with no position table at zero. A training step is forward and backward through all parameters (no
optimizer). "of the ceiling" is the rate of ours in counted operations over that of one large matrix product on the same device and in
the same precision. Targets on a CPU: forward at least 8 times, training step at least 6 times as fast with at most 40 % of the
memory; one scan's outputs equal to a relative 1e-5.
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch


def load(which: str) -> torch.nn.Module:
    """``ours`` or ``reference``, both with the same random weights."""
    torch.manual_seed(0)
    if which == "ours":
        from fedbrain.models.sam_med3d import ImageEncoder

        encoder = ImageEncoder()
    else:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import medim

            encoder = medim.create_model("SAM-Med3D", pretrained=False).image_encoder
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(encoder.named_parameters()):
            if name.endswith("weight") and parameter.ndim == 1:  # gain of a norm
                parameter.fill_(1.0)
            else:
                scale = 0.2 if parameter.ndim == 1 or "pos" in name else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return encoder.eval()


def measure(which: str, what: str, arguments: argparse.Namespace) -> None:
    """Runs in its own process; prints one JSON line."""
    from fedbrain.devices import autocast, be_repeatable

    device, precision = arguments.device, arguments.precisions[0]
    be_repeatable(device, deterministic=False)
    encoder = load(which).to(device)
    shape = (arguments.batches[0], 1, 128, 128, 128)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)
    seconds = []
    for _ in range(arguments.repeats):
        encoder.zero_grad()
        start = time.perf_counter()
        if what == "forward":
            with torch.inference_mode(), autocast(device, precision):
                result = encoder(image)
        else:
            with autocast(device, precision):
                embedding = encoder(image)
            embedding.float().square().mean().backward()
            result = encoder.patch_embed.proj.weight.grad  # the gradient that passed through everything
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    torch.save(result.float().cpu(), arguments.output)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, ru_maxrss is in KiB on Linux
    print(json.dumps({"seconds": min(seconds), "peak": peak}))


def ceiling(arguments: argparse.Namespace, precision: str) -> float:
    """Operations per second (two per multiply-accumulate) of a large matrix product."""
    size, kind = (8192, torch.bfloat16) if arguments.device == "cuda" else (2048, torch.bfloat16)
    kind = kind if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=arguments.device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def compare(what: str, batch: int, precision: str, arguments: argparse.Namespace, folder: Path) -> None:
    from fedbrain.models.operations import bare_encoder, count_operations

    found = {}
    for which in ("reference", "ours"):
        command = [sys.executable, __file__, "--threads", str(arguments.threads), "--measure", which, what]
        # The first pass of ours also pays for allocation, which a single reference pass hides in its length.
        count = arguments.repeats if which == "reference" else 2 * arguments.repeats
        command += ["--repeats", str(count), "--output", str(folder / which), "--device", arguments.device]
        command += ["--batches", str(batch), "--precisions", precision]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{what:8s}  batch {batch:2d} {precision:8s}  {which} failed: {done.stderr.strip().splitlines()[-1]}")
            return
        found[which] = json.loads(done.stdout.splitlines()[-1])
    reference, ours = found["reference"], found["ours"]
    expected, result = torch.load(folder / "reference"), torch.load(folder / "ours")
    error = float((result - expected).norm() / expected.norm())
    count = count_operations(bare_encoder("sam_med3d"), torch.empty(batch, 1, 128, 128, 128, device="meta"))
    rate = 2 * count * (1 if what == "forward" else 3) / ours["seconds"]  # a backward pass has twice the products
    print(
        f"{what:8s}  batch {batch:2d} {precision:8s}  {reference['seconds']:8.3f} s -> {ours['seconds']:7.3f} s: "
        f"{reference['seconds'] / ours['seconds']:5.1f} x   "
        f"peak {reference['peak']:6.2f} GiB -> {ours['peak']:5.2f} GiB: {ours['peak'] / reference['peak']:4.0%}   "
        f"relative difference {error:.1e}   {rate / 1e12:.3f} TFLOP/s, {rate / ceiling(arguments, precision):.0%} of the ceiling",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1])
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        measure(*arguments.measure, arguments)
        return
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads; reference -> ours", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions:
            for batch in arguments.batches:
                for what in ("forward", "training"):
                    compare(what, batch, precision, arguments, Path(folder))


if __name__ == "__main__":
    main()
