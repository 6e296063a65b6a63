"""What one client does with a model and its own scans: train for some epochs, evaluate. No Flower here.

Centralized and local-only references use the same two functions, so that cells differ in the aggregation alone.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.adamw import adamw

from fedbrain.devices import PRECISIONS, FittingBatch, autocast
from fedbrain.errors import StudyError
from fedbrain.federated.data import ClientData, Samples
from fedbrain.federated.sharing import Sharing

EVALUATION_BATCH = 64  # embeddings at once when nothing is trained; bounds memory only


@dataclass(frozen=True)
class TrainingOptions:
    """How the clients train. All defaults are our choices.

    Every round starts a fresh AdamW: a client's moments do not outlive the model that they were gathered on. Centralized
    and local-only training do the same, for ``rounds`` times ``local_epochs`` epochs.
    """

    rounds: int = 20
    local_epochs: int = 1  # epochs over the client's scans per round
    batch_size: int = 16  # scans
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    class_weights: str = "balanced"  # of the training loss: "balanced" within the client's scans, or "none"
    selection: str = "loss"  # what chooses the best round on the validation scans: "loss" or "balanced_accuracy"
    micro_batch: int | None = None  # scans through the network at once; the gradients of a batch are summed over them
    precision: str = "float32"  # or "bfloat16": torch's autocast; weights, optimizer and messages stay float32
    deterministic: bool = True  # on a GPU: repeatable kernels only
    compile: bool = False  # torch.compile, on a GPU
    schedule: str = "constant"  # of the learning rate over the rounds: "constant", or "cosine" from all of it towards 0
    patience: int | None = None  # rounds without a better one after which a run ends
    sample: int | None = None  # how many clients train in a round, drawn anew each round; None: all
    quorum: int | None = None  # how many of them must do their part; None: all
    deadline: float | None = None  # seconds that a client has for its part of a round

    def __post_init__(self):
        for name in ("rounds", "local_epochs", "batch_size", "micro_batch", "patience", "sample", "quorum"):
            value = getattr(self, name)
            if value is None and name in ("micro_batch", "patience", "sample", "quorum"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise StudyError(f"training: {name} must be a whole number from 1 on, it is {value!r}")
        for name, low in (("learning_rate", 0.0), ("weight_decay", -1e-300), ("deadline", 0.0)):
            value = getattr(self, name)
            if value is None and name == "deadline":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value < float("inf"):
                raise StudyError(
                    f"training: {name} must be a number {'above' if not low else 'from'} 0, it is {value!r}"
                )
        for name in ("deterministic", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise StudyError(f"training: {name} must be true or false, it is {getattr(self, name)!r}")
        for name, known in (
            ("class_weights", ("balanced", "none")),
            ("selection", ("loss", "balanced_accuracy")),
            ("precision", PRECISIONS),
            ("schedule", ("constant", "cosine")),
        ):
            if getattr(self, name) not in known:
                raise StudyError(f"training: {name} must be one of {', '.join(known)}, it is {getattr(self, name)!r}")
        if self.sample and self.quorum and self.quorum > self.sample:
            raise StudyError(
                f"training: quorum {self.quorum} is more than the {self.sample} clients of a round (sample)"
            )

    def of_round(self, round: int) -> "TrainingOptions":
        """The options of one round (from 1): with "cosine" the learning rate is lr / 2 (1 + cos(pi (round - 1) / rounds))."""
        if self.schedule == "constant":
            return self
        return replace(self, learning_rate=self.learning_rate * self.share(round))

    def share(self, round: int) -> float:
        """What the schedule leaves of a learning rate in a round."""
        return 1.0 if self.schedule == "constant" else (1 + math.cos(math.pi * (round - 1) / self.rounds)) / 2

    @classmethod
    def of(cls, options: "Mapping | TrainingOptions") -> "TrainingOptions":
        """From a mapping, as in the config. Raises StudyError, with the nearest name, for an unknown option."""
        if isinstance(options, cls):
            return options
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise StudyError(f"training: unknown option {name!r}{hint} Known: {', '.join(known)}")
        return cls(**options)

    def as_dict(self) -> dict:
        """The options as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Of a model on N scans: mean cross-entropy (natural log, unweighted), balanced accuracy, scores (N,) = P(label 1).

    ``logits`` (N,) are log(P(label 1) / P(label 0)), which a score near 0 or 1 has lost by rounding.
    """

    loss: float
    balanced_accuracy: float
    scores: np.ndarray
    logits: np.ndarray


def derive_seed(seed: int, *parts: str | int) -> int:
    """A seed from a study's seed and names, by SHA-256: independent of the order in which seeds are drawn."""
    text = json.dumps([seed, *parts])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # torch takes 63 bits


def round_generator(seed: int, client: str, round: int) -> torch.Generator:
    """The random numbers of one client's training in one round (rounds from 1); a resumed run draws the same ones."""
    return torch.Generator().manual_seed(derive_seed(seed, "train", client, round))


def train(
    model: nn.Module,
    samples: Samples,
    options: TrainingOptions,
    generator: torch.Generator,
    device: str,
    fitting: FittingBatch | None = None,
    *,
    optimizer: "Callable[[Sequence[nn.Parameter]], AdamW | SGD] | None" = None,
    penalty: Callable[[], Tensor] | None = None,
    before_step: Callable[[], None] | None = None,
) -> float:
    """Trains ``model`` in place for ``options.local_epochs`` epochs with AdamW; returns the mean loss over what it saw.

    The loss is cross-entropy; with balanced class weights a scan of class c weighs n / (classes present * n_c), so that
    the weights of a client's scans have mean 1, a client with one class included. ``samples`` must be on ``device``. A batch goes
    through the network in the parts that ``fitting`` allows, gradients being summed: the step is that of the whole batch
    (but for a batch norm, whose statistics are those of a part).
    A model whose head gathers instead of being trained (nearest class centre) sees each scan once.

    What an aggregation rule may want otherwise: another ``optimizer`` of the trained parameters; a ``penalty`` on the model,
    asked for after each forward pass and added to the loss (not to the loss that is returned); ``before_step``, which may change
    the gradients of a batch.

    Raises ValueError for no scans, FloatingPointError where the loss is no longer finite.
    """
    if not len(samples):
        raise ValueError("no training scans")
    fitting = fitting or fitting_batch(options)
    if hasattr(model, "head") and hasattr(model.head, "gather"):
        return _gather(model, samples, options, fitting)
    weights = class_weights(samples.y, options.class_weights)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer is None:
        stepper = AdamW(trainable, options.learning_rate, options.weight_decay)
    else:
        stepper = optimizer(trainable)
    total = torch.zeros((), dtype=torch.float64, device=device)
    model.train()

    def gradients(parts: Sequence[Tensor]) -> Tensor:
        """Sums the gradients of a batch over its parts; the sum of its losses."""
        before.restore()  # a pass that ran out of memory has left its traces
        model.zero_grad(set_to_none=True)
        scans = sum(map(len, parts))
        seen = torch.zeros((), dtype=torch.float64, device=device)
        for part in parts:
            with autocast(device, options.precision):
                logits = model(samples.x[part].float())  # (b, 2)
            labels = samples.y[part]
            losses = functional.cross_entropy(logits.float(), labels, reduction="none") * weights[labels]  # (b,)
            objective = losses.sum() / scans
            if penalty is not None:
                objective = objective + len(part) / scans * penalty()
            objective.backward()
            seen += losses.detach().sum()
        return seen

    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        # Layers that draw (dropout) take from the global generators; torch.manual_seed would also queue every other device.
        torch.default_generator.manual_seed(generator.initial_seed())
        if cuda:
            torch.cuda.manual_seed(generator.initial_seed())
        for _ in range(options.local_epochs):
            order = torch.randperm(len(samples), generator=generator).to(device)
            for batch in order.split(options.batch_size):
                before = _Traces(model, cuda)
                total += fitting.run(gradients, batch)
                if before_step is not None:
                    before_step()
                stepper.step()
    model.zero_grad(set_to_none=True)  # as large as what was trained; the next round makes its own
    loss = float(total) / (len(samples) * options.local_epochs)
    if not math.isfinite(loss):
        raise FloatingPointError(
            "the training loss is not finite; lower training.learning_rate or look at the embeddings"
        )
    return loss


class _Traces:
    """What a forward pass in training leaves behind: random numbers drawn, running statistics. Put back to do a batch again."""

    def __init__(self, model: nn.Module, cuda: Sequence[torch.device]):
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._random = torch.get_rng_state()
        self._cuda = [(device, torch.cuda.get_rng_state(device)) for device in cuda]

    def restore(self) -> None:
        for buffer, value in self._buffers:
            buffer.copy_(value)
        torch.set_rng_state(self._random)
        for device, state in self._cuda:
            torch.cuda.set_rng_state(state, device)


def fitting_batch(options: TrainingOptions) -> FittingBatch:
    """How many scans go through a network at once, to begin with; keep it over the rounds of a run."""
    return FittingBatch(min(options.micro_batch or options.batch_size, options.batch_size))


def _gather(model: nn.Module, samples: Samples, options: TrainingOptions, fitting: FittingBatch) -> float:
    """One pass over the scans for a head that sums up what it sees; its mean loss on them afterwards."""
    model.head.start()
    for batch in torch.arange(len(samples), device=samples.y.device).split(fitting.size):
        model.head.gather(samples.x[batch].float(), samples.y[batch])
    return evaluate(model, samples, options, fitting).loss


class AdamW:
    """torch.optim.AdamW by its functional form, to the same bits (Loshchilov and Hutter, ICLR 2019; betas .9 and .999).

    The class itself imports torch's compiler when it is made: about two seconds of each job, for nothing.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float):
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = [torch.zeros(()) for _ in self._parameters]
        self._options = {"lr": learning_rate, "weight_decay": weight_decay, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients; parameters without one stay as they are."""
        rows = zip(self._parameters, self._first, self._second, self._steps)
        rows = [(row[0], row[0].grad, *row[1:]) for row in rows if row[0].grad is not None]
        parameters, gradients, first, second, steps = map(list, zip(*rows))
        how = {"foreach": parameters[0].is_cuda, "amsgrad": False, "maximize": False}  # foreach as torch chooses it
        adamw(parameters, gradients, first, second, [], steps, **how, **self._options)


class SGD:
    """Plain gradient descent, w <- w - rate (g + decay w): where a rule reads gradients out of what a client did."""

    def __init__(self, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float):
        self._parameters, self._rate, self._decay = list(parameters), learning_rate, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients; parameters without one stay as they are."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter -= self._rate * (parameter.grad + self._decay * parameter)


def class_weights(labels: Tensor, kind: str) -> Tensor:
    """Loss weight (2,) of each class: "balanced" n / (classes present * n_c), 1 where a class is absent; "none" ones."""
    counts = torch.bincount(labels, minlength=2).float()  # (2,)
    if kind == "none":
        return torch.ones_like(counts)
    return torch.where(counts > 0, len(labels) / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)


def evaluate(
    model: nn.Module,
    samples: Samples,
    options: TrainingOptions | None = None,
    fitting: FittingBatch | None = None,
) -> Evaluation | None:
    """Evaluates ``model`` on scans that are on its device; None where there are none."""
    if not len(samples):
        return None
    options = options or TrainingOptions()
    # A head over embeddings takes many at once; an encoder takes no more than in training.
    size = EVALUATION_BATCH if getattr(model, "encoder", None) is None and samples.x.dtype == torch.float16 else None
    fitting = FittingBatch(size) if size else fitting or fitting_batch(options)
    model.eval()

    @torch.inference_mode()
    def logits_of(parts: Sequence[Tensor]) -> Tensor:
        logits = []
        for part in parts:
            with autocast(str(samples.y.device), options.precision):
                logits.append(model(samples.x[part].float()).double().cpu())
        return torch.cat(logits)

    logits = fitting.run(logits_of, torch.arange(len(samples), device=samples.y.device))  # (N, 2)
    labels = samples.y.cpu()
    loss = functional.cross_entropy(logits, labels)
    scores = logits.softmax(1)[:, 1].numpy()
    return Evaluation(
        loss=float(loss),
        balanced_accuracy=mean_recall(labels.numpy(), scores),
        scores=scores,
        logits=(logits[:, 1] - logits[:, 0]).numpy(),
    )


def mean_recall(labels: np.ndarray, scores: np.ndarray) -> float:
    """Balanced accuracy in [0, 1] of scores (N,) against labels (N,), a score of at least 0.5 being a case.

    With one class it is the recall of that class, where evaluation.metrics has no value: rounds are steered by this one. It
    stands on its own so that new code for the evaluation does not count as new code for the training.
    """
    right = (scores >= 0.5) == (labels == 1)
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def minus_model(global_model: Mapping[str, Tensor], own: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """The global model without a client's own part: (W - p W_k) / (1 - p), for FedCE; ``weight`` p must be below 1.

    A running variance stays at or above 0, which the difference of two of them need not.
    """
    minus = {
        name: ((tensor.double() - weight * own[name].double()) / (1 - weight)).to(tensor.dtype)
        for name, tensor in global_model.items()
    }
    return {name: tensor.clamp(min=0) if name.endswith("running_var") else tensor for name, tensor in minus.items()}


def describe_choice(selection: str, value: float) -> str:
    """Why a round was chosen, in words for the summary."""
    what = {"loss": "lowest mean validation loss", "balanced_accuracy": "highest mean validation balanced accuracy"}
    return f"{what[selection]} ({value:.6g})"


def is_better(value: float | None, best: float | None, selection: str) -> bool:
    """Whether a round with ``value`` replaces the best one so far; ties stay with the earlier round."""
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if selection == "loss" else value > best


def lost_patience(judged: int, best: int | None, options: TrainingOptions) -> bool:
    """Whether the rounds up to ``judged`` have brought nothing better than round ``best`` for so long that a run ends."""
    return options.patience is not None and best is not None and judged - best >= options.patience


@dataclass(frozen=True)
class LocalRound:
    """One round of a client that trains alone: its number from 1, training loss, the model after it, its evaluation."""

    round: int
    loss: float
    tensors: dict[str, Tensor]  # what was trained: a copy, on the CPU
    validation: Evaluation | None


def train_alone(
    model: nn.Module,
    client: ClientData,
    options: TrainingOptions,
    seed: int,
    device: str,
    *,
    done: int = 0,
    fitting: FittingBatch | None = None,
) -> Iterator[LocalRound]:
    """Trains ``model`` in place on one client's scans, without any exchange, for the rounds of a federated run.

    ``done`` rounds of them lie behind ``model`` already.
    """
    fitting = fitting or fitting_batch(options)
    trained = Sharing.of(model).select(model.state_dict(), "shared")
    for number in range(done + 1, options.rounds + 1):
        generator = round_generator(seed, client.name, number)
        loss = train(model, client.train, options.of_round(number), generator, device, fitting)
        state = model.state_dict()
        tensors = {name: state[name].detach().cpu().clone() for name in trained}
        yield LocalRound(number, loss, tensors, evaluate(model, client.validation, options, fitting))
