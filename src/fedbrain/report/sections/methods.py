"""A paragraph of methods, ready to paste, with the versions and sources of what the study really ran."""

from collections.abc import Mapping

from fedbrain.figures.style import shown_name
from fedbrain.registry import REFERENCES, base_name
from fedbrain.report.citations import OF_RULE, Citations
from fedbrain.report.html import Html, heading, join, p, table
from fedbrain.report.html import columns as header_of
from fedbrain.report.material import Material, shown
from fedbrain.report.numbers import counted, listed, plain

# In words, its sources, and the package that it is.
EXTRACTORS = {
    "deepbet": ("deepbet", ("deepbet",), ("deepbet",)),
    "hd_bet": ("HD-BET", ("hd_bet",), ("nnunetv2",)),
    "synthstrip": ("SynthStrip", ("synthstrip",), ("nipreps-synthstrip",)),
    "template": ("registration of a template's brain", (), ()),
    "provided": ("masks that came with the data", (), ()),
}
INTENSITIES = {
    "encoder": ("z-scored by mean and standard deviation within the brain, as the encoder was pretrained", ()),
    "zscore": ("z-scored within the brain", ()),
    "minmax": ("scaled to the range from 0 to 1", ()),
    "whitestripe": ("normalized by WhiteStripe", ("whitestripe",)),
    "kde": ("divided by the mode of white matter", ("intensity",)),
    "fcm": ("divided by the mean of white matter from fuzzy c-means", ("intensity",)),
    "nyul": ("brought to a standard scale of percentiles", ("nyul",)),
    "none": ("left as they were", ()),
}
STANDARD_SCALES = {
    "client": "each cohort's own standard scale from its own training scans; nothing of it left the cohort",
    "shared": "one standard scale, the mean of the cohorts' by training scans; of each cohort eleven numbers and two counts travelled, once",
}
MAPS = {
    "integrated_gradients": ("integrated gradients", ("gradients",)),
    "occlusion": ("occlusion", ("occlusion",)),
    "rollout": ("attention roll-out", ("rollout",)),
}
ENCODERS = {"sam_med3d": "SAM-Med3D", "brainiac": "BrainIAC"}


def methods(material: Material) -> Html:
    """The paragraphs with a button to copy them, the sources, the settings."""
    paragraphs, citations = written(material)
    return join(
        p(
            "Written from the config and the records of this run, to be pasted into a paper and then worked on: what "
            "the run cannot know (recruitment, diagnosis, ethics) is in square brackets with capitals.",
            kind="note",
        ),
        Html('<div id="methods-text">\n'),
        *(p(paragraph) for paragraph in paragraphs),
        heading("Sources"),
        citations.html(),
        Html(
            '</div>\n<button type="button" class="copy" data-copies="methods-text" hidden>Copy methods and sources</button>\n'
        ),
    )


def packages(study: Mapping) -> list[str]:
    """The software whose versions the page names beside those that the runs recorded."""
    return ["snakemake", "antspyx", "nilearn", *EXTRACTORS[study["preprocessing"]["extractor"]][2], "scipy", "pandas"]


def written(material: Material) -> tuple[list[str], Citations]:
    """The paragraphs as plain text, and what they cite."""
    cite = Citations()
    parts = (_participants, _images, _models, _training, _evaluation, _on_request, _software)
    return [text for text in (part(material, cite) for part in parts) if text], cite


def _participants(material: Material, cite: Citations) -> str:
    negative, positive = material.classes
    splits, split = material.splits, material.study["splits"]
    simulated = f" Simulated (phantoms): {listed(material.phantoms)}." if material.phantoms else ""
    used = sum(map(len, material.used.values()))
    rest = 1 - split["validation"] - split["test"]
    by_side = {side: int((splits["split"] == side).sum()) for side in ("train", "validation", "test")}
    return (
        f"Participants. T1-weighted MRI of {counted(len(splits), 'subject')} ({int((splits['label'] == 0).sum())} {negative}, "
        f"{int((splits['label'] == 1).sum())} {positive}; {counted(used, 'scan')}) of "
        f"{counted(len(material.cohorts), 'cohort')} ({listed(material.cohorts)}) were used.{simulated} [RECRUITMENT, DATES, CRITERIA OF "
        "DIAGNOSIS, ETHICS, CONSENT.] Subjects were split by person within cohort, stratified by diagnosis, into training, validation and test sets "
        f"({100 * rest:.0f}, {100 * split['validation']:.0f} and {100 * split['test']:.0f} %: {by_side['train']}, {by_side['validation']} "
        f"and {by_side['test']} subjects); a person, known by id or by an image that occurs twice, was on one side only."
    )


def _images(material: Material, cite: Citations) -> str:
    options = material.study["preprocessing"]
    extractor, source, _ = EXTRACTORS[options["extractor"]]
    intensity, of_intensity = INTENSITIES[options["intensity"]]
    scale = ""
    if options["intensity"] == "nyul":
        scale = f" ({STANDARD_SCALES[options['nyul']['scale']]})"
    interpolation = f"{options['interpolation']} " if "interpolation" in options else ""
    quality = material.study["quality"]
    dropped = {
        "none": "none was dropped for it",
        "limits": "scans beyond a fixed limit were dropped",
        "flagged": "flagged scans were dropped",
    }[quality["drop"]]
    return (
        f"Image processing. Brains were extracted ({_joined(extractor, cite(*source))}), corrected for the bias field (N4 {cite('n4')}), "
        f"registered affinely to the MNI152 template (ICBM 2009a nonlinear symmetric {cite('mni')}; ANTs {cite('ants')}) and resampled once, by "
        f"{interpolation}interpolation, to 128 x 128 x 128 voxels of 1.5 mm. Intensities were {_joined(intensity, cite(*of_intensity))}{scale}. Scans were "
        f"flagged at a robust z beyond {quality['outlier_z']:g} of any quality metric within their cohort; {dropped}."
    )


def _models(material: Material, cite: Citations) -> str:
    heads, tunings = (list(dict.fromkeys(cell[i] for cell in material.cells)) for i in range(2))
    encoder = material.study["encoder"]
    weights = (
        "with random, untrained weights" if encoder["weights"] == "random" else "with its published pretrained weights"
    )
    sentences = [
        f"Models. Volumes were embedded by the image encoder of {ENCODERS.get(encoder['name'], encoder['name'])} {cite(encoder['name'])}, {weights}, and classified by "
        f"{counted(len(heads), 'head')} ({listed(map(shown_name, heads))})."
    ]
    kinds = {name: base_name(name, material.study["tuning"].get(name, {})) for name in tunings}
    how = []
    for name, kind in kinds.items():
        source = cite("lora") if kind in ("lora", "dual_lora") else ""
        how.append(_joined(shown_name(name), source))
    sentences.append(f"Tuning of the encoder: {listed(how)}.")
    if "resnet18" in heads:
        sentences.append(f"A 3D ResNet18 {cite('resnet')} was trained from scratch as a reference.")
    if "ncc" in heads:
        sentences.append("The nearest class centre of the embeddings served as a reference without training.")
    if material.harmonization:
        sentences.append(
            f"For {listed(material.harmonization)} the embeddings were harmonized by ComBat {cite('combat', 'combat_mri')}, computed without "
            f"pooling {cite('combat_distributed')}, fitted on training subjects without labels."
        )
    return " ".join(sentences)


def _training(material: Material, cite: Citations) -> str:
    names = list(dict.fromkeys(cell[2] for cell in material.cells))
    federation, optimizer = cite("study"), cite("adamw")  # numbered as they stand in the text
    rules = []
    for name in names:
        if name not in REFERENCES:
            key = OF_RULE.get(base_name(name, material.study["aggregation"].get(name, {})))
            rules.append(_joined(shown_name(name), cite(key) if key else ""))
    options = material.study["training"]
    settings = [
        counted(options[key], *words)
        for key, *words in (
            ("rounds", "round"),
            ("local_epochs", "local epoch"),
            ("batch_size", "scan in a batch", "scans in a batch"),
        )
        if key in options
    ]
    settings += [
        f"{word} {plain(options[key])}"
        for key, word in (("learning_rate", "learning rate"), ("weight_decay", "weight decay"))
        if key in options
    ]
    own = [name for section in ("heads", "tunings") for name in options.get(section, {})]
    seeds = sorted({len(cell[3]) for cell in material.cells})
    chosen = {"loss": "loss", "balanced_accuracy": "balanced accuracy"}[options.get("selection", "loss")]
    references = [name for name in names if name in REFERENCES]
    return (
        f"Training. Each cohort was a client of a simulated federation {federation}. Clients minimised cross-entropy"
        + (", weighted by class within the client," if options.get("class_weights") == "balanced" else "")
        + f" by AdamW {optimizer}"
        + (
            f" ({', '.join(settings)}"
            + (f"; other values for {listed(map(shown_name, own))}, see the settings" if own else "")
            + ")"
            if settings
            else ""
        )
        + (f"; updates were combined by {listed(rules)}" if rules else "")
        + "."
        + (f" References without federation: {listed(references)}." if references else "")
        + f" The round with the best {chosen} on the clients' validation subjects was taken. Every cell was trained with "
        + f"{listed(seeds, 'or')} random {'seed' if seeds == [1] else 'seeds'}."
    )


def _evaluation(material: Material, cite: Citations) -> str:
    options = material.study["evaluation"]
    method = {"percentile": "percentile", "bca": "bias-corrected and accelerated"}[options["method"]]
    reference = options["comparisons"]["reference"]
    family = {"table": "all comparisons", "client": "the comparisons of each client"}[options["comparisons"]["family"]]
    against = f"with {shown(tuple(reference))}" if reference else "in all pairs"
    return (
        f"Evaluation. The area under the ROC curve on test subjects is given with {material.level} intervals from {options['resamples']:,} {method} "
        f"bootstrap resamples of subjects, stratified by label {cite('bootstrap', 'cluster')}; with fewer than 20 subjects of a class by DeLong's method "
        f"on the logit scale {cite('delong', 'obuchowski')}. Cells were compared {against} by the paired bootstrap and DeLong's test, corrected over "
        f"{family} by Holm's method {cite('holm')}. Calibration was assessed by slope, intercept {cite('calibration')} and expected calibration error, "
        f"subgroups by differences of true and false positive rates {cite('odds')}, and confounding by site by a classifier that knows the cohort "
        f"alone {cite('site')}. The report follows TRIPOD+AI {cite('tripod')}, the model card Mitchell et al. {cite('cards')}."
    )


def _on_request(material: Material, cite: Citations) -> str:
    """What only some studies ask for."""
    sentences, asked = [], material.study["evaluation"]
    if "transfer" in material.extra:
        kinds = set(material.extra["transfer"]["kind"])
        if "left out" in kinds:
            sentences.append(
                "Cells were also trained without one cohort at a time and tested on it; the mean over these cohorts is a random-effects mean with the "
                f"interval of Hartung and Knapp {cite('mean_of_few')}."
            )
        if "external" in kinds:
            sentences.append(f"External cohorts ({listed(material.external)}) were tested on only.")
    if "personalisation" in material.extra:
        sentences.append(
            "Clients' own models were compared with the global, local and centralized ones on the same test subjects."
        )
    if "privacy" in material.extra:
        sentences.append(
            f"Released models were attacked by membership inference, by the loss {cite('loss_attack')} and by likelihood ratios with "
            f"{asked['privacy']['shadows']} shadow models {cite('lira')}."
        )
    if any(name.startswith("explanation-") for name in material.figures):
        maps = listed(_joined(MAPS[method][0], cite(*MAPS[method][1])) for method in asked["explanation"]["methods"])
        sentences.append(
            f"Maps of what models look at were made by {maps}, beside those of scrambled weights {cite('scrambled')}."
        )
    return " ".join(["Further analyses.", *sentences]) if sentences else ""


def _software(material: Material, cite: Citations) -> str:
    versions = material.all_versions
    named = {"snakemake": "snakemake", "flwr": "flower", "torch": "pytorch", "monai": "monai"}
    told = [
        _joined(f"{name} {version}", cite(named[name]) if name in named else "") for name, version in versions.items()
    ]
    devices = listed(sorted({str(summary["device"]) for summary in material.summaries}))
    return f"Software. {listed(told)}. Training ran on: {devices}. Seed of the study: {material.study['seed']}."


def settings(material: Material) -> Html:
    """The config as it was run, and versions."""
    study = material.study
    facts = {
        "encoder": f"{study['encoder']['name']}, weights: "
        + ", ".join(sorted({str(summary["weights"]) for summary in material.summaries})),
        "preprocessing": _listed(_preprocessing(study["preprocessing"])),
        "quality": _listed(study["quality"]),
        "splits": _listed(study["splits"]),
        "seed of the study": study["seed"],
        "evaluation": _listed(study["evaluation"]),
    }
    for axis in ("head", "tuning", "aggregation"):
        for name, options in study[axis].items():
            facts[f"options of {name}"] = _listed(options)
    training = dict(study["training"])
    for section in ("heads", "tunings"):
        for name, options in training.pop(section, {}).items():
            facts[f"training of {name}"] = _listed(options)
    facts["training"] = _listed(training)
    facts["versions"] = _listed(material.all_versions)
    return join(
        p(
            "The config as it was run; docs/configuration.md says what each key means. Results carry their own records (.json beside them)."
        ),
        table("settings-table", "Settings", header_of("what", "value"), list(facts.items())),
    )


def _preprocessing(options) -> dict:
    told = {key: value for key, value in options.items() if key != "nyul"}
    if told.get("intensity") == "nyul":
        told["intensity"] = f"nyul ({STANDARD_SCALES[options['nyul']['scale']]})"
    return told


def _listed(options: Mapping) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in options.items()) or "defaults"


def _value(value) -> str:
    if isinstance(value, Mapping):
        return f"({_listed(value)})" if value else "none"
    if isinstance(value, list | tuple):
        return " / ".join(map(_value, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _joined(words: str, citation: str) -> str:
    return " ".join(filter(None, (words, citation)))
