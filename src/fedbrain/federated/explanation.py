"""Explanation maps of a trained cell: of some test subjects, averaged over cases and over controls, with their checks.

The model is the one that made the cell's predictions, put together from ``model.safetensors`` as training put it together. That it is
the same is not taken on trust: the score of every explained scan must be the one in ``predictions.tsv``.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from fedbrain.devices import FittingBatch, be_repeatable
from fedbrain.errors import StudyError
from fedbrain.federated.released import released_models
from fedbrain.federated.task import derive_seed
from fedbrain.imaging import derivatives
from fedbrain.imaging.map_names import GROUPS, METHODS, group_map, map_name
from fedbrain.imaging.maps import read_map, write_map
from fedbrain.models.cards import CARDS
from fedbrain.models.classifier import EncoderSource, build_classifier
from fedbrain.models.explanation import (
    FromVolume,
    agreement,
    brain_of,
    evidence_of,
    integrated_gradients,
    occlusion,
    randomised,
    reference_of,
    rollout_map,
)
from fedbrain.models.tuning import VOLUME, Tuning
from fedbrain.models.weights import weights_identity
from fedbrain.provenance import digest, sha256_of, versions
from fedbrain.registry import build, lookup
from fedbrain.shard_folders import held
from fedbrain.tables import EXPLANATION, RANDOMISATION, VOLUMES, read_table, write_table, write_text

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a score that is computed again, perhaps on another device


@dataclass(frozen=True)
class ExplanationOptions:
    """What is explained and how; as ``evaluation.explanation`` in the config."""

    methods: Sequence[str] = ("integrated_gradients", "rollout")
    subjects: int | None = 4  # of each class; None: all
    steps: int = 16  # of integrated gradients
    baseline: str = "mean"
    block: int = 32  # voxels, of occlusion
    stride: int = 32
    randomised: int = 1  # subjects of each class whose maps are compared with those of scrambled weights

    def of(self, method: str) -> dict:
        """Those that decide a map by ``method``."""
        names = {"integrated_gradients": ("steps", "baseline"), "occlusion": ("block", "stride", "baseline")}
        return {name: getattr(self, name) for name in names.get(method, ())}


def explain_cell(
    predictions: pd.DataFrame,
    scans: Mapping[str, pd.DataFrame],
    volumes: str,
    model_file: str | Path,
    *,
    head: str,
    tuning: str,
    aggregation: str,
    head_options: Mapping | None = None,
    tuning_options: Mapping | None = None,
    aggregation_options: Mapping | None = None,
    source: EncoderSource | None = None,
    precisions: tuple[str, str] = ("float32", "float32"),
    harmonization=None,
    options: ExplanationOptions | None = None,
    training_seed: int = 0,
    seed: int = 0,
    folder: str | Path,
    device: str = "cpu",
    batch_size: int = 1,
    code: str = "",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Explains a trained cell; returns the tables EXPLANATION and RANDOMISATION.

    Writes into ``folder``: ``{cohort}/{scan}_..._desc-{method}_relevance.nii.gz`` with a record beside it for every scan and method,
    ``group-{case,control,difference}_...`` for every method, ``explanation.tsv`` and ``randomisation.tsv``. A map that an earlier
    run has made of the same volume by the same model in the same way is kept, so that a job that is killed loses one scan; maps of
    scans that are not chosen any more are deleted.

    Args:
        predictions: table PREDICTIONS of the test scans, by the model that is explained.
        scans: table SCANS of each cohort.
        volumes: pattern of the shards' folders with {cohort} and {shard}; ``{folder}.tsv`` is their table VOLUMES.
        model_file: the cell's ``model.safetensors``.
        source: the encoder of the embeddings or tokens that the cell was trained on, weights included.
        precisions: of what is kept of the scans, and of the training.
        harmonization: what adjusts the embeddings before the head, if anything.
        training_seed: of the run that is explained.
        seed: of the choice of subjects and of scrambled weights.
        batch_size: volumes that go through the network together, fewer where memory runs out.

    Raises StudyError where a class has no test subject with a prediction, a volume is missing, a method does not fit the model, or the
    model does not give the scores of ``predictions``.
    """
    options, folder = options or ExplanationOptions(), Path(folder)
    be_repeatable(device)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        chosen = chosen_scans(predictions, scans, options.subjects, seed)
        chosen["key"] = _volume_keys(chosen, volumes)
        cell = _Cell(
            (head, tuning, aggregation),
            (head_options, tuning_options, aggregation_options),
            source or EncoderSource(),
            model_file,
            precisions=precisions,
            harmonization=harmonization,
            scans=scans,
            training_seed=training_seed,
            device=device,
        )
        _remove_stale(folder, chosen)
        fitting, rows, compared = FittingBatch(batch_size), [], []
        made_by = {"code": code, "versions": versions("torch", "monai", "peft", "numpy"), "model": cell.identity}
        for scan in tqdm(list(chosen.itertuples()), desc="scans", unit="scan", mininterval=5):
            one = _Scan(scan, folder, volumes, cell, options, made_by, fitting, seed)
            for method in options.methods:
                about = {
                    name: getattr(scan, name) for name in ("cohort", "scan", "subject", "session", "label", "score")
                }
                rows.append(about | {"method": method} | one.explained(method))
                if scan.drawn < options.randomised:
                    compared += [about | {"method": method} | row for row in one.compared(method)]
        for method in options.methods:
            _write_groups(folder, chosen, method)
        table = pd.DataFrame(rows).reindex(columns=list(EXPLANATION)).astype(EXPLANATION)
        checks = pd.DataFrame(compared).reindex(columns=list(RANDOMISATION)).astype(RANDOMISATION)
        write_table(table, folder / "explanation.tsv")
        write_table(checks, folder / "randomisation.tsv")
    return table, checks


def chosen_scans(
    predictions: pd.DataFrame, scans: Mapping[str, pd.DataFrame], subjects: int | None, seed: int
) -> pd.DataFrame:
    """The scans to be explained: the first test scan of so many subjects of each class, drawn by ``seed`` from all clients.

    Columns of ``predictions``, scan, shard, row (of the predictions, from 1) and drawn (from 0, within the class); by cohort
    and scan. Who is drawn for fewer is drawn for more, too. Raises StudyError for a class without a subject that has a prediction.
    """
    tables = pd.concat([table.assign(cohort=cohort) for cohort, table in scans.items()])
    tables = tables[["cohort", "subject", "session", "scan", "shard"]]
    found = predictions.assign(row=range(1, len(predictions) + 1)).dropna(subset=["score"])
    for frame in (found, tables):
        frame["session"] = frame["session"].astype("string").fillna("")
    found = found.merge(tables, on=["cohort", "subject", "session"], how="left", validate="1:1")
    if found["scan"].isna().any():
        raise StudyError("predictions name scans that no scan table has; train the cell again")
    found = found.sort_values(["cohort", "scan"]).drop_duplicates(["cohort", "subject"])
    parts = []
    for label, name in ((0, "control"), (1, "case")):
        part = found[found["label"] == label]
        if not len(part):
            raise StudyError(
                f"evaluation.explanation: no {name} among the test subjects has a prediction, so there is no group of {name}s "
                "to show; leave the cell out, or enlarge splits.test"
            )
        order = np.random.default_rng(derive_seed(seed, "explanation", label)).permutation(len(part))
        part = part.iloc[order[:subjects]]
        parts.append(part.assign(drawn=range(len(part))))
    chosen = pd.concat(parts).sort_values(["cohort", "scan"], ignore_index=True)
    return chosen.assign(session=chosen["session"].replace("", pd.NA))


class _Cell:
    """The trained models of a cell, from the volume on."""

    def __init__(
        self,
        cell: tuple[str, str, str],
        cell_options: tuple[Mapping | None, Mapping | None, Mapping | None],
        source: EncoderSource,
        model_file: str | Path,
        *,
        precisions: tuple[str, str],
        harmonization,
        scans: Mapping[str, pd.DataFrame],
        training_seed: int,
        device: str,
    ):
        (head, tuning, aggregation), (head_options, tuning_options, aggregation_options) = cell, cell_options
        self._precisions, self._harmonization, self._scans, self.device = precisions, harmonization, scans, device
        tuned: Tuning = build("tuning", tuning, tuning_options)
        seed = derive_seed(training_seed, "model", head)  # as in training: what nobody trains is drawn by it
        self._classifier = build_classifier(head, tuned, head_options=head_options, source=source, seed=seed)
        self._start = {name: tensor.clone() for name, tensor in self._classifier.state_dict().items()}
        self._prefix, encoder = None, None
        if self._classifier.cut != VOLUME:
            weights = None if tuned.weights == "random" else source.weights
            self._prefix = lookup("encoder", source.name)(weights, seed=source.seed).to(device=self.device)
            encoder = weights_identity(weights, seed=source.seed, card=CARDS[source.name])
        self._released = released_models(
            Path(model_file).parent,
            self._classifier,
            scans,
            aggregation=aggregation,
            aggregation_options=aggregation_options,
        )
        self.identity = {"sha256": sha256_of(model_file), "encoder": encoder, "precisions": self._precisions}
        self._of: tuple[str, FromVolume] | None = None

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE[precision] for precision in self._precisions)

    def change(self, cohort: str, scan: str) -> tuple[Tensor, Tensor] | None:
        """Gain and shift of the scan's channel means by the harmonization."""
        if self._harmonization is None:
            return None
        gain, shift = self._harmonization.change(cohort, [scan], self._scans[cohort])
        return torch.as_tensor(gain, dtype=torch.float32), torch.as_tensor(shift[0], dtype=torch.float32)

    def model(self, cohort: str, scan: str) -> FromVolume:
        """The model that a client's scan is classified by."""
        if self._of is None or self._of[0] != cohort:
            tensors = {name: torch.as_tensor(array) for name, array in self._released[cohort].items()}
            _, unknown = self._classifier.load_state_dict(self._start | tensors, strict=False)
            if unknown:
                raise StudyError(
                    f"the written model has tensors that the cell has not: {', '.join(unknown)}; train it again"
                )
            self._of = cohort, FromVolume(self._classifier, self._prefix, precisions=self._precisions).to(self.device)
        self._of[1].change = self.change(cohort, scan)
        return self._of[1]


class _Scan:
    """One scan of those that are explained; volume and model are read when something has to be computed."""

    def __init__(
        self, scan, folder: Path, volumes: str, cell: _Cell, options: ExplanationOptions, made_by, fitting, seed
    ):
        self._scan, self._cell, self._options = scan, cell, options
        self._folder = folder / scan.cohort
        self._shard = volumes.format(cohort=scan.cohort, shard=scan.shard)
        self._fitting, self._seed = fitting, seed
        change = cell.change(scan.cohort, scan.scan)
        change = None if change is None else [digest(part.tolist()) for part in change]
        self._made_by = dict(made_by) | {"volume": scan.key, "cohort": scan.cohort, "harmonization": change}
        self._read: Tensor | None = None
        self._evidence: float | None = None  # once the model was found to be the one of the predictions

    def explained(self, method: str) -> dict:
        """The map, written, and what is known of it (columns of EXPLANATION)."""
        path = self._folder / map_name(self._scan.scan, METHODS[method])
        key = digest([self._made_by, method, self._options.of(method)])
        if path.exists() and (record := _kept(_beside(path), key)):
            return record
        start = time.perf_counter()
        model = self._model()
        values, pads = self._map(model, method)
        record = {"evidence": self._evidence, "pads": pads}
        if method == "integrated_gradients":
            reference = reference_of(self._volume(), self._options.baseline)
            (at_reference,) = evidence_of(model, reference[None]).tolist()
            total = float(values.sum(dtype=np.float64))
            record |= {"reference_evidence": at_reference, "total": total}
            record |= {"completeness_error": abs(total - (self._evidence - at_reference))}
        record |= {"seconds": round(time.perf_counter() - start, 3)}
        write_map(values, path)
        write_text(json.dumps({"key": key, "made": record}, indent=1) + "\n", _beside(path))
        return record

    def compared(self, method: str) -> list[dict]:
        """How alike the map is to those by models with scrambled weights (columns of RANDOMISATION)."""
        path = self._folder / map_name(self._scan.scan, METHODS[method], "randomisation")
        key = digest([self._made_by, method, self._options.of(method), self._seed])
        if rows := _kept(_beside(path), key):
            return rows
        original = read_map(self._folder / map_name(self._scan.scan, METHODS[method]))
        brain, rows = brain_of(self._volume()).cpu().numpy(), []
        for number, (stage, model) in enumerate(randomised(self._model(), self._seed), 1):
            values, _ = self._map(model, method)
            rows.append({"number": number, "stage": stage} | agreement(original, values, brain))
        rows = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]
        write_text(json.dumps({"key": key, "made": rows}, indent=1) + "\n", _beside(path))
        return rows

    def _map(self, model: FromVolume, method: str) -> tuple[np.ndarray, float | None]:
        """The map, and of a roll-out what flows from pads."""
        volume, options = self._volume(), self._options
        if method == "rollout":
            values, pads = rollout_map(model, volume)
            return values.cpu().numpy(), pads
        reference = reference_of(volume, options.baseline)
        if method == "occlusion":
            sizes = {"block": options.block, "stride": options.stride}
            return occlusion(model, volume, reference, fitting=self._fitting, **sizes).numpy(), None
        return integrated_gradients(model, volume, reference, steps=options.steps, fitting=self._fitting).numpy(), None

    def _volume(self) -> Tensor:
        if self._read is None:
            place = f"{self._shard}: the volume of row {self._scan.row} of the predictions"
            values, _ = derivatives.read(Path(self._shard), self._scan.scan, place)
            self._read = torch.as_tensor(values).to(self._cell.device)
        return self._read

    def _model(self) -> FromVolume:
        """The scan's model, which must give the score that stands in the table of predictions."""
        model = self._cell.model(self._scan.cohort, self._scan.scan)
        if self._evidence is not None:
            return model
        evidence = evidence_of(model, self._volume()[None])
        score = float(evidence.sigmoid())
        if not abs(score - float(self._scan.score)) <= self._cell.tolerance:
            raise StudyError(
                f"cohort {self._scan.cohort}, row {self._scan.row} of predictions.tsv: the model that is to be explained gives "
                f"{score:.6f}, the prediction is {float(self._scan.score):.6f}; volumes, embeddings, weights or code have changed "
                "since; delete the cell's folder in results/runs and run again"
            )
        self._evidence = float(evidence)
        return model


def _volume_keys(chosen: pd.DataFrame, volumes: str) -> list[str]:
    """What the volumes were made from and how, in the order of ``chosen``."""
    keys = {}
    for cohort, shard in chosen[["cohort", "shard"]].drop_duplicates().itertuples(index=False):
        table = read_table(f"{volumes.format(cohort=cohort, shard=shard)}.tsv", VOLUMES)
        keys |= {(cohort, scan): key for scan, key in table[["scan", "key"]].itertuples(index=False)}
    return [keys[cohort, scan] for cohort, scan in chosen[["cohort", "scan"]].itertuples(index=False)]


def _write_groups(folder: Path, chosen: pd.DataFrame, method: str) -> None:
    """Means over the cases and over the controls, each subject with the same weight, and their difference."""
    means = {}
    for group, label in (("case", 1), ("control", 0)):
        rows = chosen[chosen["label"] == label]
        paths = [folder / row.cohort / map_name(row.scan, METHODS[method]) for row in rows.itertuples()]
        means[group] = sum(read_map(path).astype(np.float64) for path in paths) / len(paths)
    means["difference"] = means["case"] - means["control"]
    for group in GROUPS:
        write_map(means[group], folder / group_map(group, method))


def _beside(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _kept(path: Path, key: str):
    try:
        record = json.loads(path.read_text())
        return record["made"] if record["key"] == key else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _remove_stale(folder: Path, chosen: pd.DataFrame) -> None:
    """Deletes maps of scans that are not chosen any more: they are of persons who may have withdrawn."""
    wanted = {(row.cohort, row.scan) for row in chosen.itertuples()}
    for path in _of_scans(folder):
        if (path.parent.name, path.name.partition("_space-")[0]) not in wanted:
            path.unlink()


def _of_scans(folder: Path) -> Iterator[Path]:
    for pattern in ("*/*_relevance.nii.gz", "*/*_relevance.json", "*/*_randomisation.json"):
        yield from folder.glob(pattern)
