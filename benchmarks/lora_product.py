"""What the compact way to average LoRA products costs against the dense one, at the sizes of the encoder's qkv layer.

    python benchmarks/lora_product.py [--width 768] [--out 2304] [--rank 8] [--clients 4 6 8] [--repetitions 5]

Both give the best adapter of that rank for the mean of the clients' products B A: the compact way by QR and SVD of the stacked
factors, the dense one by multiplying out and decomposing the whole matrix, both in float64. Repetitions are interleaved and
the median of the paired ratios of processor time is printed, with the largest relative difference of the two products, what
averaging A and B apart would err by, and the floats of the largest matrix that each holds. One thread.
"""

import argparse
import os
import sys
import time
from statistics import median

os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from fedbrain.federated.aggregation.lora import Factors, compact_svd, stack, truncate

TOLERANCE = 1e-5


def random_clients(generator: np.random.Generator, clients: int, rank: int, width: int, out: int) -> list[Factors]:
    return [(generator.normal(size=(rank, width)), generator.normal(size=(out, rank))) for _ in range(clients)]


def compact(factors: list[Factors], weights: np.ndarray, rank: int) -> Factors:
    return truncate(*compact_svd(*stack(factors, weights)), rank)


def dense(factors: list[Factors], weights: np.ndarray, rank: int) -> Factors:
    mean = sum(weight * (b @ a) for weight, (a, b) in zip(weights, factors))  # (out, width)
    u, values, vt = np.linalg.svd(mean, full_matrices=False)
    return vt[:rank], u[:, :rank] * values[:rank]


def measure(function, *arguments):
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def distance(one: Factors, other: Factors) -> float:
    """||B A - B' A'|| / ||B' A'||."""
    difference, whole = one[1] @ one[0] - other[1] @ other[0], other[1] @ other[0]
    return float(np.linalg.norm(difference) / np.linalg.norm(whole))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--out", type=int, default=2304)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    rank, width, out = arguments.rank, arguments.width, arguments.out
    compact(random_clients(generator, 2, rank, width, out), np.ones(2), rank)  # first calls are not what is compared
    print("clients\tcompact_s\tdense_s\tratio\tdifference\tapart_error\tcompact_floats\tdense_floats")
    missed = False
    for clients in arguments.clients:
        seconds, difference = [], 0.0
        for repetition in range(arguments.repetitions):
            factors = random_clients(generator, clients, rank, width, out)
            weights = generator.dirichlet(np.full(clients, 5.0))
            ways = [compact, dense][:: 1 if repetition % 2 else -1]
            done = {way: measure(way, factors, weights, rank) for way in ways}
            seconds.append((done[compact][0], done[dense][0]))
            difference = max(difference, distance(done[compact][1], done[dense][1]))
        apart = tuple(sum(weight * part for weight, part in zip(weights, parts)) for parts in zip(*factors))
        error = distance(apart, stack(factors, weights))
        means = (median(times) for times in zip(*seconds))
        ratio = median(slow / fast for fast, slow in seconds)
        floats = (clients * rank * out, out * width)
        print(
            clients,
            *(f"{m:.4f}" for m in means),
            f"{ratio:.0f}",
            f"{difference:.1e}",
            f"{error:.3f}",
            *floats,
            sep="\t",
        )
        missed |= difference > TOLERANCE
    print("difference", "too large" if missed else "within tolerance", f"(relative, at most {TOLERANCE})")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
