"""How well the cohort can be told from what the models see, and what a harmonization did about it."""

from collections.abc import Mapping

import pandas as pd

from fedbrain.report.figures import figure
from fedbrain.report.html import Cell, Column, Html, columns, folded, items, join, p, strong, table
from fedbrain.report.material import Material
from fedbrain.report.numbers import fixed, interval, size, words

FEATURES = {
    "mean": "channel means",
    "spread": "channel spreads",
    "quality": "scan quality",
    "age and sex": "age and sex alone",
}


def site_effects(material: Material) -> Html:
    """By frozen encoder; what was harmonized, by tuning."""
    if not material.site_effects:
        return p(
            "No cell trains on the embeddings of a frozen encoder, so what these say about their cohort was not measured."
        )
    parts = [_encoder(material, encoder, told) for encoder, told in material.site_effects.items()]
    return join(
        *parts,
        p(
            "A head can use whatever tells cohorts apart wherever they differ in their share of cases. Not all of it is the scanner: age, "
            "sex, recruitment and, among all scans, the disease tell cohorts apart, too. For this table all embeddings were seen in one "
            "place; hospitals that share no embedding cannot compute it."
        ),
        _harmonization(material),
    )


def _encoder(material: Material, encoder: str, told: pd.DataFrame) -> Html:
    found = _told(told)
    every, controls, people = (
        found.get((features, "none", "all", label))
        for features, label in (("mean", "all"), ("mean", "controls"), ("age and sex", "all"))
    )
    if every is None:
        sentence = p(f"Of {encoder}: fewer than two cohorts have two persons each, so there is nothing to tell apart.")
    else:
        sentence = p(
            f"From the channel means of an embedding ({encoder}) a logistic regression tells the cohort with a balanced accuracy of ",
            strong(words(every)),
            f", where {every['chance']:.2f} is chance; among controls alone with {words(controls)}",
            f", from age and sex alone with {words(people)}. " if people is not None else ". ",
            _variance_words(material.site_variance[encoder]),
        )
    return join(
        sentence,
        figure(material, f"site_effects-{encoder}"),
        folded(f"The table ({encoder})", _table(encoder, told, found)),
    )


def _variance_words(variance: pd.DataFrame) -> str:
    chosen = (variance[["features", "harmonization", "side", "label"]] == ["mean", "none", "all", "all"]).all(axis=1)
    shares = variance[chosen]["omega_squared"].dropna()
    if shares.empty:
        return ""
    return (
        f"In half of the channels {max(0.0, shares.median()):.0%} or more of the variance of the means lies between cohorts "
        "(omega squared, 0 by chance)."
    )


def _told(told: pd.DataFrame) -> dict[tuple, Mapping]:
    rows = told[(told["metric"] == "balanced_accuracy") & told["value"].notna()]
    return {(r["features"], r["harmonization"], r["side"], r["label"]): r for r in rows.to_dict("records")}


def _table(encoder: str, told: pd.DataFrame, found: dict[tuple, Mapping]) -> Html:
    cohorts = list(told.loc[told["metric"] == "auc", "cohort"].drop_duplicates())
    aucs = told[told["metric"] == "auc"].to_dict("records")
    aucs = {(r["features"], r["harmonization"], r["side"], r["label"], r["cohort"]): r for r in aucs}
    header = columns("told from", "harmonization", "scans", "of", "#persons", "#balanced accuracy|interval", "#chance")
    header += [Column(f"AUC of {cohort}", "interval", True) for cohort in cohorts]
    rows = []
    for key, row in found.items():
        features, harmonization, side, label = key
        shown = [FEATURES.get(features, features), harmonization]
        shown += [{"held out": "validation and test"}.get(side, side), {"all": "everybody"}.get(label, label)]
        shown += [int(row["subjects"]), interval(row, strong=True), fixed(row["chance"])]
        rows.append(shown + [interval(aucs.get((*key, cohort))) for cohort in cohorts])
    remarks = told.dropna(subset=["note"]).drop_duplicates(["features", "side", "label", "note"])
    notes = [
        f"{FEATURES.get(row.features, row.features)} ({row.side}, {row.label}): {row.note}".replace(", all)", ")")
        for row in remarks.itertuples()
    ]
    file = f"results/site_effects/{encoder}/cohort_told.tsv"
    title = f"How well the cohort is told, {encoder}"
    return join(table(f"sites-{encoder}", title, header, rows, file=file), items(notes, kind="note"))


def _harmonization(material: Material) -> Html:
    if not material.harmonization:
        return p("No tuning of this study harmonizes the embeddings.")
    header = columns("tuning", "covariates kept", "client", "#training subjects", "#location|pooled SD", "#scale|ratio")
    header += columns("#up|bytes", "#down|bytes")
    rows = []
    for tuning, of_clients in material.harmonization.items():
        covariates = ", ".join(material.study["tuning"][tuning].get("covariates", ())) or "none"
        for row in of_clients.to_dict("records"):
            numbers: list[Cell | int] = [int(row["subjects"]), fixed(row["location"]), fixed(row["scale"])]
            rows.append([tuning, covariates, row["client"], *numbers, size(row["bytes_up"]), size(row["bytes_down"])])
    return join(
        p(
            "Before the training each client's channel means were brought to those of all clients by ComBat, fitted on the first scan of each "
            "training subject, without labels. Location: median over channels of the client's distance, in pooled standard deviations; "
            "scale: median over channels of its standard deviation. Bytes are sent once per study, on top of those under Cost: sums over "
            "the client's subjects up, pooled estimates down. Where cohorts differ in their share of cases, part of that "
            "difference is taken out with the site, too."
        ),
        table("harmonization-table", "What the harmonization moved and sent", header, rows, heads=3),
    )
