"""Small synthetic clients: six features per scan, so that a round takes milliseconds."""

import torch
from torch import nn

from fedbrain.federated.data import ClientData, Samples

FEATURES = 6


def make_samples(count, *, seed, tag, shape=(FEATURES,), labels=None, effect=1.0):
    """``count`` scans whose features move with the label."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2 if labels is None else torch.tensor(labels)
    x = torch.randn(count, *shape, generator=generator) + effect * y.view(-1, *[1] * len(shape))
    ids = tuple(f"{tag}{number:03d}" for number in range(count))
    return Samples(x.half(), y.long(), ids, (None,) * count, tuple(f"sub-{name}" for name in ids))


def make_client(name, train=12, validation=6, test=6, *, seed=0, labels=None, **options):
    """A client with the given number of scans on each side; ``labels`` are those of the training scans."""
    origin = {"encoder": "abc", "weights": "random", "cut": "output"}
    parts = {
        "train": make_samples(train, seed=10 * seed, tag=f"{name}Train", labels=labels, **options),
        "validation": make_samples(validation, seed=10 * seed + 1, tag=f"{name}Validation", **options),
        "test": make_samples(test, seed=10 * seed + 2, tag=f"{name}Test", **options),
    }
    return ClientData(name, **parts, origin=origin, fingerprint=f"{name}{seed}")


def build_small_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 2))


def build_adapted_model():
    """The small model with an adapter of rank 2 on its first layer, which is frozen, and a trained second one."""
    from peft import LoraConfig, inject_adapter_in_model  # here, since most tests need no adapter

    model = build_small_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["0"]), model)
    model[2].requires_grad_(True)
    return model
