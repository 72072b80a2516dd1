"""What the page about several runs shows: a sweep's cells and trials, the reported results, the paper's tables they have a place in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.costs import bytes_figures, load_costs
from ray_ltdd.results.fair_runs import fair_scores
from ray_ltdd.results.figures.accuracy_curves import accuracy_over_images, accuracy_over_imbalance
from ray_ltdd.results.report.facts import minute
from ray_ltdd.results.report.fair import missing_sentences, with_scores
from ray_ltdd.results.summary import MOST_CLASSES_WITHOUT_TOP5
from ray_ltdd.results.table_formats import letter
from ray_ltdd.results.tables import BENCHMARK_NAMES, NUMBERS, PaperTable, own_results, paper_table
from ray_ltdd.results.trials import final_labels, sweep_comparison, sweep_figures, sweep_summary, trials_of

_ORDER = {"benchmark": True, "imbalance_factor": True, "images_per_class": True, "network": True, "mean": False}
"""Columns that the results are sorted by, and whether they ascend."""


@dataclass(frozen=True)
class Several:
    """Attributes:
    lead: how much there is.
    problems: a sentence for each part that cannot be shown.
    cells: of `sweep_summary`, as records; empty where there is no sweep.
    comparison: of `sweep_comparison`, as records.
    results: the reported results, as records of `own_results` with `letters` of their footnotes, `top5` (NaN where it says little) and fair scores.
    footnotes: letter and sentence.
    fair_sentences: which fair scores are empty, and why.
    tables: the paper's tables in which a number of ours stands.
    figures: by title.
    runs: name, fingerprint, when, where, and seconds of computing of each.
    """

    lead: str
    problems: tuple[str, ...]
    cells: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    results: list[dict[str, Any]]
    footnotes: list[tuple[str, str]]
    fair_sentences: list[str]
    tables: list[PaperTable]
    figures: dict[str, Figure]
    runs: list[dict[str, Any]]

    @property
    def has_top5(self) -> bool:
        """Whether there is a top-5 accuracy to show."""
        return any(record["top5"] == record["top5"] for record in self.results)


def several(rows: pd.DataFrame, folder: Path) -> Several:
    """Gather what is known of all runs in a folder.

    Args:
        rows: of `load_results(folder, STATES)`.
        folder: that holds the runs.
    """
    trials, n_sweeps = trials_of(rows), rows["sweep"].nunique()
    rows = rows[rows["state"] == "complete"]
    comparison = sweep_comparison(rows)
    # trials have their own tables; everything else on the page is about what was tested on the test part
    rows = rows[rows["role"] != "trial"]
    problems: list[str] = []
    labels = final_labels(rows)
    scores = fair_scores(rows[rows["part"] == "test"])
    try:
        ours = with_scores(_with_top5(own_results(rows, labels), rows), scores).sort_values(list(_ORDER), ascending=list(_ORDER.values()))
    except InputError as error:
        problems.append(f"The reported results are not shown: {error}")
        ours = pd.DataFrame()
    cells = sweep_summary(trials)
    sentences = list(dict.fromkeys(sentence for marks in ours.get("marks", []) for sentence in marks))
    results = [
        {
            **{str(name): own for name, own in record.items()},
            "benchmark_name": BENCHMARK_NAMES.get(str(record["benchmark"]), str(record["benchmark"])),
            "letters": ",".join(letter(sentences.index(sentence)) for sentence in record["marks"]),
        }
        for record in ours.to_dict("records")
    ]
    return Several(
        lead=_lead(rows, cells, n_sweeps),
        problems=tuple(problems),
        cells=[{str(name): own for name, own in record.items()} for record in cells.to_dict("records")],
        comparison=[{str(name): own for name, own in record.items()} for record in comparison.to_dict("records")],
        results=results,
        footnotes=[(letter(i), sentence) for i, sentence in enumerate(sentences)],
        fair_sentences=missing_sentences(scores, dict(zip(ours["recipe"], ours["label"], strict=True))) if len(ours) else [],
        tables=_tables(rows, labels) if len(ours) else [],
        figures={**sweep_figures(trials), **_curves(ours), **bytes_figures(rows)},
        runs=_runs(rows, folder),
    )


def _lead(rows: pd.DataFrame, cells: pd.DataFrame, n_sweeps: int) -> str:
    n_runs, names = len(rows.drop_duplicates(["folder", "run"])), sorted({BENCHMARK_NAMES.get(name, name) for name in rows["benchmark"]})
    text = f"{n_runs} run{'' if n_runs == 1 else 's'} on {', '.join(names)}, {len(rows):,} tested networks"
    if not n_runs:
        text = "No final run yet" if len(cells) else "No network has been tested to its end yet"
    if len(cells):
        sweeps, n_trials = "a sweep" if n_sweeps == 1 else f"{n_sweeps} sweeps", int(cells["trials"].sum())
        text += f"; {len(cells)} cell{'' if len(cells) == 1 else 's'} of {sweeps} with {n_trials:,} trial{'' if n_trials == 1 else 's'}"
    return text + "."


def _with_top5(ours: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Top-5 as a share beside top-1, where there are enough classes for it."""
    told = rows[rows["count_per_class"].map(len) > MOST_CLASSES_WITHOUT_TOP5].drop_duplicates(["recipe", "method", "artifact"])
    return ours.merge(told.groupby(["recipe", "method"])["top5"].mean().reset_index(), how="left", on=["recipe", "method"])


def _tables(rows: pd.DataFrame, labels: Mapping[str, str]) -> list[PaperTable]:
    tables = []
    for number in NUMBERS:
        try:
            table = paper_table(number, rows, labels)
        except InputError:
            # two recipes for one cell: the list of results shows both
            continue
        if any(row.kind == "ours" for row in table.rows):
            tables.append(table)
    return tables


def _curves(ours: pd.DataFrame) -> dict[str, Figure]:
    """Accuracy over the imbalance factor and over images per class, where there are at least two of them."""
    figures = {}
    for (benchmark, network), own in ours.groupby(["benchmark", "network"], sort=False) if len(ours) else ():
        title = f"{BENCHMARK_NAMES.get(str(benchmark), str(benchmark))}, {network}"
        if own["imbalance_factor"].nunique() > 1:
            figures[f"{title}: accuracy over the imbalance factor"] = accuracy_over_imbalance(own, str(benchmark), str(network))
        if own["images_per_class"].nunique() > 1:
            figures[f"{title}: accuracy over images per class"] = accuracy_over_images(own, str(benchmark), str(network))
    return figures


def _runs(rows: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    seconds = load_costs(folder).groupby("run")["compute_seconds"].sum().to_dict()
    last = rows.sort_values("created", kind="stable").drop_duplicates(["folder", "run"], keep="last").sort_values(["folder", "run"])
    return [
        {
            "name": row["run"],
            "fingerprint": row["fingerprint"],
            "created": minute(row["created"]),
            "device": row["device"],
            "seconds": seconds.get(row["run"]),
        }
        for row in last.to_dict("records")
    ]
