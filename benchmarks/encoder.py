"""The image encoder beside medim's implementation: forward, training step, peak memory and agreement, in one run.

    python benchmarks/encoder.py [--threads 2] [--repeats 3]

Each measurement runs in a process of its own, one after another, so that peak memory (maximum resident set) belongs to
it alone; times are the best of the repeats, memory includes the interpreter, torch and the weights. Both hold the same random
weights with no position table at zero. A training step is forward and backward of a scan through all parameters (no optimizer).
Targets on a CPU: forward at least 8 times as fast; one scan's outputs equal to a relative 1e-5.
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


def measure(which: str, what: str, repeats: int, output: Path) -> None:
    """Runs in its own process; prints one JSON line."""
    encoder = load(which)
    image = torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(2))
    seconds = []
    for _ in range(repeats):
        encoder.zero_grad()
        start = time.perf_counter()
        if what == "forward":
            with torch.inference_mode():
                result = encoder(image)
        else:
            encoder(image).square().mean().backward()
            result = encoder.patch_embed.proj.weight.grad  # the gradient that passed through everything
        seconds.append(time.perf_counter() - start)
    torch.save(result, output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB, ru_maxrss is in KiB on Linux
    print(json.dumps({"seconds": min(seconds), "peak": peak}))


def compare(what: str, threads: int, repeats: int, folder: Path) -> None:
    found = {}
    for which in ("reference", "ours"):
        command = [sys.executable, __file__, "--threads", str(threads), "--measure", which, what]
        # The first pass of ours also pays for allocation, which a single reference pass hides in its length.
        count = repeats if which == "reference" else 2 * repeats
        command += ["--repeats", str(count), "--output", str(folder / which)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[which] = json.loads(done.stdout.splitlines()[-1])
    reference, ours = found["reference"], found["ours"]
    expected, result = torch.load(folder / "reference"), torch.load(folder / "ours")
    error = float((result - expected).norm() / expected.norm())
    print(
        f"{what:8s}  {reference['seconds']:7.2f} s -> {ours['seconds']:6.2f} s: {reference['seconds'] / ours['seconds']:5.1f} x"
        f"   peak {reference['peak']:6.2f} GiB -> {ours['peak']:5.2f} GiB: {ours['peak'] / reference['peak']:4.0%}"
        f"   relative difference {error:.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("WHICH", "WHAT"), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        measure(*arguments.measure, arguments.repeats, arguments.output)
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads, float32, one scan; reference -> ours", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for what in ("forward", "training"):
            compare(what, arguments.threads, arguments.repeats, Path(folder))


if __name__ == "__main__":
    main()
