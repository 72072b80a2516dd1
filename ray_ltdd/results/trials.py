"""The trials of a sweep, from result rows: one table a study, as the figures take them (see `ray_ltdd.results.figures.trials`)."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.aggregate import compared_over_seeds
from ray_ltdd.results.export import STATES
from ray_ltdd.results.figures.crops_response import crops_response
from ray_ltdd.results.figures.momentum_response import momentum_response
from ray_ltdd.results.figures.parallel_coordinates import parallel_coordinates
from ray_ltdd.results.figures.parameter_importance import parameter_importance
from ray_ltdd.results.figures.sweep_history import sweep_history
from ray_ltdd.results.figures.trials import COMPLETE
from ray_ltdd.results.load import load_results
from ray_ltdd.results.tables import own_results

NULL = "none"
"""What a parameter shows that was searched and set to null; one that does not exist in a trial is missing."""

_OWN = ("number", "state", "value", "seconds")
# as Optuna and the figures name them
_STATE = {"complete": COMPLETE, "pruned": "PRUNED", "failed": "FAIL"}


def load_trials(paths: str | Path | list[str | Path]) -> dict[str, pd.DataFrame]:
    """Load every study's trials, pruned and failed ones too.

    Args:
        paths: one or more folders, each searched through.

    Returns:
        study -> a table, see `trials_of`. Empty where no rows are of a sweep.

    Raises:
        InputError: a path does not exist, or there are no rows in any.
    """
    return trials_of(load_results(paths, STATES))


def trials_of(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return every study's trials.

    Args:
        rows: of `load_results`, of all states.

    Returns:
        the cell's name, or the study's where a cell has several, after the sweep's name where there are several -> a table with `number` (int),
        `state` (`COMPLETE`, `PRUNED`, `FAIL`), `value` (float: the study's first objective, such as validation top-1 as a share; of a pruned trial
        its top-1 when it was stopped; NaN where there is none), `seconds` (float, of all the trial's stages when they were computed) and one column a
        parameter.
    """
    trials = rows[rows["role"] == "trial"]
    one_study = trials.groupby(["sweep", "cell"])["study"].transform("nunique") == 1
    names = _of_sweep(rows, trials["sweep"], trials["cell"].where(one_study, trials["study"]))
    return {str(name): _trials(group) for name, group in trials.groupby(names, sort=False)}


def _of_sweep(rows: pd.DataFrame, sweeps: pd.Series, names: pd.Series) -> pd.Series:
    """The names of cells or studies, after their sweep's where the rows are of several: two may search the same cells."""
    return names if rows["sweep"].nunique() < 2 else sweeps + ", " + names


def trial_table(trials: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return all trials as one table, the index telling the cell; empty where there is none."""
    return pd.concat({name: own.set_index("number") for name, own in trials.items()}, names=["cell"]) if trials else pd.DataFrame()


def parameters_of(trials: pd.DataFrame) -> list[str]:
    """Return the names of the parameters of a table of trials."""
    return [str(name) for name in trials.columns if name not in _OWN]


def sweep_summary(trials: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a study: `cell`, `trials`, `complete`, `pruned`, `failed` (int), `best_percent` (validation accuracy; NaN where no trial has
    ended), `best_params` (text), `hours` (of computing, shared stages counted in every trial that used them).
    """
    columns = ["cell", "trials", "complete", "pruned", "failed", "best_percent", "best_params", "hours"]
    return pd.DataFrame([{"cell": cell, **_summary(own)} for cell, own in trials.items()], columns=columns)


def sweep_finals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what is reported of a sweep: winners and defaults, distilled anew and tested on the test part, as `own_results`, a label telling which.

    Args:
        rows: of `load_results`.

    Raises:
        InputError: two studies have a winner for one cell of the paper's.
    """
    finals = rows[rows["role"].isin(["winner", "defaults"]) & (rows["method"] == "distilled")]
    if finals.empty:
        return pd.DataFrame(columns=["label", "benchmark", "imbalance_factor", "images_per_class", "mean", "deviation", "n", "published_percent"])
    return own_results(finals, final_labels(finals))


def sweep_comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell of a sweep, its winner against the defaults on the test part, seed by seed.

    Columns: `cell` (after the sweep's name where there are several); `winner`, `defaults` (mean top-1, shares); `n` (seeds); `difference`, `low`,
    `high` (winner minus defaults, shares, with its 95 % interval), `p` (paired t test); `same` (the defaults won: nothing was compared). NaN where
    there are fewer than two pairs.

    Args:
        rows: of `load_results`.
    """
    finals = rows[rows["role"].isin(["winner", "defaults"]) & (rows["method"] == "distilled")]
    columns = ["cell", "winner", "defaults", "n", "difference", "low", "high", "p", "same"]
    cells = finals.groupby(_of_sweep(rows, finals["sweep"], finals["cell"]), sort=False)
    return pd.DataFrame([_comparison(str(cell), own) for cell, own in cells], columns=columns)


def _comparison(cell: str, finals: pd.DataFrame) -> dict[str, Any]:
    sides = {role: finals[finals["role"] == role] for role in ("winner", "defaults")}
    recipes = [set(side["recipe"]) for side in sides.values()]
    found: dict[str, Any] = {"cell": cell, **{role: side["top1"].mean() for role, side in sides.items()}, "same": recipes[0] == recipes[1]}
    test = compared_over_seeds(sides["winner"], sides["defaults"])
    if test is not None:
        found |= {"n": test.n, "difference": test.mean, "low": test.low, "high": test.high, "p": test.p}
    return found


def final_labels(rows: pd.DataFrame) -> dict[str, str]:
    """Return what final runs are called in tables: recipe -> `winner of SWEEP`, `defaults of SWEEP`, or both where the defaults won.

    Args:
        rows: of `load_results`; those that are no final run of distilled images are passed over.
    """
    finals = rows[rows["role"].isin(["winner", "defaults"]) & (rows["method"] == "distilled")]
    labels: dict[str, list[str]] = {}
    for (recipe, sweep), own in finals.groupby(["recipe", "sweep"], sort=False):
        roles = " and ".join(role for role in ("winner", "defaults") if role in set(own["role"]))
        labels.setdefault(str(recipe), []).append(f"{roles} of {sweep}")
    return {recipe: ", ".join(names) for recipe, names in labels.items()}


def sweep_figures(trials: dict[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return what can be drawn of every study, title -> figure: course, importance, parallel coordinates, and the responses that were searched.

    A figure that needs more trials than there are, or parameters that were not searched, is left out.
    """
    figures = {}
    for cell, own in trials.items():
        names = parameters_of(own)
        draws: dict[str, Callable[[], Figure]] = {
            "course of the sweep": partial(sweep_history, own, title=f"Course of the sweep, {cell}"),
            "importance of the parameters": partial(parameter_importance, own, names, title=f"Importance of the parameters (PED-ANOVA), {cell}"),
            "parameters of the trials": partial(parallel_coordinates, own, names, title=f"Parameters of the finished trials, {cell}"),
            "response to the momentum schedule": partial(momentum_response, own, title=f"Response to the momentum schedule, {cell}"),
            "response to the choice of initial images": partial(crops_response, own, title=f"Response to the choice of initial images, {cell}"),
        }
        for name, draw in draws.items():
            with suppress(InputError):
                figures[f"{cell}: {name}"] = draw()
    return figures


def _trials(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a trial; its students' values are averaged, as the study does."""
    points = [json.loads(text) if isinstance(text, str) else {} for text in rows["params"]]
    names = list(dict.fromkeys(name for point in points for name in point))
    first = pd.Series([values[0] if values is not None and len(values) else None for values in rows["objectives"]], index=rows.index, dtype=float)
    table = pd.DataFrame(
        {
            "number": rows["trial"].astype(int),
            "state": rows["state"].map(_STATE),
            "value": first.fillna(rows["top1"].astype(float)),
            "seconds": [float(sum(seconds.values())) for seconds in rows["stage_seconds"]],
        }
    )
    for name in names:
        table[name] = pd.Series(
            [NULL if name in point and point[name] is None else point.get(name) for point in points], index=rows.index, dtype=object
        )
    how = {"state": "first", "value": "mean", "seconds": "max", **dict.fromkeys(names, "first")}
    return table.groupby("number").agg(how).infer_objects().reset_index()


def _summary(trials: pd.DataFrame) -> dict[str, Any]:
    done = trials[(trials["state"] == COMPLETE) & trials["value"].notna()]
    best = done.sort_values("value", kind="stable").iloc[-1] if len(done) else None
    point = {name: best[name] for name in parameters_of(trials) if pd.notna(best[name])} if best is not None else {}
    counts = {name: int((trials["state"] == state).sum()) for name, state in _STATE.items()}
    shown = ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items())
    percent = 100 * float(best["value"]) if best is not None else float("nan")
    return {"trials": len(trials), **counts, "best_percent": percent, "best_params": shown, "hours": trials["seconds"].sum() / 3600}
