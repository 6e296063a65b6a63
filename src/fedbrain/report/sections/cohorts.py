"""Who was found, who was left out and why, and where the others went."""

from fedbrain.report.flow import SIDES, diagram, failures, flow, outline
from fedbrain.report.html import Cell, Html, columns, folded, heading, join, p, table
from fedbrain.report.material import Material
from fedbrain.report.numbers import share


def cohorts(material: Material) -> Html:
    """Flow diagram, the cohorts' table, reasons."""
    told = flow(material)
    lost = _reason_table(material)
    return join(
        Html('<figure id="flow">\n<div class="wide" tabindex="0" role="region" aria-label="flow diagram">\n'),
        diagram(told, material.classes),
        Html("</div>\n<figcaption>Flow of scans and subjects. In the last row, "),
        f"by cohort: subjects of {material.classes[0]} + {material.classes[1]}.",
        Html("</figcaption>\n</figure>\n"),
        folded("The diagram in words", outline(told, material.classes)),
        _scan_table(material),
        p(
            "Left out: rows of the scan table that the study does not use. Failed: scans that could not be read or did not pass a check. "
            "Dropped: by a threshold of quality." + _passed_over_words(material)
        ),
        _subject_table(material),
        p("A person is on one side of the split only, in all cohorts.", kind="note"),
        heading("Who was left out, and why") if lost else "",
        lost,
    )


def _scan_table(material: Material) -> Html:
    rows = []
    for cohort, scans in material.scans.items():
        quality, excluded = material.quality[cohort], material.excluded[cohort]
        sound, used = int((quality["status"] == "ok").sum()), len(material.used[cohort])
        rows.append([cohort, len(scans) + len(excluded), len(excluded), len(scans) - sound, sound - used, used])
    header = columns("cohort", "#found", "#left out", "#failed", "#dropped", "#used")
    return table("scans-table", "Scans of each cohort", header, rows, total=_total(rows))


def _subject_table(material: Material) -> Html:
    negative, positive = material.classes
    rows = []
    for cohort, scans in material.scans.items():
        mine = material.splits[material.splits["cohort"] == cohort]
        people = scans[scans["scan"].isin(material.used[cohort])].drop_duplicates("subject")
        ages, sexes = people["age"].dropna(), people["sex"].dropna()
        rows.append(
            [
                cohort,
                len(mine),
                int((mine["label"] == 0).sum()),
                int((mine["label"] == 1).sum()),
                *(int((mine["split"] == side).sum()) for side in SIDES),
                int(((mine["split"] == "test") & (mine["label"] == 1)).sum()),
                Cell(f"{ages.mean():.1f} ({ages.std():.1f})", float(ages.mean())) if len(ages) > 1 else None,
                share((sexes == "F").mean()) if len(sexes) else None,
            ]
        )
    header = columns("cohort", "#used", f"#{negative}", f"#{positive}", "#training", "#validation", "#test")
    header += columns(f"#test|{positive}", "#age, years|mean (SD)", "#female|of those known")
    return table("subjects-table", "Subjects of each cohort", header, rows, total=_total(rows))


def _total(rows: list[list]) -> list | None:
    """A row of sums; none for a single cohort. What is no count has no sum."""
    if len(rows) == 1:
        return None
    whole = [all(isinstance(row[place], int) for row in rows) for place in range(len(rows[0]))]
    sums = [
        Cell(f"{sum(row[place] for row in rows):,}", strong=True) if whole[place] else None
        for place in range(len(whole))
    ]
    return [Cell("all", strong=True), *sums[1:]]


def _passed_over_words(material: Material) -> str:
    """How many T1w images were not taken though their session has one, or has none that can be; empty without any."""
    counted = []
    for cohort, images in material.passed_over.items():
        reasons = [f"{reason}: {count}" for reason, count in images["reason"].value_counts().items()]
        if reasons:
            counted.append(f"{cohort} {len(images)} ({'; '.join(reasons)})")
    if not counted:
        return ""
    return f" Not counted as scans are T1w images that do not stand for their session: {', '.join(counted)}."


def _reason_table(material: Material) -> Html:
    rows = []
    for stage, tables in (
        ("left out at intake", {cohort: excluded["reason"] for cohort, excluded in material.excluded.items()}),
        ("failed in preprocessing", {cohort: failures(volumes) for cohort, volumes in material.volumes.items()}),
    ):
        for cohort, reasons in tables.items():
            rows += [[cohort, stage, reason, count] for reason, count in reasons.value_counts().items()]
    return table(
        "reasons-table",
        "Scans that take no part, by reason",
        columns("cohort", "stage", "reason", "#scans"),
        rows,
        file="results/cohorts/{cohort}/excluded.tsv and results/volumes",
    )
