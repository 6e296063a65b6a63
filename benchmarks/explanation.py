"""Seconds and memory of the explanation maps of one scan: SAM-Med3D's encoder, linear head, on the machine at hand.

python benchmarks/explanation.py [--threads 2] [--device cuda] [--precision bfloat16]
"""

import argparse
import resource
import time

import torch

from fedbrain.models.classifier import Classifier
from fedbrain.models.explanation import FromVolume, evidence_of, integrated_gradients, reference_of, rollout_map
from fedbrain.models.heads import LinearHead
from fedbrain.models.sam_med3d import load_image_encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    precisions = (arguments.precision, arguments.precision)
    model = FromVolume(Classifier("output", None, LinearHead()), load_image_encoder(None), precisions=precisions)
    model = model.to(arguments.device)
    volume = torch.full((128, 128, 128), -1.5)
    volume[16:112, 8:120, 24:104] = torch.randn(96, 112, 80)
    volume = volume.to(arguments.device)
    reference = reference_of(volume, "mean")
    steps = 2
    for name, count, compute in (
        ("one evidence (occlusion: one per block)", 1, lambda: evidence_of(model, volume[None])),
        ("roll-out", 1, lambda: rollout_map(model, volume)),
        ("integrated gradients, one step", steps, lambda: integrated_gradients(model, volume, reference, steps=steps)),
    ):
        compute()
        start = time.perf_counter()
        compute()
        if arguments.device != "cpu":
            torch.cuda.synchronize()
        print(f"{name}: {(time.perf_counter() - start) / count:.2f} s")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    if arguments.device != "cpu":
        print(f"peak memory on the GPU: {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")


if __name__ == "__main__":
    main()
