"""FedProx and SCAFFOLD: the parts that are formulas, checked on torch tensors and by hand."""

import numpy as np
import pytest
import torch

from fedbrain.federated.aggregation.fedprox import proximal_gradient, proximal_term
from fedbrain.federated.aggregation.scaffold import corrected_gradient, own_control, server_control


def test_proximal_term_by_hand():
    tensors = {"w": np.array([3.0, 1.0]), "b": np.array([2.0]), "frozen": np.array([9.0])}
    anchor = {"w": np.array([1.0, 1.0]), "b": np.array([5.0])}
    assert proximal_term(tensors, anchor, 0.5) == 0.25 * (4 + 9)
    assert proximal_term(tensors, anchor, 0) == 0
    assert {n: g.tolist() for n, g in proximal_gradient(tensors, anchor, 0.5).items()} == {"w": [1, 0], "b": [-1.5]}


def test_the_proximal_gradient_is_torchs():
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(s, generator=generator, requires_grad=True) for n, s in (("w", (4, 3)), ("b", (3,)))}
    anchor = {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
    proximal_term(tensors, anchor, 0.3).backward()
    for name, gradient in proximal_gradient(tensors, anchor, 0.3).items():
        torch.testing.assert_close(tensors[name].grad, gradient)


def test_server_control_by_hand():
    # Two of four clients took part: c + 2/4 * mean of 4 and 2.
    control = server_control({"w": np.array([1.0])}, [{"w": np.array([4.0])}, {"w": np.array([2.0])}], clients=4)
    assert control["w"].tolist() == [1 + 0.5 * 3]


def test_a_clients_control_is_the_mean_gradient_of_its_steps():
    """Option II says no more than that, of the gradients before correction."""
    own, server = {"w": np.array([0.3])}, {"w": np.array([-0.2])}
    before, rate, gradients = {"w": np.array([1.0])}, 0.1, [0.5, 2.0, -1.0]
    after = dict(before)
    for gradient in gradients:
        step = corrected_gradient({"w": np.array([gradient])}, own, server)
        after = {"w": after["w"] - rate * step["w"]}
    control = own_control(own, server, before, after, len(gradients), rate)
    assert control["w"] == pytest.approx([np.mean(gradients)])


def test_scaffold_finds_the_common_minimum_where_fedavg_does_not():
    """Clients with f_k = s_k (w - m_k)^2 / 2 and five steps a round: FedAvg's fixed point is beside the minimum of the sum."""
    slopes, centres, rate, steps = np.array([1.0, 9.0]), np.array([0.0, 1.0]), 0.1, 5
    best = (slopes * centres).sum() / slopes.sum()

    def run(corrected):
        world, server, controls = np.zeros(1), {"w": np.zeros(1)}, [{"w": np.zeros(1)} for _ in slopes]
        for _ in range(300):
            ends, changes = [], []
            for k, (slope, centre) in enumerate(zip(slopes, centres)):
                w = world.copy()
                for _ in range(steps):
                    gradient = {"w": slope * (w - centre)}
                    if corrected:
                        gradient = corrected_gradient(gradient, controls[k], server)
                    w = w - rate * gradient["w"]
                new = own_control(controls[k], server, {"w": world}, {"w": w}, steps, rate)
                changes.append({"w": new["w"] - controls[k]["w"]})
                controls[k] = new
                ends.append(w)
            world = np.mean(ends, axis=0)
            server = server_control(server, changes, len(slopes))
        return float(world[0])

    assert abs(run(corrected=False) - best) > 0.1
    assert run(corrected=True) == pytest.approx(best, abs=1e-9)
