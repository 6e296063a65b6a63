"""Fixtures of the federated tests."""

import pytest
import torch
from small_clients import make_client


@pytest.fixture
def three_clients():
    return {name: make_client(name, train=count, seed=k) for k, (name, count) in enumerate(zip("ABC", (12, 7, 20)))}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
