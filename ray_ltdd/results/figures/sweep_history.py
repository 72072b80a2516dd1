"""The course of a sweep: every trial's value, and the best so far."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ray_ltdd.results.figures.style import COLOURS, GREY, legend_below, new_figure, styled
from ray_ltdd.results.figures.trials import COMPLETE, TOP1, Objective, finished


@styled
def sweep_history(trials: pd.DataFrame, objective: Objective = TOP1, baseline: float | None = None, title: str = "Course of the sweep") -> Figure:
    """Draw the objective over the trials in their order.

    Pruned trials are drawn at their last value, which is of a smaller budget, and never count as the best; failed ones as ticks on the axis.

    Args:
        trials: see `ray_ltdd.results.figures.trials`.
        objective: what `value` is.
        baseline: value of the default settings under the same budget, drawn as a line.
        title: above the figure.

    Raises:
        InputError: a column is missing, or no trial has ended.
    """
    done = finished(trials).sort_values("number")
    figure = new_figure(3.2)
    axes = figure.subplots()
    value = objective.factor * done["value"].to_numpy(float)
    best = np.maximum.accumulate(value) if objective.maximize else np.minimum.accumulate(value)
    axes.step(done["number"], best, where="post", color=COLOURS[0], label="best so far")
    axes.scatter(done["number"], value, s=16, color=COLOURS[0], alpha=0.6, linewidths=0, label=f"complete ({len(done)})", zorder=3)
    pruned = trials[(trials["state"] == "PRUNED") & trials["value"].notna()]
    if len(pruned):
        n_pruned = int((trials["state"] == "PRUNED").sum())
        axes.scatter(
            pruned["number"], objective.factor * pruned["value"].astype(float), s=18, marker="x", color=GREY, label=f"pruned, last value ({n_pruned})"
        )
    _mark_others(axes, trials)
    if baseline is not None:
        axes.axhline(objective.factor * baseline, color=COLOURS[1], linestyle="--", label="default settings")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")
    axes.set_ylabel(objective.label)
    axes.set_title(title)
    legend_below(figure, axes)
    return figure


def _mark_others(axes: Axes, trials: pd.DataFrame) -> None:
    others = trials[~trials["state"].isin([COMPLETE, "PRUNED"])]
    for (state, group), ink in zip(others.groupby("state"), (COLOURS[1], COLOURS[4], COLOURS[5]), strict=False):
        axes.plot(
            group["number"],
            np.zeros(len(group)),
            linestyle="none",
            marker="|",
            markersize=9,
            color=ink,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
            label=f"{str(state).lower()} ({len(group)})",
        )
