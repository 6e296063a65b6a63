"""The study's config: checked as a whole before anything runs, defaults filled in, the grid unrolled into cells."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from fedbrain import registry
from fedbrain.errors import StudyError
from fedbrain.federated.kinds import ADAPTERS, KINDS, absent, named
from fedbrain.imaging import outliers
from fedbrain.imaging.extractor_cards import CARDS as EXTRACTORS
from fedbrain.models.cards import CARDS
from fedbrain.models.tuning import OUTPUT, VOLUME

SOURCES = ("table", "bids", "phantom")
NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the grid; ``aggregation`` may also be a reference, ``centralized`` or ``local``."""

    head: str
    tuning: str
    aggregation: str

    def __str__(self) -> str:
        return f"{self.head}/{self.tuning}/{self.aggregation}"


def read_schema(path: str | Path) -> dict:
    """Reads a JSON schema that is written as YAML."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def checked(config: Mapping, schema: Mapping) -> dict:
    """Returns a copy of ``config`` with every default filled in.

    Raises StudyError that names the key, what is wrong with it, and the mend: unknown keys with the nearest known one,
    unknown heads, aggregations and the like, cohorts without exactly one source, fractions that leave no training data.
    """
    result = copy.deepcopy(dict(config))
    _quote_labels(result)
    errors = sorted(_FillingValidator(schema).iter_errors(result), key=lambda error: (len(error.path), str(error.path)))
    if errors:
        raise StudyError("config: " + "\nconfig: ".join(_explain(error) for error in errors))
    problems = list(_problems(result))
    if problems:
        raise StudyError("config: " + "\nconfig: ".join(problems))
    return result


def cells(config: Mapping) -> dict[Cell, list[int]]:
    """The grid, unrolled: every cell with its seeds, in the order of the blocks, each cell once."""
    result: dict[Cell, list[int]] = {}
    for block in config["grid"]:
        for head in block["heads"]:
            for tuning in block["tunings"]:
                for aggregation in block["aggregations"]:
                    seeds = result.setdefault(Cell(head, tuning, aggregation), [])
                    seeds.extend(seed for seed in block["seeds"] if seed not in seeds)
    return result


def left_out_cells(config: Mapping) -> dict[tuple[Cell, str], list[int]]:
    """The cells that are also trained without a cohort, and that cohort, with their seeds, in the order of the blocks."""
    result: dict[tuple[Cell, str], list[int]] = {}
    for block in config["grid"]:
        for cohort in _left_out(config, block):
            for cell, chosen in cells({"grid": [block]}).items():
                seeds = result.setdefault((cell, cohort), [])
                seeds.extend(seed for seed in chosen if seed not in seeds)
    return result


def explained_cells(config: Mapping) -> list[Cell]:
    """The cells of which explanation maps are made."""
    return [Cell(*cell) for cell in config["evaluation"]["explanation"]["cells"]]


def external_cohorts(config: Mapping) -> list[str]:
    """The cohorts that are tested on and never trained on."""
    return [name for name, options in config["cohorts"].items() if options.get("external")]


def training_cohorts(config: Mapping) -> list[str]:
    """The cohorts that train: the clients of the federation."""
    return [name for name, options in config["cohorts"].items() if not options.get("external")]


def _left_out(config: Mapping, block: Mapping) -> list[str]:
    """The cohorts that a block of the grid leaves out in turn."""
    asked = block.get("leave_out") or []
    return training_cohorts(config) if asked == "each" else list(asked)


def _fewest_clients(config: Mapping, block: Mapping) -> int:
    """How many clients the smallest federation of a block has."""
    return len(training_cohorts(config)) - bool(_left_out(config, block))


def evaluated(config: Mapping) -> dict[Cell, tuple[Cell, str]]:
    """What is evaluated, by the name that it has in tables: the cell that was trained, and the stem of its tables of predictions.

    Behind a cell whose clients have models of their own stands, as ``{aggregation}_global``, its global model, where its rule has one.
    """
    result = {}
    for cell in cells(config):
        result[cell] = (cell, "predictions")
        if name := global_name(config, cell.aggregation):
            result[replace(cell, aggregation=name)] = (cell, "predictions_global")
    return result


def global_name(config: Mapping, aggregation: str) -> str | None:
    """Under which name the global model beside the clients' own is evaluated; None where there are not both."""
    rule = _rule(config, aggregation)
    return f"{aggregation}{registry.GLOBAL}" if rule and rule.personalised and rule.has_global_model else None


def personalised_cells(config: Mapping) -> dict[Cell, Cell | None]:
    """The cells whose clients have models of their own, and the global model that each is compared with.

    That is the rule's own or, where it has none, FedAvg's with the same head and tuning, if the grid has that.
    """
    grid, result = cells(config), {}
    for cell in grid:
        if (rule := _rule(config, cell.aggregation)) and rule.personalised:
            common = replace(cell, aggregation=global_name(config, cell.aggregation) or "fedavg")
            result[cell] = common if common in grid or rule.has_global_model else None
    return result


def own_models(config: Mapping) -> list[str]:
    """The aggregations of the grid under which each client has a model of its own."""
    return sorted({cell.aggregation for cell in personalised_cells(config)} | {"local"})


def _rule(config: Mapping, aggregation: str):
    """The rule that an aggregation of the grid stands for; None for a reference."""
    if aggregation in registry.REFERENCES:
        return None
    return registry.build("aggregation", aggregation, options_of(config, "aggregation", aggregation))


AXES = {"head": "heads", "tuning": "tunings", "aggregation": "aggregations"}  # sections of options, lists of the grid


def options_of(config: Mapping, axis: str, name: str) -> dict:
    """The options of a head, tuning or aggregation as the config gives them; empty for those without any."""
    return dict(sorted(config[axis].get(name, {}).items()))


def kind_of(config: Mapping, axis: str, name: str) -> str:
    """What a name of the grid stands for in the registry; the references of the aggregation stand for themselves."""
    return registry.base_name(name, config[axis].get(name, {}))


def training_options(config: Mapping, head: str, tuning: str) -> dict:
    """The training options of a head and a tuning: the defaults, over them those of the head, over them those of the tuning.

    Options for what a name stands for hold for the name, too. Those of a tuning are about the encoder, so they do not reach
    ResNet18 and class centres, which have none to tune. Class centres take one round, after which nothing changes.
    """
    options = {key: value for key, value in config["training"].items() if key not in ("heads", "tunings")}
    axes = [("head", head)]
    if kind_of(config, "head", head) not in registry.TUNING_OF_REFERENCE:
        axes.append(("tuning", tuning))
    for axis, name in axes:
        for key in dict.fromkeys((kind_of(config, axis, name), name)):
            options |= config["training"][AXES[axis]].get(key, {})
    if kind_of(config, "head", head) == "ncc":
        options |= {"rounds": 1, "local_epochs": 1, "sample": None}  # centres are of all clients' scans
    return options


def weights_to_train(config: Mapping, head: str, tuning: str) -> str | None:
    """The weights that a training job loads: a path, "random", or None where it trains no part of the encoder."""
    tuned = registry.build("tuning", tuning, options_of(config, "tuning", tuning))
    if kind_of(config, "head", head) in registry.TUNING_OF_REFERENCE or tuned.cut(_depth(config)) == OUTPUT:
        return None
    return "random" if tuned.weights == "random" else config["encoder"]["weights"]


def harmonization(config: Mapping, tuning: str) -> dict | None:
    """Name and covariates of the harmonization that a tuning asks for, or None."""
    tuned = registry.build("tuning", tuning, options_of(config, "tuning", tuning))
    if tuned.harmonization == "none":
        return None
    return {"name": tuned.harmonization, "covariates": list(tuned.covariates)}


def _depth(config: Mapping) -> int:
    return CARDS[config["encoder"]["name"]].depth


@dataclass(frozen=True)
class Kept:
    """What training of a cell starts from: which encoder made it, with which weights, and how far (the cut)."""

    encoder: str  # as in file names: "none" for volumes, "{name}-random" for an untrained control
    weights: str  # path, or "random"
    cut: str


def kept(config: Mapping, head: str, tuning: str) -> Kept:
    """What the cells of a head and a tuning are trained on: the output of their longest frozen prefix."""
    name, weights = config["encoder"]["name"], config["encoder"]["weights"]
    tuned = registry.build("tuning", tuning, options_of(config, "tuning", tuning))
    cut = tuned.cut(_depth(config))
    if cut == VOLUME or registry.TUNING_OF_REFERENCE.get(kind_of(config, "head", head)) == "full":
        return Kept("none", "random", VOLUME)
    if tuned.weights == "random" and weights != "random":
        return Kept(f"{name}-random", "random", cut)
    return Kept(name, weights, cut)


def phantom_look(config: Mapping, cohort: str) -> dict:
    """Those options of a simulated cohort that change what its scans look like, and not how many there are."""
    options = config["cohorts"][cohort]["phantom"]
    return {key: options[key] for key in ("effect", "scanner") if key in options}


def drawn_aggregation(config: Mapping) -> str:
    """The aggregation that "AUC by head" shows: the config's choice, else FedAvg, else the first of the grid."""
    run = list(dict.fromkeys(name for block in config["grid"] for name in block["aggregations"]))
    federated = [name for name in run if name not in registry.REFERENCES]
    return config["figures"].get("aggregation") or ("fedavg" if "fedavg" in run else (federated or run)[0])


def cohort_labels(config: Mapping, cohort: str) -> dict[str, int]:
    """The label map of a cohort: its own, or the study's."""
    return dict(config["cohorts"][cohort].get("labels", config["labels"]))


def settle_extractor(config: dict, sha256: str) -> None:
    """Puts the checksum of the extractor's weights into the recipe, where it decides what runs again.

    Raises StudyError where ``sha256``, the file's own, is not the one that the config names or that is published.
    """
    recipe = config["preprocessing"]
    card, weights = EXTRACTORS[recipe["extractor"]], recipe["extractor_weights"]
    recipe["extractor_sha256"] = card.expected_sha256(weights, recipe["extractor_sha256"])
    card.check(weights, sha256, recipe["extractor_sha256"])


def _fill_defaults(validator, properties, instance, schema) -> Iterator[ValidationError]:
    if isinstance(instance, dict):
        for name, subschema in properties.items():
            if "default" in subschema:
                instance.setdefault(name, copy.deepcopy(subschema["default"]))
        # In the schema's order, whatever the order in the file: Snakemake takes another order for another value.
        ordered = [name for name in properties if name in instance] + sorted(set(instance) - set(properties))
        for name in ordered:
            instance[name] = instance.pop(name)
    yield from Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


# Defaults are filled in while the schema is walked, so that a default object gets the defaults of its own keys.
_FillingValidator = extend(Draft202012Validator, {"properties": _fill_defaults})


def _quote_labels(config: dict) -> None:
    """Diagnoses are text in the tables; YAML takes an unquoted 0 for a number, and No for false."""
    for place in (config, *(cohort for cohort in (config.get("cohorts") or {}).values() if isinstance(cohort, dict))):
        if isinstance(place.get("labels"), dict):
            if any(isinstance(name, bool) for name in place["labels"]):
                raise StudyError('config: labels: YAML reads an unquoted yes or no as true or false; quote it, "No": 0')
            place["labels"] = {str(name): label for name, label in place["labels"].items()}


def _place(path) -> str:
    return ".".join(str(part) for part in path) or "top level"


def _explain(error: ValidationError) -> str:
    place = _place(error.absolute_path)
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {}))
        messages = []
        for key in error.instance:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                messages.append(f"{place}: unknown key {key!r}; {hint}")
        return "\nconfig: ".join(messages)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return f"{place}: missing key {', '.join(map(repr, missing))}; add it (docs/configuration.md lists all keys)"
    described = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    return f"{place}: {error.message}" + (f"; expected: {described}" if described else "")


def _problems(config: Mapping) -> Iterator[str]:
    for name, cohort in config["cohorts"].items():
        given = [source for source in SOURCES if source in cohort]
        if len(given) != 1:
            what = " and ".join(given) or "nothing"
            yield f"cohorts.{name}: needs exactly one of {', '.join(SOURCES)}, and has {what}"
        if not {0, 1} <= set(cohort_labels(config, name).values()):
            yield f"cohorts.{name}: its labels must name at least one diagnosis for 0 and one for 1"
        for key in cohort["t1w"]:
            source = "table" if key == "series" else "bids"
            if key != "choose" and source not in cohort:
                what = (
                    "series are chosen in DICOM folders of a scan table"
                    if source == "table"
                    else "names are those of BIDS"
                )
                yield f"cohorts.{name}.t1w.{key}: {what}; this cohort has no {source}"
        if "phantom" in cohort:
            from fedbrain.cohorts.phantom import check_options

            try:
                check_options(name, cohort["phantom"])
            except StudyError as error:
                yield str(error)
    if not training_cohorts(config):
        yield "cohorts: all of them are external, and nobody is left to train; take external away from at least one"
    fitted = config["preprocessing"]["intensity"] in registry.FITTED_INTENSITIES
    if fitted and config["preprocessing"]["nyul"]["scale"] != "shared":
        for name in external_cohorts(config):
            yield (
                f"cohorts.{name}: it is external and has no training scans to fit a scale of its own to; write "
                "preprocessing.nyul.scale: shared, so that it is brought onto the scale of the cohorts that train"
            )
    if "pooled" in config["cohorts"]:
        yield "cohorts.pooled: this name is taken (all clients together); choose another"
    if config["splits"]["validation"] + config["splits"]["test"] >= 1:
        yield "splits: validation and test together leave nothing to train on; their sum must stay under 1"
    yield from outliers.problems(config["quality"])
    for kind, key in (("brain_extractor", "extractor"), ("intensity", "intensity")):
        yield from _unknown_name(f"preprocessing.{key}", kind, config["preprocessing"][key])
    recipe = config["preprocessing"]
    if recipe["extractor"] in EXTRACTORS:
        yield from EXTRACTORS[recipe["extractor"]].problems(recipe["extractor_weights"], recipe["extractor_sha256"])
    yield from _unknown_name("encoder.name", "encoder", config["encoder"]["name"])
    for index, block in enumerate(config["grid"]):
        for axis, key in AXES.items():
            for name in block[key]:
                if not (axis == "aggregation" and name in registry.REFERENCES):
                    yield from _unknown_name(f"grid.{index}.{key}", axis, kind_of(config, axis, name))
        yield from _wrong_tunings(config, index, block)
        yield from _unfit_rules(config, index, block)
        yield from _wrong_numbers(config, index, block)
        yield from _wrong_centres(config, index, block)
        yield from _wrong_left_out(config, index, block)
    for axis in ("head", "tuning"):
        for name in config["training"][AXES[axis]]:
            yield from _unknown_name(f"training.{AXES[axis]}.{name}", axis, kind_of(config, axis, name))
    for name, options in config["training"]["heads"].items():
        if kind_of(config, "head", name) == "ncc" and {"rounds", "local_epochs"} & set(options):
            yield f"training.heads.{name}: class centres take one round and one epoch; leave rounds and local_epochs out"
    for axis in AXES:
        for name in config[axis]:
            yield from _wrong_options(config, axis, name)
    yield from _wrong_explanations(config)
    drawn = config["figures"].get("aggregation")
    if drawn and all(drawn not in block["aggregations"] for block in config["grid"]):
        yield f"figures.aggregation: no block of the grid has {drawn!r}; name one that is run"
    card, weights = CARDS.get(config["encoder"]["name"]), config["encoder"]["weights"]
    if card and weights != "random" and not Path(weights).is_file():
        yield (
            f"encoder.weights: no file {weights}; put the published checkpoint {card.file} there ({card.origin}, "
            f"{card.licence}), or write weights: random for a control with an untrained encoder"
        )


def _wrong_options(config: Mapping, axis: str, name: str) -> Iterator[str]:
    """What is wrong with the options of a name: the name, an option, a value, or blocks that the encoder does not have."""
    place, options = f"{axis}.{name}", options_of(config, axis, name)
    kind = kind_of(config, axis, name)
    if unknown := list(_unknown_name(place, axis, kind)):
        yield from unknown
    elif axis == "tuning" and kind != "frozen" and {"harmonization", "covariates"} & set(options):
        yield (
            f"{place}: harmonization goes with frozen only: it adjusts the encoder's output, which {kind} computes anew in "
            "every step"
        )
    elif axis != "head":
        try:
            built = registry.build(axis, name, options)
            if axis == "tuning" and config["encoder"]["name"] in CARDS:
                built.cut(CARDS[config["encoder"]["name"]].depth)
        except (StudyError, TypeError) as error:
            yield f"{place}: {error}"
    elif kind != "resnet18" and set(options) - {"kind"}:
        # The schema knows the options; a head is not built here, since torch would have to be imported at every start.
        yield f"{place}: only resnet18 takes {', '.join(sorted(set(options) - {'kind'}))}"
    if name != kind and name in (*registry.names(axis), *(registry.REFERENCES if axis == "aggregation" else ())):
        yield f"{place}: {name} is a name of its own; choose another for a {kind}"
    if not NAME.fullmatch(name):
        yield f"{place}: a name has small letters, digits and underscores only, since it stands in file names"


def _wrong_tunings(config: Mapping, index: int, block: Mapping) -> Iterator[str]:
    for head in block["heads"]:
        wanted = registry.TUNING_OF_REFERENCE.get(kind_of(config, "head", head))
        wrong = [name for name in block["tunings"] if kind_of(config, "tuning", name) != wanted]
        if wanted and wrong:
            yield (
                f"grid.{index}: {head} goes with tunings: [{wanted}] only, not with {', '.join(wrong)}; give it a block "
                "of its own"
            )


def _wrong_centres(config: Mapping, index: int, block: Mapping) -> Iterator[str]:
    """Class centres are sums and numbers: a mean of both over clients is a centre, other mixtures of them are nothing."""
    for head in block["heads"]:
        if kind_of(config, "head", head) == "ncc":
            known = ("simpleavg", "fedavg", *registry.REFERENCES)
            wrong = [name for name in block["aggregations"] if kind_of(config, "aggregation", name) not in known]
            if wrong:
                yield f"grid.{index}: {head} goes with {', '.join(known)}, not with {', '.join(wrong)}"


def _wrong_left_out(config: Mapping, index: int, block: Mapping) -> Iterator[str]:
    """Cohorts that cannot be left out, and cells of which leaving one out makes nothing, or something that has seen it."""
    place, trains, left_out = f"grid.{index}.leave_out", training_cohorts(config), _left_out(config, block)
    if not left_out:
        return
    for name in left_out:
        if name not in config["cohorts"]:
            near = get_close_matches(name, trains, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(trains)}"
            yield f"{place}: there is no cohort {name!r}; {hint}"
        elif name not in trains:
            yield f"{place}: {name} is external and never trains, so every cell is tested on it unseen; take it out of the list"
    if len(trains) < 2:
        yield f"{place}: {', '.join(trains) or 'no cohort'} alone trains, and nobody would be left; add cohorts, or take leave_out away"
    if "local" in block["aggregations"]:
        yield f"{place}: local trains each client alone, so that without one nothing changes; give local a block of its own"
    if config["preprocessing"]["intensity"] in registry.FITTED_INTENSITIES:
        yield (
            f"{place}: preprocessing.intensity {config['preprocessing']['intensity']} is fitted on all cohorts' training scans, "
            "those of the cohort that is left out among them; choose another intensity, or make the cohort external: true"
        )


def _wrong_explanations(config: Mapping) -> Iterator[str]:
    """Cells that the grid does not have, and methods that show nothing of a cell."""
    place, options, known = "evaluation.explanation", config["evaluation"]["explanation"], cells(config)
    for cell in explained_cells(config):
        if cell not in known:
            near = get_close_matches(str(cell), map(str, known), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(map(str, known))}"
            yield f"{place}.cells: the grid has no cell {cell}; {hint}"
            continue
        encoder = None if kind_of(config, "head", cell.head) == "resnet18" else config["encoder"]["name"]
        if encoder is None and "rollout" in options["methods"]:
            yield f"{place}.methods: {cell} has no attention to roll out; take rollout away, or the cell"
        if encoder == "brainiac" and "integrated_gradients" in options["methods"]:
            yield (
                f"{place}.methods: brainiac normalizes each volume by itself, so that nothing changes along the way from the reference to "
                "the scan and integrated gradients are zero; take occlusion in their place"
            )
    if options["stride"] > options["block"]:
        yield f"{place}: stride {options['stride']} leaves gaps between blocks of {options['block']}; lower it"


def _unfit_rules(config: Mapping, index: int, block: Mapping) -> Iterator[str]:
    """Rules that ask for more clients than there are cohorts, or for adapters that a tuning does not have."""
    for name in block["aggregations"]:
        if kind_of(config, "aggregation", name) not in registry.names("aggregation"):
            continue
        try:
            rule = registry.build("aggregation", name, options_of(config, "aggregation", name))
        except (StudyError, TypeError):
            continue  # told with the options
        if isinstance(rule.private, str) or not isinstance(rule.private, Sequence):
            yield f"grid.{index}: aggregation {name}: private must be a list, it is {rule.private!r}"
            continue
        if (taken := global_name(config, name)) and any(taken in other["aggregations"] for other in config["grid"]):
            yield f"grid.{index}: aggregation {taken}: the global model of {name} is evaluated under this name; choose another"
        if wrong := [entry for entry in rule.private if not _is_kind_or_pattern(entry)]:
            yield f"grid.{index}: aggregation {name}: {absent(wrong[0])}"
            continue
        problems = set(_nothing_left(config, index, block, rule))
        for tuning in block["tunings"]:
            tensors = {"head.weight": np.zeros(1)} | _adapters(config, tuning)
            try:
                wanted = (*rule.requires, *(entry for entry in rule.private if entry in ADAPTERS))
                missing = [absent(entry) for entry in wanted if not named([entry], tensors)]
                if missing:
                    raise StudyError(f"aggregation {name}, tuning {tuning}: {missing[0]}")
                stay = named(rule.private, tensors)
                clients = training_cohorts(config)[: _fewest_clients(config, block)]
                rule.init({n: tensor for n, tensor in tensors.items() if n not in stay}, clients)
                for head in block["heads"]:
                    rule.check_round(_clients_of_a_round(config, block, head, tuning))
            except StudyError as error:
                problems.add(f"grid.{index}: {error}")
        yield from sorted(problems)


def _nothing_left(config: Mapping, index: int, block: Mapping, rule) -> Iterator[str]:
    """Cells of which all would stay with the clients, or nothing of what should."""
    for head in block["heads"]:
        for tuning in block["tunings"]:
            kinds = kind_of(config, "head", head), kind_of(config, "tuning", tuning)
            alone = kinds[0] in registry.TUNING_OF_REFERENCE or kinds[1] == "frozen"  # trained is the head alone
            linear = kinds[0] == "linear"
            # Names of other heads are not known without torch; who names all that begins with head means all of them.
            tensors = ["head.classify.weight", "head.classify.bias"] if linear else ["head."]
            if alone and named(rule.private, tensors) == tensors:
                mend = "" if linear else ", or keep a part of the head only (kind: fedavg, private: [head.classify.*])"
                yield (
                    f"grid.{index}: aggregation {type(rule).__name__} keeps the head with the client, and {head}/{tuning} trains "
                    f"nothing else; use it with another tuning{' or head' if linear else ''}{mend}"
                )
            if "norm" in rule.private and linear and (kinds[1] == "frozen" or _adapters(config, tuning)):
                yield f"grid.{index}: aggregation {type(rule).__name__}, {head}/{tuning}: {absent('norm')}"


def _is_kind_or_pattern(entry: object) -> bool:
    """A word alone is the name of a kind; names of tensors have dots, patterns what stands for more."""
    return isinstance(entry, str) and (entry in KINDS or bool(set(entry) & set(".*?[")))


def _clients_of_a_round(config: Mapping, block: Mapping, head: str, tuning: str) -> int:
    """How many clients a round of a block has at least, if every cohort that is not external trains."""
    sample, clients = training_options(config, head, tuning).get("sample"), _fewest_clients(config, block)
    return min(sample or clients, clients)


def _wrong_numbers(config: Mapping, index: int, block: Mapping) -> Iterator[str]:
    """Cells that draw, or need, more clients than there are."""
    if set(block["aggregations"]) <= set(registry.REFERENCES):
        return
    cohorts = _fewest_clients(config, block)
    what = "cohorts that train" if external_cohorts(config) else "cohorts"
    what += " where one is left out" if _left_out(config, block) else ""
    for head in block["heads"]:
        for tuning in block["tunings"]:
            options = training_options(config, head, tuning)
            sample, quorum = options.get("sample"), options.get("quorum")
            place = f"grid.{index}: {head}/{tuning}: training"
            if sample and sample > cohorts:
                yield f"{place}: sample is {sample}, and there are {cohorts} {what}; lower it, or leave it out"
            elif quorum and quorum > (clients := sample or cohorts):
                of = "clients of a round (sample)" if sample else what
                yield f"{place}: quorum is {quorum}, and there are {clients} {of}; lower it, or leave it out"


def _adapters(config: Mapping, tuning: str) -> dict[str, np.ndarray]:
    """The factors that a tuning trains, one layer of them: their names as peft's, with their rank."""
    try:
        tuned = registry.build("tuning", tuning, options_of(config, "tuning", tuning))
    except (StudyError, TypeError):
        tuned = None  # told with the options
    adapters, rank = getattr(tuned, "adapters", ()), getattr(tuned, "rank", 1)
    shapes = {"A": (rank, 1), "B": (1, rank)}
    return {f"layer.lora_{f}.{adapter}.weight": np.zeros(shapes[f]) for adapter in adapters for f in shapes}


def _unknown_name(place: str, kind: str, name: str) -> Iterator[str]:
    try:
        registry.module_of(kind, name)
    except StudyError as error:
        yield f"{place}: {error}"
