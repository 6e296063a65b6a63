"""The first page of the report: the study in words and tables.

Written as reStructuredText with the tables as HTML, which is what Snakemake's report takes as its first page. It holds
counts and results only, never a subject's id.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from fedbrain.cohorts.intake import ON_EXCLUDE_LIST
from fedbrain.evaluation.reported import DELONG, FEW, reported_auc
from fedbrain.imaging.outliers import METRICS, drop_words
from fedbrain.models.cards import CARDS, overlap
from fedbrain.registry import REFERENCES

NONE = "–"
SITE_ONLY = ("site_only", "none", "none")  # the baseline among the cells
ALPHA = 0.05  # what a p-value after Holm's correction is counted against (ours)
ROUGH = "p-values and limits are rough"  # in the note of a comparison on few subjects
ROOM = 12  # rows of a table that the page shows at once; longer ones are opened by the reader
MOST = 200  # rows of an opened table; the rest is in the file


def study_page(
    study: Mapping,
    *,
    phantoms: Sequence[str],
    datasets: Mapping[str, str],
    scans: Mapping[str, pd.DataFrame],
    excluded: Mapping[str, pd.DataFrame],
    passed_over: Mapping[str, pd.DataFrame],
    volumes: Mapping[str, pd.DataFrame],
    quality: Mapping[str, pd.DataFrame],
    splits: pd.DataFrame,
    duplicates: pd.DataFrame,
    performance: pd.DataFrame,
    efficiency: pd.DataFrame,
    comparisons: pd.DataFrame,
    calibration: pd.DataFrame,
    thresholds: pd.DataFrame,
    subgroups: pd.DataFrame,
    site_effects: Mapping[str, pd.DataFrame],
    site_variance: Mapping[str, pd.DataFrame],
    harmonization: Mapping[str, pd.DataFrame],
    drawn: str,
    cells: Sequence[Sequence],
    summaries: Sequence[Mapping],
) -> str:
    """The page as text.

    Args:
        study: title, seed, class_names, splits, preprocessing, quality, encoder, evaluation, training and the options of head, tuning
            and aggregation of the config.
        phantoms: the cohorts that are simulated.
        datasets: the public data set that each cohort comes from, as the config says, or the cohort's name.
        scans, excluded, passed_over, volumes, quality: per cohort (tables.SCANS, EXCLUDED, PASSED_OVER, VOLUMES, QUALITY), in the
            order of the config.
        splits: tables.SPLITS.
        duplicates: tables.DUPLICATES.
        performance: tables.PERFORMANCE.
        efficiency, comparisons, calibration, thresholds, subgroups: tables.EFFICIENCY and so on.
        site_effects, site_variance: by frozen encoder (tables.SITE_EFFECTS, SITE_VARIANCE).
        harmonization: by the tuning that asks for it (tables.HARMONIZATION).
        drawn: the aggregation that figures of one aggregation show.
        cells: head, tuning, aggregation and seeds of each cell.
        summaries: what each run wrote about itself, one per cell and seed.
    """
    warnings = _warnings(study, phantoms, excluded, volumes, duplicates, performance, summaries)
    level = f"{100 * study['evaluation']['level']:g} %"
    parts = [
        _heading(study["title"], "="),
        _html(_alarms(study, phantoms, datasets, summaries)),
        _introduction(study, scans, cells),
        _heading("Cohorts", "-"),
        _html(_cohort_table(study, scans, excluded, quality, splits)),
        "Failed: scans that could not be read or did not pass a check; the reason stands under *Warnings* and in the "
        "table of the shard. Left out: rows of the scan table that the study does not use."
        + _passed_over_words(passed_over),
        _heading("Quality of the scans", "-"),
        _quality_words(study),
        _html(_quality_table(quality, excluded)),
        _heading("Main result", "-"),
        _main_result(study, performance),
        _html(_result_table(performance)),
        f"Mean over seeds, with {level} intervals from {study['evaluation']['resamples']:,} bootstrap resamples of test "
        f"subjects (all scans of a subject together, stratified by label). {_interval_words(performance, list(scans))} "
        "The intervals say nothing about other "
        "cohorts, and with few test subjects they are wide. *Pooled* ranks the test subjects of all clients together; "
        "for *local* it mixes the scores of different models. *SD over seeds* is the spread of the pooled AUC over runs.",
        "AUC by client:",
        _html(_client_table(performance, list(scans))),
        _heading("Comparisons", "-"),
        _comparison_words(study, comparisons),
        _html(_comparison_tables(study, comparisons)),
        _heading("Calibration and thresholds", "-"),
        "A *slope* of 1 and an *intercept* of 0 are right: below 1 the scores are too extreme, below 0 too high on the whole. "
        "*Calibration error*: mean distance of score and share of cases over bins of equal mass; in brackets what "
        "perfectly calibrated scores would stay under 19 times out of 20 by chance. All test subjects together, "
        f"mean over seeds, {level} intervals.",
        _html(_calibration_table(performance, calibration)),
        "A scan is called a case from a score of 0.5 on, or from the threshold with the largest sensitivity + specificity - 1 "
        "on the *validation* subjects, chosen for each seed. The test subjects have no part in the choice; the intervals "
        "take the threshold as given.",
        _html(_threshold_tables(thresholds)),
        _heading("Subgroups", "-"),
        _subgroup_words(study, subgroups, drawn),
        _html(_subgroup_tables(study, subgroups, drawn)),
        _heading("Site effects", "-"),
        _site_words(site_effects, site_variance),
        _html(_site_tables(site_effects)),
        _harmonization_words(harmonization),
        _html(_harmonization_table(study, harmonization)),
        _heading("Cost", "-"),
        _html(_cost_table(efficiency, summaries)),
        _cost_words(efficiency),
        _heading("Warnings", "-"),
        _html(_list(warnings) if warnings else "<p>None.</p>"),
        _heading("How it was made", "-"),
        _html(_method_table(study, summaries)),
    ]
    # The report renders this page as a Jinja template, and nothing in it is meant as one: not what a scan's header says,
    # either. A raw block could be closed by it; without a brace that is no expression's nothing can begin.
    return "\n\n".join(parts).replace("{", "{{ '{' }}") + "\n"


def _heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}"


def _html(text: str) -> str:
    return ".. raw:: html\n\n" + "\n".join(f"    {line}" for line in text.splitlines())


def _list(items: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"


class _Html(str):
    """A cell of a table that is HTML already."""


def _table(header: Sequence[str], rows: Sequence[Sequence], *, left: int = 1, wrap: bool = False) -> str:
    """An HTML table; the first ``left`` columns are text, the others numbers. A cell that is a tuple is bold.

    Lines break within a cell with ``wrap`` only.
    """
    side = ["left" if column < left else "right" for column in range(len(header))]
    style = "padding:3px 10px;border-bottom:1px solid #d0d0d0;vertical-align:top;"
    style += "text-align:" if wrap else "white-space:nowrap;text-align:"

    def cell(tag: str, value, column: int) -> str:
        text = value if isinstance(value, _Html) else escape(str(value[0] if isinstance(value, tuple) else value))
        weight = ";font-weight:bold" if isinstance(value, tuple) or tag == "th" else ""
        return f'<{tag} style="{style}{side[column]}{weight}">{text}</{tag}>'

    lines = ['<div style="overflow-x:auto;margin:8px 0"><table style="border-collapse:collapse;font-size:90%">']
    lines.append("<thead><tr>" + "".join(cell("th", name, i) for i, name in enumerate(header)) + "</tr></thead><tbody>")
    lines += ["<tr>" + "".join(cell("td", value, i) for i, value in enumerate(row)) + "</tr>" for row in rows]
    return "\n".join(lines) + "\n</tbody></table></div>"


def _alarms(study: Mapping, phantoms: Sequence[str], datasets: Mapping[str, str], summaries: Sequence[Mapping]) -> str:
    style = "border:2px solid #b00020;background:#fdecee;color:#7a0016;padding:8px 12px;margin:8px 0;font-weight:bold"
    alarms = []
    if any(str(summary["weights"]).startswith("random") for summary in summaries):
        alarms.append(
            "Untrained encoder: its weights are random. Nothing on these pages says how a pretrained model performs."
        )
    if phantoms:
        which = "All cohorts are" if len(phantoms) == _count_cohorts(summaries) else f"{', '.join(phantoms)}:"
        alarms.append(
            f"{which} simulated heads (phantoms), not patients. They show that the study runs; they are no evidence "
            "about dementia."
        )
    alarms += _leakage(study, datasets)
    return "\n".join(f'<p style="{style}">{escape(alarm)}</p>' for alarm in alarms) or "<span></span>"


def _leakage(study: Mapping, datasets: Mapping[str, str]) -> list[str]:
    """Test cohorts that a pretrained encoder has seen, as far as its card knows."""
    card = CARDS[study["encoder"]["name"]]
    if study["encoder"]["weights"] == "random":
        return []
    seen = {cohort: overlap(card, dataset) for cohort, dataset in datasets.items()}
    named = "; ".join(f"{cohort} ({name})" for cohort, name in seen.items() if name)
    if not named:
        return []
    return [
        f"Leakage: the encoder, {card.title}, was pretrained on data sets that this study tests on: {named}. Its test "
        "subjects may have been among them, so results on these cohorts may be too good. See docs/encoder.md for what is "
        "known of the pretraining."
    ]


def _count_cohorts(summaries: Sequence[Mapping]) -> int:
    return max((len(summary["clients"]) for summary in summaries), default=0)


def _introduction(study: Mapping, scans: Mapping, cells: Sequence) -> str:
    heads, tunings, aggregations = (list(dict.fromkeys(cell[i] for cell in cells)) for i in range(3))
    runs = sum(len(cell[3]) for cell in cells)
    negative, positive = study["class_names"]
    return (
        f"This study asks how to tell {positive} from {negative} on T1-weighted MRI of {len(scans)} cohorts whose scans "
        f"are not pooled. A 3D encoder ({study['encoder']['name']}) turns each brain volume into an embedding; "
        f"classification heads ({', '.join(heads)}) and, depending on the tuning ({', '.join(tunings)}), parts of the "
        "encoder are trained with each cohort as one client, and the clients' updates are combined in different ways "
        f"({', '.join(aggregations)}). "
        f"{len(cells)} cells of this grid were run with their seeds, {runs} runs in all. The best round of each run was "
        "chosen on validation subjects; all results are on test subjects that took part in no choice."
    )


def _cohort_table(study, scans, excluded, quality, splits) -> str:
    negative, positive = study["class_names"]
    header = ["cohort", "scans", "left out", "failed", "dropped", "used", "subjects", negative, positive]
    header += ["age, mean (SD)", "female", "train / val. / test", f"{positive} in test"]
    rows = []
    for cohort, table in scans.items():
        mine = splits[splits["cohort"] == cohort]
        sound, used = (
            quality[cohort][mask] for mask in (quality[cohort]["status"] == "ok", quality[cohort]["kept"] == 1)
        )
        people = table[table["scan"].isin(used["scan"])].drop_duplicates("subject")
        sides = [int((mine["split"] == side).sum()) for side in ("train", "validation", "test")]
        ages, sexes = people["age"].dropna(), people["sex"].dropna()
        rows.append(
            [
                cohort,
                len(table) + len(excluded[cohort]),
                len(excluded[cohort]),
                len(table) - len(sound),
                len(sound) - len(used),
                len(used),
                len(mine),
                int((mine["label"] == 0).sum()),
                int((mine["label"] == 1).sum()),
                f"{ages.mean():.1f} ({ages.std():.1f})" if len(ages) > 1 else NONE,
                f"{100 * (sexes == 'F').mean():.0f} %" if len(sexes) else NONE,
                " / ".join(map(str, sides)),
                int(((mine["split"] == "test") & (mine["label"] == 1)).sum()),
            ]
        )
    if len(rows) > 1:
        total = ["all", *(sum(row[i] for row in rows) for i in range(1, 9)), NONE, NONE]
        total.append(" / ".join(str(int((splits["split"] == side).sum())) for side in ("train", "validation", "test")))
        total.append(sum(row[-1] for row in rows))
        rows.append([(value,) for value in total])
    return _table(header, rows)


def _quality_words(study: Mapping) -> str:
    settings = study["quality"]
    limits = [
        " and ".join(f"{'at least' if side == 'min' else 'at most'} {value:g}" for side, value in limit.items())
        + f" for {METRICS[name].title}"
        for name, limit in settings["limits"].items()
    ]
    return (
        f"A scan is flagged where it stands out from its own cohort in a metric's bad direction (robust z over "
        f"{settings['outlier_z']:g})"
        + (f", does not keep a limit ({'; '.join(limits)})," if limits else "")
        + " or has no value of a metric that most scans have"
        + f". {drop_words(settings['drop'])} The pages show every scan with its picture and "
        "all metrics. They hold subject ids, so "
        + (
            "this report, which contains them, must stay with the data."
            if settings["in_report"]
            else "they are no part of this report, but files beside it (results/quality): the links work where the results lie."
        )
    )


def _quality_table(quality: Mapping[str, pd.DataFrame], excluded: Mapping[str, pd.DataFrame]) -> str:
    header = ["cohort", "page", "flagged for", "scans", "failed", "flagged", "dropped by threshold", "excluded by list"]
    rows = []
    for cohort, table in quality.items():
        failed = table["status"] != "ok"
        told = table.loc[table["flagged"] == 1, "reason"].str.split("; ").explode().str.split(" ").str[0].value_counts()
        metrics = "; ".join(f"{METRICS[name].title} ({count})" for name, count in told.items()) or NONE
        page = _Html(f'<a href="quality/{escape(cohort)}.html" target="_blank">look</a>')
        dropped = int((~failed & (table["kept"] == 0)).sum())
        listed = int((excluded[cohort]["reason"] == ON_EXCLUDE_LIST).sum())
        counts = [len(table), int(failed.sum()), int(table["flagged"].sum()), dropped, listed]
        rows.append([cohort, page, metrics, *counts])
    return _table(header, rows, left=3, wrap=True)


def _passed_over_words(passed_over: Mapping[str, pd.DataFrame]) -> str:
    """How many T1w images were not taken though their session has one, or has none that can be; empty without any."""
    counted = []
    for cohort, table in passed_over.items():
        reasons = [f"{reason}: {count}" for reason, count in table["reason"].value_counts().items()]
        if reasons:
            counted.append(f"{cohort} {len(table)} ({'; '.join(reasons)})")
    if not counted:
        return ""
    return f" Not counted as scans are T1w images that do not stand for their session: {', '.join(counted)}."


def _interval(row: Mapping | None) -> str:
    if row is None or pd.isna(row["value"]):
        return NONE
    return f"{row['value']:.2f}" + _limits(row, ".2f")


def _limits(row: Mapping, digits: str) -> str:
    """An interval in brackets, a dash for a limit that is missing, since it is not finite; empty without an interval."""
    limits = [NONE if pd.isna(row[name]) else format(row[name], digits) for name in ("low", "high")]
    return "" if limits == [NONE, NONE] else f" [{', '.join(limits)}]"


def _rows_of(performance: pd.DataFrame, metric: str) -> dict:
    return _by_cell(performance[performance["metric"] == metric])


def _aucs_of(performance: pd.DataFrame) -> dict:
    return _by_cell(reported_auc(performance))


def _by_cell(table: pd.DataFrame) -> dict:
    return {(r["head"], r["tuning"], r["aggregation"], r["client"]): r for r in table.to_dict("records")}


def _interval_words(performance: pd.DataFrame, cohorts: Sequence[str]) -> str:
    """Whose AUCs have another interval than the bootstrap's."""
    rows = reported_auc(performance)
    few = set(rows.loc[(rows["interval"] == DELONG) & rows["low"].notna(), "client"])
    names = [name for name in (*cohorts, "pooled") if name in few]
    if not names:
        return ""
    return (
        f"AUCs of {', '.join(names)} have DeLong's interval instead (logit scale, Student's t; Newcombe's where the "
        f"classes are separated completely), since with fewer than {FEW} test subjects of a class the bootstrap's is too narrow."
    )


def _cells_of(performance: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys(zip(performance["head"], performance["tuning"], performance["aggregation"])))


def _main_result(study: Mapping, performance: pd.DataFrame) -> str:
    aucs = _aucs_of(performance)
    pooled = {cell: aucs.get((*cell, "pooled")) for cell in _cells_of(performance)}
    known = {cell: row for cell, row in pooled.items() if row is not None and not pd.isna(row["value"])}
    site = known.pop(SITE_ONLY, None)
    federated = {cell: row for cell, row in known.items() if cell[2] not in REFERENCES}
    sentences = []
    if federated:
        cell = max(federated, key=lambda key: federated[key]["value"])
        row = federated[cell]
        sentences.append(
            f"The federated cell with the highest pooled test AUC is **{' / '.join(cell)}**: {_interval(row)}, on "
            f"{row['subjects']} test subjects ({row['positives']} {study['class_names'][1]}). It is the best of "
            f"{len(federated)} cells, picked after looking at the test subjects, so its value is optimistic."
        )
        for reference in REFERENCES:
            other = known.get((cell[0], cell[1], reference))
            if other is not None:
                sentences.append(f"With the same head, {reference} training reaches {_interval(other)}.")
        chance = [row for row in federated.values() if not pd.isna(row["low"]) and row["low"] <= 0.5]
        if chance:
            sentences.append(
                f"The interval of {len(chance)} of the {len(federated)} federated cells includes 0.5, that is chance."
            )
    else:
        sentences.append("No federated cell has a pooled AUC.")
    if site is not None:
        sentences.append(
            f"A classifier that knows only which cohort a subject comes from reaches {_interval(site)}, because the "
            "cohorts differ in their share of cases; what a model has learnt about brains is what it has beyond that."
        )
    return " ".join(sentences)


def _result_table(performance: pd.DataFrame) -> str:
    aucs, balanced = _aucs_of(performance), _rows_of(performance, "balanced_accuracy")
    header = ["head", "tuning", "aggregation", "seeds", "pooled AUC", "SD over seeds", "pooled balanced accuracy"]
    rows = []
    for cell in _cells_of(performance):
        pooled = aucs.get((*cell, "pooled"))
        spread = NONE if pooled is None or pd.isna(pooled["seed_sd"]) else f"{pooled['seed_sd']:.3f}"
        seeds = NONE if pooled is None or cell == SITE_ONLY else pooled["seeds"]
        rows.append([*_shown(cell), seeds, (_interval(pooled),), spread, _interval(balanced.get((*cell, "pooled")))])
    return _table(header, rows, left=3)


def _client_table(performance: pd.DataFrame, cohorts: list[str]) -> str:
    aucs = _aucs_of(performance)
    rows = [
        [*_shown(cell), *(_interval(aucs.get((*cell, cohort))) for cohort in cohorts)]
        for cell in _cells_of(performance)
        if cell != SITE_ONLY  # one score for a whole cohort ranks nobody within it
    ]
    return _table(["head", "tuning", "aggregation", *cohorts], rows, left=3)


def _shown(cell: tuple[str, str, str]) -> list[str]:
    return ["site only", "", ""] if cell == SITE_ONLY else list(cell)


def _details(summary: str, html: str) -> str:
    """What is shown when the reader opens it."""
    return (
        f'<details style="margin:8px 0"><summary style="cursor:pointer">{escape(summary)}</summary>\n{html}\n</details>'
    )


def _openable(summary: str, header: Sequence[str], rows: Sequence[Sequence], file: str, *, left: int) -> str:
    """A table, behind a line to open it where it is long; cut off where it is very long."""
    if not rows:
        return ""
    table = _table(header, rows[:MOST], left=left)
    if len(rows) > MOST:
        table += f"\n<p>The first {MOST} of {len(rows):,} rows; all are in {escape(file)}.</p>"
    return (
        f"<p>{escape(summary)}</p>\n{table}"
        if len(rows) <= ROOM
        else _details(f"{summary} ({len(rows):,} rows)", table)
    )


def _p(value: float) -> str:
    if pd.isna(value):
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _difference(row: Mapping) -> str:
    if pd.isna(row["difference"]):
        return NONE
    return f"{row['difference']:+.2f}" + _limits(row, "+.2f")


def _comparison_words(study: Mapping, comparisons: pd.DataFrame) -> str:
    if comparisons.empty:
        return "There is one cell only, and nothing to compare it with."
    options = study["evaluation"]["comparisons"]
    tested = comparisons[comparisons["p_holm"].notna()]
    below = int((tested["p_holm"] < ALPHA).sum())
    family = {"table": "all of them", "client": "those of one client (or the pool)"}[options["family"]]
    against = (
        f"Every cell is compared with **{' / '.join(options['reference'])}**"
        if options["reference"]
        else "Every pair of cells is compared"
    )
    rough = tested["note"].fillna("").str.contains(ROUGH)
    found = int((rough & (tested["p_holm"] < ALPHA)).sum())
    return (
        f"{against}, the classifier that knows the site alone among them, on the same test subjects, for each client and "
        f"pooled: {len(tested):,} tests. The interval is of the difference itself (paired bootstrap over subjects); *p* is "
        f"DeLong's, *Holm* the same corrected over {family}: {below} of {len(tested):,} stay below {ALPHA}. "
        + (
            f"On fewer than ten cases or controls (marked \\*) are {int(rough.sum()):,} of the tests"
            + (f", {found:,} of those below {ALPHA} among them" if below else "")
            + ": their p-values and limits are rough, and no evidence by themselves. "
            if rough.any()
            else ""
        )
        + "*Seeds* is the standard error that comes from the random starts of the training, which neither interval nor p "
        "holds: a difference of less than about twice as much may vanish with other seeds."
    )


def _comparison_tables(study: Mapping, comparisons: pd.DataFrame) -> str:
    reference = study["evaluation"]["comparisons"]["reference"]
    header = ["cell a", "cell b", "client", "AUC a - b", "p", "Holm", "seeds", "subjects", "cases"]
    rows = {"against": [], "pairs": [], "clients": []}
    baseline = "/".join(SITE_ONLY)
    for row in comparisons.to_dict("records"):
        a, b = (
            "site only" if name == baseline else name.replace("/", " / ") for name in (row["cell_a"], row["cell_b"])
        )
        few = "*" if not pd.isna(row["note"]) and ROUGH in row["note"] else ""
        shown = [a, b, row["client"], (_difference(row),), _p(row["p_delong"]) + few, _p(row["p_holm"]) + few]
        shown += [NONE if pd.isna(row["seed_se"]) else f"{row['seed_se']:.3f}", row["subjects"], row["positives"]]
        first = reference or baseline in (row["cell_a"], row["cell_b"])
        kind = "clients" if row["client"] != "pooled" else "against" if first else "pairs"
        rows[kind].append(shown)
    titles = {
        "against": "All test subjects, against " + (" / ".join(reference) if reference else "the site alone"),
        "pairs": "All test subjects, cell against cell",
        "clients": "By client",
    }
    file = "results/evaluation/comparisons.tsv"
    # What the reader came for stands open, whatever its length.
    parts = [f"<p>{escape(titles['against'])}:</p>", _table(header, rows["against"], left=3)] if rows["against"] else []
    parts += [_openable(titles[kind], header, rows[kind], file, left=3) for kind in ("pairs", "clients")]
    return "\n".join(filter(None, parts)) or "<p>No comparison.</p>"


def _calibration_table(performance: pd.DataFrame, calibration: pd.DataFrame) -> str:
    slopes, intercepts = (_rows_of(performance, f"calibration_{name}") for name in ("slope", "intercept"))
    briers = _rows_of(performance, "brier")
    curves = calibration[(calibration["client"] == "pooled") & calibration["ece"].notna()]
    curves = curves.drop_duplicates(["head", "tuning", "aggregation", "seed"])
    errors = curves.groupby(["head", "tuning", "aggregation"])[["ece", "ece_by_chance_95"]].mean()
    rows, notes = [], []
    for cell in _cells_of(performance):
        if cell == SITE_ONLY:
            continue
        slope = slopes.get((*cell, "pooled"))
        error = NONE
        if cell in errors.index:
            error = f"{errors.loc[cell, 'ece']:.2f} ({errors.loc[cell, 'ece_by_chance_95']:.2f})"
        brier = briers.get((*cell, "pooled"))
        rows.append([*cell, _interval(slope), _interval(intercepts.get((*cell, "pooled"))), error, _interval(brier)])
        if slope is not None and not pd.isna(slope["note"]):
            notes.append(slope["note"])
    header = ["head", "tuning", "aggregation", "slope", "intercept", "calibration error", "Brier score"]
    few = curves["note"].dropna().str.contains("for the eye alone").any()
    notes = list(dict.fromkeys(notes)) + (
        ["fewer than five subjects in a bin: curves are for the eye alone"] if few else []
    )
    return _table(header, rows, left=3) + ("\n" + _list(notes) if notes else "")


def _threshold_tables(thresholds: pd.DataFrame) -> str:
    header = ["head", "tuning", "aggregation", "client", "sensitivity at 0.5", "specificity at 0.5", "threshold"]
    header += ["sensitivity", "specificity", "balanced accuracy"]
    found: dict[tuple, dict] = {}
    for row in thresholds.to_dict("records"):
        cell = (row["head"], row["tuning"], row["aggregation"], row["client"])
        found.setdefault(cell, {})[row["rule"], row["metric"]] = row
    rows = {True: [], False: []}
    for cell, of in found.items():
        chosen = of.get(("youden", "sensitivity"))
        value = NONE if chosen is None or pd.isna(chosen["threshold"]) else f"{chosen['threshold']:.2f}"
        if chosen is not None and not pd.isna(chosen["threshold_sd"]):
            value += f" (SD {chosen['threshold_sd']:.2f})"
        fixed = [_interval(of.get(("fixed", name))) for name in ("sensitivity", "specificity")]
        best = [_interval(of.get(("youden", name))) for name in ("sensitivity", "specificity", "balanced_accuracy")]
        rows[cell[3] == "pooled"].append([*cell, *fixed, value, *best])
    stands = thresholds[thresholds["note"].fillna("").str.contains("stands")]
    notes = []
    for client, own in stands.groupby("client", sort=False):
        count = len(own[["head", "tuning", "aggregation"]].drop_duplicates())
        reason = own["note"].str.split("; ").str[-1].iloc[0]
        notes.append(f"{client}: {reason}, for {count} {'cell' if count == 1 else 'cells'} (in one seed or more)")
    parts = [_table(header, rows[True], left=4)]
    parts.append(_openable("By client", header, rows[False], "results/evaluation/thresholds.tsv", left=4))
    if notes:
        parts.append(_details(f"Where no threshold could be chosen ({len(notes)})", _list(notes)))
    return "\n".join(filter(None, parts))


def _subgroup_cells(study: Mapping, subgroups: pd.DataFrame, drawn: str) -> list[tuple[str, str, str]]:
    """The cells whose groups are shown: the reference first, then those of the aggregation that figures show."""
    cells = _cells_of(subgroups)
    reference = tuple(study["evaluation"]["comparisons"]["reference"] or ())
    return [cell for cell in cells if cell == reference] + [c for c in cells if c[2] == drawn and c != reference]


def _subgroup_words(study: Mapping, subgroups: pd.DataFrame, drawn: str) -> str:
    cells = _subgroup_cells(study, subgroups, drawn)
    if not cells:
        return "The study asks for no subgroups."
    few = subgroups["note"].fillna("").str.contains("a description, no evidence")
    groups = subgroups[few & (subgroups["client"] == "pooled")][["attribute", "group"]].drop_duplicates()
    every = (
        subgroups[subgroups["client"] == "pooled"].dropna(subset=["group"])[["attribute", "group"]].drop_duplicates()
    )
    warning = (
        f"**{len(groups)} of the {len(every)} groups have fewer than ten cases or ten controls: their numbers describe "
        "this test set and are no evidence of a difference.** "
        if len(groups)
        else ""
    )
    return (
        f"{warning}All test subjects together by sex, age and site, at a score of 0.5. The differences of the true and the "
        "false positive rate are against the group with the most subjects (*reference*); both are 0 where errors are alike. No "
        "correction for many groups is made, and a difference may be one of disease severity: a finding here is a question "
        "for other data. All cells and clients are in results/evaluation/subgroups.tsv."
    )


def _subgroup_tables(study: Mapping, subgroups: pd.DataFrame, drawn: str) -> str:
    header = ["", "group", "cases", "controls", "warning", "AUC", "sensitivity", "specificity"]
    header += ["TPR difference", "FPR difference"]
    parts = []
    for place, cell in enumerate(_subgroup_cells(study, subgroups, drawn)):
        own = subgroups[(subgroups[["head", "tuning", "aggregation"]] == list(cell)).all(axis=1)]
        own = own[own["client"] == "pooled"].dropna(subset=["group"])
        rows = []
        for (attribute, group), of_group in own.groupby(["attribute", "group"], sort=False):
            of = {row["metric"]: row for row in of_group.to_dict("records")}
            any_row = next(iter(of.values()))
            values = [_interval(of.get(name)) for name in ("auc", "sensitivity", "specificity")]
            against = ["reference" if not any("difference" in name for name in of) else NONE] * 2
            if "tpr_difference" in of:
                against = [_signed(of[name]) for name in ("tpr_difference", "fpr_difference")]
            few = min(any_row["positives"], any_row["negatives"]) < 10
            counts = [any_row["positives"], any_row["negatives"]]
            rows.append([attribute, group, *counts, ("too few",) if few else "", *values, *against])
        title, table = " / ".join(cell), _table(header, rows, left=2)
        parts.append(_details(title, table) if place else f"<p>{escape(title)}:</p>\n{table}")
    return "\n".join(parts) or "<p>None.</p>"


SITE_FEATURES = {
    "mean": "channel means",
    "spread": "channel spreads",
    "quality": "scan quality",
    "age and sex": "age and sex alone",
}


def _site_words(site_effects: Mapping[str, pd.DataFrame], site_variance: Mapping[str, pd.DataFrame]) -> str:
    if not site_effects:
        return "No cell trains on the embeddings of a frozen encoder, so what these say about their cohort was not measured."
    sentences = []
    for encoder, told in site_effects.items():
        found = _told(told)
        every, controls, people = (
            found.get((features, "none", "all", label))
            for features, label in (("mean", "all"), ("mean", "controls"), ("age and sex", "all"))
        )
        if every is None:
            sentences.append(
                f"Of {encoder}: fewer than two cohorts have two persons each, so there is nothing to tell apart."
            )
            continue
        sentences.append(
            f"From the channel means of an embedding ({encoder}) a logistic regression tells the cohort with a balanced accuracy of "
            f"**{_interval(every)}**, where {every['chance']:.2f} is chance; among controls alone with {_interval(controls)}"
            + (f", from age and sex alone with {_interval(people)}. " if people is not None else ". ")
            + _variance_words(site_variance[encoder])
        )
    return (
        " ".join(sentences)
        + " A head can use whatever tells cohorts apart wherever they differ in their share of cases. Not all "
        "of it is the scanner: age, sex, recruitment and, among all scans, the disease tell cohorts apart, too. For this "
        "table all embeddings were seen in one place; hospitals that share no embedding cannot compute it."
    )


def _variance_words(variance: pd.DataFrame) -> str:
    mine = variance[
        (variance[["features", "harmonization", "side", "label"]] == ["mean", "none", "all", "all"]).all(axis=1)
    ]
    shares = mine["omega_squared"].dropna()
    if shares.empty:
        return ""
    return (
        f"In half of the channels {max(0.0, shares.median()):.0%} or more of the variance of the means lies between cohorts "
        "(omega squared, 0 by chance)."
    )


def _told(told: pd.DataFrame) -> dict:
    rows = told[(told["metric"] == "balanced_accuracy") & told["value"].notna()]
    return {(r["features"], r["harmonization"], r["side"], r["label"]): r for r in rows.to_dict("records")}


def _site_tables(site_effects: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for encoder, told in site_effects.items():
        cohorts = list(told.loc[told["metric"] == "auc", "cohort"].drop_duplicates())
        aucs = told[told["metric"] == "auc"].to_dict("records")
        aucs = {(r["features"], r["harmonization"], r["side"], r["label"], r["cohort"]): r for r in aucs}
        header = ["told from", "harmonization", "scans", "of", "persons", "balanced accuracy", "chance"]
        header += [f"AUC of {cohort}" for cohort in cohorts]
        rows = []
        for key, row in _told(told).items():
            features, harmonization, side, label = key
            shown = [SITE_FEATURES.get(features, features), harmonization]
            shown += [{"held out": "validation and test"}.get(side, side), {"all": "everybody"}.get(label, label)]
            shown += [row["subjects"], (_interval(row),), f"{row['chance']:.2f}"]
            rows.append(shown + [_interval(aucs.get((*key, cohort))) for cohort in cohorts])
        remarks = told.dropna(subset=["note"]).drop_duplicates(["features", "side", "label", "note"])
        notes = [
            f"{SITE_FEATURES.get(row.features, row.features)} ({row.side}, {row.label}): {row.note}".replace(
                ", all)", ")"
            )
            for row in remarks.itertuples()
        ]
        title = f"<p>{escape(encoder)}:</p>\n" if len(site_effects) > 1 else ""
        parts.append(title + _table(header, rows, left=4) + ("\n" + _list(notes) if notes else ""))
    return "\n".join(parts) or "<span></span>"


def _harmonization_words(harmonization: Mapping[str, pd.DataFrame]) -> str:
    if not harmonization:
        return "No tuning of this study harmonizes the embeddings."
    return (
        "Before the training each client's channel means were brought to those of all clients by ComBat, fitted on the first scan of each "
        "training subject, without labels. Location: median over channels of the client's distance, in pooled standard deviations; "
        "scale: median over channels of its standard deviation. Bytes are sent once per study, on top of those under *Cost*: sums "
        "over the client's subjects up, pooled estimates down. Where cohorts differ in their share of cases, "
        "part of that difference is taken out with the site, too."
    )


def _harmonization_table(study: Mapping, harmonization: Mapping[str, pd.DataFrame]) -> str:
    header = ["tuning", "covariates kept", "client", "training subjects", "location", "scale", "bytes up", "bytes down"]
    rows = []
    for tuning, table in harmonization.items():
        covariates = ", ".join(study["tuning"][tuning].get("covariates", ())) or "none"
        for row in table.to_dict("records"):
            numbers = [row["subjects"], f"{row['location']:.2f}", f"{row['scale']:.2f}"]
            rows.append(
                [tuning, covariates, row["client"], *numbers, _bytes(row["bytes_up"]), _bytes(row["bytes_down"])]
            )
    return _table(header, rows, left=3) if rows else "<span></span>"


def _signed(row: Mapping) -> str:
    return _difference(row | {"difference": row["value"]})


def _bytes(count: float) -> str:
    if not count:
        return "0"
    power = min(int(math.log(count, 1000)), 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _cost_table(efficiency: pd.DataFrame, summaries: Sequence[Mapping]) -> str:
    """Two tables: what a cell is, the same on every machine, and what it took on this one."""
    best: dict[tuple, set[int]] = {}
    for run in summaries:
        best.setdefault(tuple(run["cell"].values()), set()).update(run["best_round"].values())
    axes = ["head", "tuning", "aggregation"]
    header = [*axes, "trained parameters", "of all", "bytes down", "bytes up", "GMACs", "a step", "published"]
    taken = [*axes, "peak memory", "s a round", "s a scan", "s a run", "best round"]
    rows, machine = [], []
    for row in efficiency.to_dict("records"):
        cell = (row["head"], row["tuning"], row["aggregation"])
        numbers = sorted(best[cell])
        rows.append(
            [
                *cell,
                f"{row['trained']:,}",
                f"{100 * row['trained_share']:.2g} %",
                _bytes(row["bytes_down"]),
                _bytes(row["bytes_up"]),
                f"{row['gmacs']:.1f}",
                _small(row["gmacs_step"]),
                NONE if pd.isna(row["gmacs_reference"]) else f"{row['gmacs_reference']:.1f}",
            ]
        )
        machine.append(
            [
                *cell,
                _bytes(row["peak_memory"]),
                _small(row["seconds_round"]),
                _small(row["seconds_scan"]),
                f"{row['seconds_run']:.1f}",
                f"{numbers[0]}–{numbers[-1]}" if len(numbers) > 1 else numbers[0],
            ]
        )
    return _table(header, rows, left=3) + "\n" + _table(taken, machine, left=3)


def _small(value: float) -> str:
    """Three digits, without an exponent."""
    return (
        f"{value:.1f}"
        if value >= 10
        else f"{float(f'{value:.2g}'):g}"
        if value >= 1e-4
        else "< 0.0001"
        if value
        else "0"
    )


def _cost_words(efficiency: pd.DataFrame) -> str:
    full = efficiency["full_bytes"].max()
    devices = ", ".join(dict.fromkeys(efficiency["device"]))
    return (
        "Bytes are counted from what was really sent, per round and client (the last model goes down once more, to be "
        "validated); local and centralized training send nothing. Training all of encoder and head would send up to "
        f"{_bytes(full)} each way. *GMACs* are 10\\ :sup:`9` multiply-accumulates of a forward pass of one scan, counted from the "
        "operations that run: from the volume on; *a step*, from what is kept of the scan, which is what training computes; "
        "*published*, from the volume on with the encoder's own implementation, whose results ours equals. Memory is the peak "
        "of a run. Seconds are of the clients' training and validation, one client after the other, per round, per scan and "
        f"epoch, and of a whole run with everything around it ({devices})."
    )


def _warnings(study, phantoms, excluded, volumes, duplicates, performance, summaries) -> list[str]:
    warnings = []
    for cohort, table in volumes.items():
        failed = table[table["status"] != "ok"]
        # What follows the kind of an unforeseen error may hold a path, and a path a subject's id.
        reasons = failed["reason"].str.replace(r"^(unforeseen: \w+):.*", r"\1; see the table of the shard", regex=True)
        for reason, count in reasons.value_counts().items():
            warnings.append(f"{cohort}: {count} {'scan' if count == 1 else 'scans'} failed: {reason}")
    for cohort, table in excluded.items():
        for reason, count in table["reason"].value_counts().items():
            warnings.append(f"{cohort}: {count} left out: {reason}")
    warnings += _duplicate_warnings(duplicates)
    notes = reported_auc(performance).dropna(subset=["note"])
    notes = notes[notes["head"] != SITE_ONLY[0]].drop_duplicates(["client", "note"])
    warnings += [f"AUC of {row.client}: {row.note}" for row in notes.itertuples()]
    for text in dict.fromkeys(text for summary in summaries for text in summary["warnings"]):
        warnings.append(text)
    devices = {summary["device"] for summary in summaries}
    if devices == {"cpu"}:
        warnings.append("All runs were computed on the CPU.")
    return warnings


def _duplicate_warnings(duplicates: pd.DataFrame) -> list[str]:
    """By the cohorts that share images: whose they are, and where diagnoses contradict each other."""
    warnings = []
    images = duplicates.groupby("image")
    shared = images["cohort"].agg(lambda cohorts: " and ".join(sorted(set(cohorts))))
    subjects = (duplicates["cohort"] + "/" + duplicates["subject"]).groupby(duplicates["image"]).nunique()
    for cohorts, numbers in shared.groupby(shared).groups.items():
        count, several = len(numbers), int((subjects[numbers] > 1).sum())
        torn = int((images["label"].nunique()[numbers] > 1).sum())
        warnings.append(
            f"{cohorts}: {count} {'image occurs' if count == 1 else 'images occur'} more than once, {several} of them under "
            "several subject ids, which count as one person and stand on one side of the split; see "
            "results/cohorts/duplicates.tsv"
            + (f". The diagnoses of {torn} contradict each other: one of them is wrong" if torn else "")
        )
    return warnings


def _method_table(study: Mapping, summaries: Sequence[Mapping]) -> str:
    facts = {
        "encoder": f"{study['encoder']['name']}, weights: "
        + ", ".join(sorted({str(summary["weights"]) for summary in summaries})),
        "preprocessing": _listed(_preprocessing(study["preprocessing"])),
        "quality": _listed(study["quality"]),
        "splits": _listed(study["splits"]),
        "seed of the study": study["seed"],
        "interval": f"{study['evaluation']['method']}, {study['evaluation']['resamples']:,} resamples of subjects",
    }
    for axis in ("head", "tuning", "aggregation"):
        for name, options in study[axis].items():
            facts[f"options of {name}"] = _listed(options)
    training = dict(study["training"])
    for section in ("heads", "tunings"):
        for name, options in training.pop(section).items():
            facts[f"training of {name}"] = _listed(options)
    facts["training"] = _listed(training)
    if summaries:
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in summaries[0]["versions"].items())
    return _table(["", ""], list(facts.items()), left=2, wrap=True)


STANDARD_SCALES = {
    "client": "each cohort's own standard scale from its own training scans; nothing of it left the cohort",
    "shared": "one standard scale, the mean of the cohorts' by training scans; of each cohort eleven numbers and two counts travelled, once",
}


def _preprocessing(options: Mapping) -> dict:
    told = {key: value for key, value in options.items() if key != "nyul"}
    if told.get("intensity") == "nyul":
        told["intensity"] = f"nyul ({STANDARD_SCALES[options['nyul']['scale']]})"
    return told


def _listed(options: Mapping) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
