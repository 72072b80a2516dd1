"""The trials of a sweep, from result rows: one table a cell, as the figures take them (see `ray_ltdd.results.figures.trials`).

A row of a sweep has, beside what all rows have, `cell` (the study), `state` (`COMPLETE`, `PRUNED`, `FAIL`) and `params` (the point of the space by
dotted name; as a mapping, as pairs, or as JSON). Rows scored on the validation part are trials; those scored on the test part are final runs.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.crops_response import crops_response
from ray_ltdd.results.figures.momentum_response import momentum_response
from ray_ltdd.results.figures.parallel_coordinates import parallel_coordinates
from ray_ltdd.results.figures.parameter_importance import parameter_importance
from ray_ltdd.results.figures.sweep_history import sweep_history
from ray_ltdd.results.figures.trials import COMPLETE

COLUMNS = ("cell", "state", "params")
NULL = "none"
"""What a parameter shows that was searched and set to null; one that does not exist in a trial is missing."""

_OWN = ("number", "state", "value", "seconds")


def of_sweeps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that belong to a cell of a sweep; none where the rows have no such columns."""
    if any(name not in rows.columns for name in COLUMNS):
        return rows.iloc[:0]
    return rows[rows["cell"].notna() & (rows["cell"] != "")]


def trials_of(rows: pd.DataFrame, metric: str = "top1") -> dict[str, pd.DataFrame]:
    """Return every cell's trials.

    Args:
        rows: of `load_results`.
        metric: what `value` is; the mean over the students of a trial.

    Returns:
        cell -> a table with `number` (int, in the order in which trials were made), `state`, `value` (float, NaN where there is none), `seconds`
        (float, of all the trial's stages when computed) and one column a parameter. Empty when there is no sweep.
    """
    swept = of_sweeps(rows)
    # a failed trial has no score and so no part
    trials = swept[swept["part"] != "test"]
    return {str(cell): _trials(group, metric) for cell, group in trials.groupby("cell", sort=False)}


def parameters_of(trials: pd.DataFrame) -> list[str]:
    """Return the names of the parameters of a table of trials."""
    return [str(name) for name in trials.columns if name not in _OWN]


def sweep_summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell: `cell`, `trials`, `complete`, `pruned`, `failed` (int), `best_percent` (validation top-1; NaN where no trial has
    ended), `best_params` (text), `hours` (of computing).
    """
    columns = ["cell", "trials", "complete", "pruned", "failed", "best_percent", "best_params", "hours"]
    return pd.DataFrame([{"cell": cell, **_summary(trials)} for cell, trials in trials_of(rows).items()], columns=columns)


def sweep_figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Return what can be drawn of every cell, title -> figure: course, importance, parallel coordinates, and the responses that were searched.

    A figure that needs more trials than there are, or parameters that were not searched, is left out.
    """
    figures = {}
    for cell, trials in trials_of(rows).items():
        names = parameters_of(trials)
        draws: dict[str, Callable[[], Figure]] = {
            "course of the sweep": lambda trials=trials, cell=cell: sweep_history(trials, title=f"Course of the sweep, {cell}"),
            "importance of the parameters": lambda trials=trials, names=names: parameter_importance(trials, names),
            "parameters of the trials": lambda trials=trials, names=names: parallel_coordinates(trials, names),
            "response to the momentum schedule": lambda trials=trials: momentum_response(trials),
            "response to the choice of initial images": lambda trials=trials: crops_response(trials),
        }
        for name, draw in draws.items():
            try:
                figures[f"{cell}: {name}"] = draw()
            except InputError:
                continue
    return figures


def _trials(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    points = [_point(value) for value in rows["params"]]
    names = list(dict.fromkeys(name for point in points for name in point))
    trial = rows["trial"] if "trial" in rows.columns else pd.Series([json.dumps(point, sort_keys=True) for point in points], index=rows.index)
    table = pd.DataFrame(
        {
            "trial": trial,
            "created": rows["created"],
            "state": rows["state"],
            "value": rows[metric].astype(float),
            "seconds": [sum((seconds or {}).values()) for seconds in rows["stage_seconds"]],
        }
    ).assign(**{name: pd.Series([point.get(name) for point in points], index=rows.index, dtype=object) for name in names})
    groups = table.sort_values("created", kind="stable").groupby("trial", sort="trial" in rows.columns, dropna=False)
    kept = groups.agg({"state": "first", "value": "mean", "seconds": "max", **dict.fromkeys(names, "first")}).infer_objects()
    numbers = kept.index.astype(int) if "trial" in rows.columns else range(len(kept))
    return kept.reset_index(drop=True).assign(number=numbers)[["number", "state", "value", "seconds", *names]]


def _point(value: Any) -> dict[str, Any]:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return {}
    pairs = json.loads(value) if isinstance(value, str) else dict(value)
    return {name: NULL if own is None else own for name, own in pairs.items()} if isinstance(pairs, Mapping) else {}


def _summary(trials: pd.DataFrame) -> dict[str, Any]:
    done = trials[(trials["state"] == COMPLETE) & trials["value"].notna()]
    best = done.loc[done["value"].idxmax()] if len(done) else None
    point = {name: best[name] for name in parameters_of(trials) if pd.notna(best[name])} if best is not None else {}
    counts = {name: int((trials["state"] == state).sum()) for name, state in (("complete", COMPLETE), ("pruned", "PRUNED"), ("failed", "FAIL"))}
    shown = ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in point.items())
    percent = 100 * float(best["value"]) if best is not None else float("nan")
    return {"trials": len(trials), **counts, "best_percent": percent, "best_params": shown, "hours": trials["seconds"].sum() / 3600}
