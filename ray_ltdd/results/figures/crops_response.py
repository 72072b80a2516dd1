"""How the objective answers to the confidence threshold, the number of rounds and the crops per image."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ray_ltdd.results.figures.style import COLOURS, GREY, SEQUENTIAL, legend_below, logarithmic, new_figure, styled
from ray_ltdd.results.figures.trials import TOP1, Objective, finished, is_logarithmic

THRESHOLD = "select_crops.confidence_threshold"
ROUNDS = "select_crops.max_rounds"
CROPS = "select_crops.crops_per_image"

_LABELS = {THRESHOLD: "confidence threshold\n(probability)", CROPS: "crops per image\n(number)", ROUNDS: "rounds at most\n(number)"}


@styled
def crops_response(trials: pd.DataFrame, objective: Objective = TOP1, title: str = "Response to the choice of initial images") -> Figure:
    """Draw the objective of the finished trials over threshold, crops per image and rounds, and threshold against rounds, as far as searched.

    Args:
        trials: see `ray_ltdd.results.figures.trials`; a `select_crops.max_rounds` that is missing or no number is one without limit.
        objective: what `value` is.
        title: above the figure.

    Raises:
        InputError: the column of the threshold is missing, or no trial has ended.
    """
    done = finished(trials, [THRESHOLD]).assign(shown=lambda rows: objective.factor * rows["value"].astype(float))
    searched = [name for name in (THRESHOLD, CROPS, ROUNDS) if name in done]
    has_map = ROUNDS in done
    figure = new_figure(3.2)
    row = figure.subplots(1, len(searched) + has_map, squeeze=False)[0]
    for axes, name in zip(row, searched, strict=False):
        if name == ROUNDS:
            _draw_rounds(axes, done)
        else:
            _draw_numbers(axes, done, name)
        axes.set_xlabel(_LABELS[name])
        axes.sharey(row[0]) if axes is not row[0] else axes.set_ylabel(objective.label)
        axes.tick_params(labelleft=axes is row[0])
    if has_map:
        _draw_map(figure, row[-1], done, objective)
    figure.suptitle(title)
    legend_below(figure, row[0])
    return figure


def _draw_numbers(axes: Axes, done: pd.DataFrame, name: str) -> None:
    known = done.dropna(subset=[name])
    x, shown = known[name].to_numpy(float), known["shown"].to_numpy(float)
    axes.scatter(x, shown, s=14, color=COLOURS[0], alpha=0.7, linewidths=0, label="trial")
    window = max(3, len(known) // 4)
    line = medians(x, shown, window)
    axes.plot(list(line), list(line.values()), color=COLOURS[1], label=f"median of {window} or more")
    if name != THRESHOLD and is_logarithmic(known[name]):
        logarithmic(axes, x.min(), x.max())


def medians(x: np.ndarray, y: np.ndarray, window: int) -> dict[float, float]:
    """Return a running median, value of x -> median of y, x increasing, each value once.

    It is over all points of that x and, where these are fewer than `window`, as many on either side as make up for it and all that are equal to the
    outermost of them: in which order the points are given changes nothing. Values so near an end that a side has too few are left out.
    """
    ordered = np.sort(x)
    found = {}
    for value in np.unique(x):
        first, last = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right") - 1
        beside = max(0, window - (last - first)) // 2
        if first >= beside and last + beside < len(x):
            found[float(value)] = float(np.median(y[(x >= ordered[first - beside]) & (x <= ordered[last + beside])]))
    return found


def _rounds(done: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """Names of the numbers of rounds from few to without limit, and each trial's place among them."""
    numbers = pd.to_numeric(done[ROUNDS], errors="coerce").fillna(np.inf)
    known = sorted(numbers.unique())
    return [f"{n:g}" if np.isfinite(n) else "none" for n in known], np.array([known.index(n) for n in numbers])


def _draw_rounds(axes: Axes, done: pd.DataFrame) -> None:
    names, place = _rounds(done)
    shown = done["shown"].to_numpy(float)
    for k in range(len(names)):
        axes.boxplot(shown[place == k], positions=[k], widths=0.55, showfliers=False, medianprops={"color": COLOURS[1]}, boxprops={"color": GREY})
    offsets = np.array([0.3 * ((i * 0.618) % 1 - 0.5) for i in range(len(shown))])
    axes.scatter(place + offsets, shown, s=14, color=COLOURS[0], alpha=0.7, linewidths=0, zorder=3)
    axes.set_xticks(range(len(names)), names)


def _draw_map(figure: Figure, axes: Axes, done: pd.DataFrame, objective: Objective) -> None:
    names, place = _rounds(done)
    scale = Normalize(done["shown"].min(), done["shown"].max())
    points = axes.scatter(
        place, done[THRESHOLD].astype(float), c=done["shown"], cmap=SEQUENTIAL, norm=scale, s=30, edgecolors="#000000", linewidths=0.4
    )
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.15)
    axes.set_xlabel(_LABELS[ROUNDS])
    axes.set_ylabel(_LABELS[THRESHOLD])
    figure.colorbar(points, ax=axes, label=objective.label)
