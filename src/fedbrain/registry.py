"""What the config may name, and where it lives: one line per thing.

A plain table, so that the config can be checked without importing torch, and so that a new line here does not count as
a change of the code that existing results were made with.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from inspect import signature

from fedbrain.errors import StudyError

REGISTRY = {
    "head": {
        "linear": "fedbrain.models.heads:LinearHead",
        "conv_s": "fedbrain.models.heads:conv_s",
        "conv_l": "fedbrain.models.heads:conv_l",
        "ncc": "fedbrain.models.references:NearestClassCentre",
        "resnet18": "fedbrain.models.references:ResNet18",
    },
    "tuning": {
        "frozen": "fedbrain.models.tuning:Frozen",
        "full": "fedbrain.models.tuning:Full",
        "lora": "fedbrain.models.lora:LoRA",
        "dual_lora": "fedbrain.models.lora:DualLoRA",
        "last_k": "fedbrain.models.tuning:LastK",
        "norm": "fedbrain.models.tuning:Norm",
    },
    "aggregation": {
        "simpleavg": "fedbrain.federated.aggregation.averages:SimpleAvg",
        "fedavg": "fedbrain.federated.aggregation.averages:FedAvg",
        "fedce": "fedbrain.federated.aggregation.fedce:FedCE",
        "rate_my_lora": "fedbrain.federated.aggregation.rate_my_lora:RateMyLoRA",
        "fedavgm": "fedbrain.federated.aggregation.optimizers:FedAvgM",
        "fedadam": "fedbrain.federated.aggregation.optimizers:FedAdam",
        "fedyogi": "fedbrain.federated.aggregation.optimizers:FedYogi",
        "fedadagrad": "fedbrain.federated.aggregation.adagrad:FedAdagrad",
        "qfedavg": "fedbrain.federated.aggregation.q_fedavg:QFedAvg",
        "median": "fedbrain.federated.aggregation.robust:Median",
        "trimmed_mean": "fedbrain.federated.aggregation.robust:TrimmedMean",
        "krum": "fedbrain.federated.aggregation.robust:Krum",
        "multi_krum": "fedbrain.federated.aggregation.robust:MultiKrum",
        "bulyan": "fedbrain.federated.aggregation.bulyan:Bulyan",
        "fedit": "fedbrain.federated.aggregation.lora:FedIT",
        "flexlora": "fedbrain.federated.aggregation.lora:FlexLoRA",
        "ffa_lora": "fedbrain.federated.aggregation.lora_parts:FFALoRA",
        "fedsa_lora": "fedbrain.federated.aggregation.lora_parts:FedSALoRA",
        "rolora": "fedbrain.federated.aggregation.lora_parts:RoLoRA",
        "fedex_lora": "fedbrain.federated.aggregation.merging:FedExLoRA",
        "flora": "fedbrain.federated.aggregation.merging:FLoRA",
        "fedprox": "fedbrain.federated.aggregation.fedprox:FedProx",
        "scaffold": "fedbrain.federated.aggregation.scaffold:Scaffold",
        "fedper": "fedbrain.federated.aggregation.personal:FedPer",
        "fedbn": "fedbrain.federated.aggregation.personal:FedBN",
        "flop": "fedbrain.federated.aggregation.personal:FLOP",
        "ditto": "fedbrain.federated.aggregation.personal:Ditto",
        "fedavg_ft": "fedbrain.federated.aggregation.fine_tuning:FedAvgFT",
        "med_dual_lora": "fedbrain.federated.aggregation.dual_lora:MedDualLoRA",
        "fedopal": "fedbrain.federated.aggregation.dual_lora:FedOPAL",
    },
    "harmonization": {
        "combat": "fedbrain.federated.harmonization:ComBat",
    },
    "encoder": {
        "sam_med3d": "fedbrain.models.sam_med3d:load_image_encoder",
        "brainiac": "fedbrain.models.brainiac:load_brainiac",
    },
    "brain_extractor": {
        "deepbet": "fedbrain.imaging.extractors.deepbet:deepbet",
        "hd_bet": "fedbrain.imaging.extractors.hd_bet:hd_bet",
        "synthstrip": "fedbrain.imaging.extractors.synthstrip:synthstrip",
        "template": "fedbrain.imaging.extractors.template:template",
        "provided": "fedbrain.imaging.extractors.provided:provided",
    },
    "intensity": {
        "encoder": "fedbrain.imaging.intensity:encoder_zscore",
        "zscore": "fedbrain.imaging.intensity:zscore",
        "minmax": "fedbrain.imaging.intensity:minmax",
        "whitestripe": "fedbrain.imaging.intensity:whitestripe",
        "kde": "fedbrain.imaging.intensity:kde",
        "fcm": "fedbrain.imaging.intensity:fcm",
        "nyul": "fedbrain.imaging.nyul:landmarks",
        "none": "fedbrain.imaging.intensity:unchanged",
    },
}

FITTED_INTENSITIES = (
    "nyul",
)  # on training subjects, in a stage of their own; the line names what is measured in a scan
REFERENCES = ("centralized", "local")  # stand in the aggregation's place in a cell: all scans pooled, each client alone
GLOBAL = "_global"  # behind the name of a personalised rule: its global model, evaluated beside the clients' own models
# Stand in the head's place and go with one tuning only: a network without the encoder, a rule without parameters.
TUNING_OF_REFERENCE = {"resnet18": "full", "ncc": "frozen"}


def names(kind: str) -> list[str]:
    """All names of a kind."""
    return list(REGISTRY[kind])


def module_of(kind: str, name: str) -> str:
    """The module that defines ``name``."""
    return _entry(kind, name).partition(":")[0]


def lookup(kind: str, name: str):
    """The object that ``name`` stands for. Raises StudyError, with the nearest name, for an unknown one."""
    module, _, attribute = _entry(kind, name).partition(":")
    return getattr(import_module(module), attribute)


def base_name(name: str, options: Mapping) -> str:
    """What a name of the config stands for: itself, or what its options say under ``kind``.

    So one thing can be in a study with several settings: ``lora_qv: {kind: lora, targets: [q, v]}``.
    """
    return options.get("kind", name)


def build(kind: str, name: str, options: Mapping | None = None, **fixed):
    """What a name and its options in the config stand for: the registered callable, called with ``fixed`` and them.

    Raises StudyError for an unknown name or option.
    """
    options = dict(options or {})
    builder = lookup(kind, base_name(name, options))
    options.pop("kind", None)
    known = [parameter for parameter in signature(builder).parameters if parameter not in fixed]
    if unknown := sorted(set(options) - set(known)):
        raise StudyError(f"{kind} {name}: unknown option {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    return builder(**fixed, **options)


def _entry(kind: str, name: str) -> str:
    if name not in REGISTRY[kind]:
        near = get_close_matches(str(name), names(kind), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise StudyError(f"unknown {kind.replace('_', ' ')} {name!r}{hint} Known: {', '.join(names(kind))}")
    return REGISTRY[kind][name]
