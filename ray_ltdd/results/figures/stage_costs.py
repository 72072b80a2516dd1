"""What the stages of a run cost, and how busy its workers were."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_ltdd.results.figures.style import COLOURS, LIGHT, new_figure, require_values, styled


@styled
def stage_costs(stages: Mapping[str, Mapping[str, Any]], title: str = "Cost of the stages") -> Figure:
    """Draw each stage's seconds, in the run and to compute its artifacts, and the share of their time in which the workers worked.

    Args:
        stages: title of the stage -> `StageRecord.describe()`, as `summary.json` holds them under `stages`: `wall_seconds`, `compute_seconds` and,
            where there were workers, `n_workers` and `utilisation`. Without workers there is no second panel.
        title: above the figure.

    Raises:
        InputError: there is no stage.
    """
    require_values("the stages' cost", [record["compute_seconds"] for record in stages.values()])
    has_workers = any(record.get("utilisation") is not None for record in stages.values())
    figure = new_figure(1.5 + 0.34 * len(stages))
    row = figure.subplots(1, 2 if has_workers else 1, sharey=True, squeeze=False, width_ratios=(2, 1) if has_workers else None)[0]
    _draw_seconds(row[0], stages)
    if has_workers:
        _draw_utilisation(row[1], stages)
    row[0].set_yticks(range(len(stages)), list(stages))
    row[0].invert_yaxis()
    figure.suptitle(title)
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _draw_seconds(axes: Axes, stages: Mapping[str, Mapping[str, Any]]) -> None:
    y = np.arange(len(stages))
    for offset, key, name, ink in (
        (-0.2, "wall_seconds", "in this run", COLOURS[0]),
        (0.2, "compute_seconds", "to compute its artifacts", COLOURS[4]),
    ):
        seconds = [float(record[key]) for record in stages.values()]
        axes.barh(y + offset, seconds, height=0.38, color=ink, label=f"{name} ({_duration(sum(seconds))} in all)")
        for place, value in zip(y + offset, seconds, strict=True):
            axes.annotate(_duration(value), (value, place), xytext=(2, 0), textcoords="offset points", va="center", fontsize=7)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds")


def _draw_utilisation(axes: Axes, stages: Mapping[str, Mapping[str, Any]]) -> None:
    for place, record in enumerate(stages.values()):
        share = record.get("utilisation")
        axes.barh(place, 100, height=0.6, color=LIGHT if share is not None else "none")
        if share is not None:
            axes.barh(place, 100 * share, height=0.6, color=COLOURS[2])
            axes.annotate(f"{share:.0%} of {record['n_workers']}", (50, place), ha="center", va="center", fontsize=7)
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.tick_params(labelleft=False)
    axes.set_xlabel("workers busy (% of their time)")


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
