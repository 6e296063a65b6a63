"""FedProx and SCAFFOLD: formulas by hand, and whole runs against loops written by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import OPTIONS, SEED, as_bytes, federate
from small_clients import FEATURES, build_small_model, make_client
from torch import nn
from torch.nn import functional

from fedbrain.errors import StudyError
from fedbrain.federated.aggregation import build_rule
from fedbrain.federated.aggregation.fedprox import proximal_gradient, proximal_term
from fedbrain.federated.aggregation.rule import Update
from fedbrain.federated.aggregation.scaffold import Scaffold, corrected_gradient, own_control, server_control
from fedbrain.federated.task import TrainingOptions, class_weights, round_generator


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


def without_validation(clients):
    """The last round is then the one that is kept."""
    return {name: replace(c, validation=make_client(name, validation=0).validation) for name, c in clients.items()}


def test_fedprox_equals_a_loop_written_by_hand(three_clients):
    """The term in the loss, its gradient by torch, torch's own AdamW."""
    clients, mu, world = without_validation(three_clients), 3.0, build_small_model().state_dict()
    options = replace(OPTIONS, rounds=2)
    result, _ = federate(clients, build_rule("fedprox", mu=mu), options)
    plain, _ = federate(clients, "fedavg", options)

    total = sum(len(client.train) for client in clients.values())
    for number in (1, 2):
        mean = {name: torch.zeros_like(tensor) for name, tensor in world.items()}
        for name, client in clients.items():
            model = build_small_model()
            model.load_state_dict(world)
            optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=options.weight_decay)
            order = torch.randperm(len(client.train), generator=round_generator(SEED, name, number))
            weights = class_weights(client.train.y, "balanced")
            for batch in order.split(options.batch_size):
                labels = client.train.y[batch]
                losses = functional.cross_entropy(model(client.train.x[batch].float()), labels, reduction="none")
                term = proximal_term(dict(model.named_parameters()), world, mu)
                optimizer.zero_grad()
                ((losses * weights[labels]).mean() + term).backward()
                optimizer.step()
            for key, tensor in model.state_dict().items():
                mean[key] += len(client.train) / total * tensor
        world = mean
    for name, tensor in world.items():
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=0, atol=2e-6)
    assert max(np.abs(result.tensors[name] - plain.tensors[name]).max() for name in world) > 1e-3  # mu does something


def test_fedprox_with_mu_0_is_fedavg_to_the_bit(three_clients):
    ours, theirs = (federate(three_clients, rule)[0] for rule in (build_rule("fedprox", mu=0), "fedavg"))
    assert as_bytes(ours.tensors) == as_bytes(theirs.tensors)


def logistic_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(FEATURES, 2))


def test_scaffold_equals_an_independent_implementation(three_clients):
    """Softmax regression in plain numpy, float64: the paper's algorithm 1 with option II, two of the three clients in a round."""
    rate, server_rate, decay = 0.3, 0.8, 0.01
    options = TrainingOptions(rounds=5, batch_size=5, local_epochs=2, weight_decay=decay, sample=2)
    clients = without_validation(three_clients)
    rule = Scaffold(learning_rate=rate, server_rate=server_rate)
    result, grid = federate(clients, rule, options, build_model=logistic_model)

    world = {name: tensor.double().numpy() for name, tensor in logistic_model().state_dict().items()}
    control = {name: np.zeros_like(tensor) for name, tensor in world.items()}
    own = {client: {name: np.zeros_like(tensor) for name, tensor in world.items()} for client in clients}
    for number in range(1, 6):
        drawn = [name for name, rounds in grid.trained().items() if number in rounds]
        assert len(drawn) == 2
        moves, changes = [], []
        for client in drawn:
            samples, y, steps = clients[client].train, dict(world), 0
            weights = class_weights(samples.y, "balanced").double().numpy()
            generator = round_generator(SEED, client, number)
            for _ in range(2):
                order = torch.randperm(len(samples), generator=generator).numpy()
                for batch in np.split(order, range(5, len(order), 5)):
                    x, labels = samples.x[batch].double().numpy(), samples.y[batch].numpy()
                    logits = x @ y["0.weight"].T + y["0.bias"]
                    p = np.exp(logits - logits.max(1, keepdims=True))
                    error = (p / p.sum(1, keepdims=True) - np.eye(2)[labels]) * weights[labels, None] / len(batch)
                    gradient = {"0.weight": error.T @ x, "0.bias": error.sum(0)}
                    for name in y:
                        direction = gradient[name] - own[client][name] + control[name] + decay * y[name]
                        y = y | {name: y[name] - rate * direction}
                    steps += 1
            new = {n: own[client][n] - control[n] + (world[n] - y[n]) / (steps * rate) for n in world}
            moves.append({n: y[n] - world[n] for n in world})
            changes.append({n: new[n] - own[client][n] for n in world})
            own[client] = new
        for name in world:
            world[name] = world[name] + server_rate * (moves[0][name] + moves[1][name]) / 2
            control[name] = control[name] + (changes[0][name] + changes[1][name]) / 3
    for name, tensor in world.items():
        np.testing.assert_allclose(result.tensors[name], tensor, rtol=0, atol=5e-6)
    for client, kept in grid.kept.items():
        for name, tensor in own[client].items():
            np.testing.assert_allclose(kept.after(5)["memory"][name], tensor, rtol=0, atol=5e-6)


def test_scaffold_by_hand_on_the_server():
    rule = Scaffold(server_rate=0.5)
    state = rule.init({"w": np.array([10.0])}, "abcd")
    updates = [
        Update("a", {"w": np.array([4.0])}, 1, beside={"w": np.array([2.0])}),
        Update("c", {"w": np.array([-1.0])}, 99, beside={"w": np.array([6.0])}),
    ]
    state, tensors, weights = rule.apply(state, updates)
    assert tensors["w"].tolist() == [10 + 0.5 * 1.5]
    assert rule.beside(state)["w"].tolist() == [2 / 4 * (2 + 6) / 2]
    assert weights == {"a": 0.5, "c": 0.5}
    assert state.round == 1


def test_scaffolds_controls_travel_once_each_way_and_c_k_stays(three_clients):
    result, grid = federate(three_clients, "scaffold")
    model = sum(tensor.numel() * 4 for tensor in build_small_model().state_dict().values())
    rows = [row for row in result.rows if row["round"] < OPTIONS.rounds]
    assert {(row["bytes_down"], row["bytes_up"]) for row in rows} == {(2 * model, 2 * model)}
    kept = {name: kept.after(OPTIONS.rounds)["memory"] for name, kept in grid.kept.items()}
    for client, controls in kept.items():
        sent = [
            array.numpy().tobytes() for m in grid.up for r in m.content.array_records.values() for array in r.values()
        ]
        # In the first round c_k starts from 0, so that its change is c_k itself: look at the last.
        assert not [name for name, array in controls.items() if array.tobytes() in sent], client


def test_strengths_and_rates_are_checked():
    with pytest.raises(StudyError, match="fedprox: mu must be a number from 0"):
        build_rule("fedprox", mu=-1)
    with pytest.raises(StudyError, match="scaffold: learning_rate must be a number above 0"):
        build_rule("scaffold", learning_rate=0)
