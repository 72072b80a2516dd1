"""The fair scores beside an accuracy, and what is to be run where there are none, as plain data for the templates to lay out."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ray_ltdd.results.fair_runs import NEEDS, SCORES, fair_scores, missing_for, overrides
from ray_ltdd.results.load import load_results
from ray_ltdd.results.report.contents import RunContents, is_run
from ray_ltdd.results.trace import SETTINGS

TITLES = {"label_robust": "label-robust", "augmentation_robust": "augmentation-robust"}


@dataclass(frozen=True)
class RunScores:
    """The scores of one run.

    Attributes:
        scores: (part, network) -> `label_robust` and `augmentation_robust`, of students of the distilled images; NaN where runs are missing.
        sentences: what is missing, one an empty score.
        commands: that make what is missing.
    """

    scores: Mapping[tuple[str, str], Mapping[str, float]]
    sentences: tuple[str, ...]
    commands: tuple[str, ...]


def run_scores(contents: RunContents) -> RunScores:
    """Score a run's distilled images, with the runs that lie in folders beside its own.

    Args:
        contents: of the run.
    """
    own = contents.rows
    recipes = [] if own is None else list(own.loc[own["method"] == "distilled", "recipe"].unique())
    if not recipes:
        return RunScores({}, (), ())
    table = fair_scores(load_results(_runs_beside(contents.folder)), recipes)
    # of several recipes in one place, such as students of two lengths, the page shows a mean that no score belongs to
    table = table[~table.duplicated(["part", "network"], keep=False)]
    scores = {(row["part"], row["network"]): {name: row[name] for name in SCORES} for row in table.to_dict("records")}
    missing = [name for name in NEEDS if any(name in lacking for lacking in table["missing"])]
    sentences = [f"No {TITLES[name]} score: {_no_runs(name, missing, 'beside this one')}." for name in SCORES if missing_for(name, missing)]
    settings = shlex.quote(str(contents.folder.absolute() / SETTINGS))
    commands = [f"ray-ltdd run {settings} {shlex.join(overrides(NEEDS[name]).split())}" for name in missing]
    return RunScores(scores, tuple(sentences), tuple(commands))


def missing_sentences(scores: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Say which scores are empty, and what is missing, once for all recipes that lack the same.

    Args:
        scores: of `fair_scores`.
        labels: recipe -> what it is called on the page.
    """
    found = []
    for name in SCORES:
        for _, group in scores.groupby("missing", sort=False):
            lacking = group["missing"].iloc[0]
            if missing_for(name, lacking):
                shown = ", ".join(dict.fromkeys(labels[key] for key in group["recipe"] if key in labels))
                found.append(f"No {TITLES[name]} score of {shown}: {_no_runs(name, lacking, 'in this folder')}.")
    return found


def with_scores(results: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Return the reported results with the columns `label_robust` and `augmentation_robust` of their `recipe`; NaN where there are none."""
    return results.merge(scores[["recipe", *SCORES]], how="left", on="recipe")


def _no_runs(score: str, missing: Sequence[str], where: str) -> str:
    return f"there is no run {where} with {missing_for(score, missing)}"


def _runs_beside(folder: Path) -> list[Path]:
    """The run itself, first, and the other runs in the folder it lies in; nothing below those is looked at."""
    others = (place for place in sorted(folder.absolute().parent.iterdir()) if place != folder.absolute() and is_run(place))
    return [folder, *others]
