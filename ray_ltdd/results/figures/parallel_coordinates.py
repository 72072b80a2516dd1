"""All parameters of all trials at once: one axis a parameter, one line a trial, coloured by its value."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import GREY, SEQUENTIAL, new_figure, styled
from ray_ltdd.results.figures.trials import TOP1, Objective, finished, is_logarithmic, is_number, short_name

_ABSENT = -0.12


@styled
def parallel_coordinates(
    trials: pd.DataFrame, parameters: Sequence[str], objective: Objective = TOP1, title: str = "Parameters of the finished trials"
) -> Figure:
    """Draw every finished trial as a line through its parameters' values and, last, the objective; the best lie on top.

    Names are spread evenly over their axis; a parameter that a trial has not is drawn below the axis, at `absent`.

    Args:
        trials: see `ray_ltdd.results.figures.trials`.
        parameters: columns, in the order of the axes.
        objective: what `value` is.
        title: above the figure.

    Raises:
        InputError: a column is missing, none is named, or fewer than two trials have ended.
    """
    if not parameters:
        raise InputError("name at least one parameter to draw.")
    done = finished(trials, parameters).sort_values("value", ascending=objective.maximize)
    if len(done) < 2:
        raise InputError("one trial has ended, and lines of several are compared: run more trials.")
    value = objective.factor * done["value"].to_numpy(float)
    columns = [_places(done[name]) for name in parameters]
    axis_ends = [_place_numbers(pd.Series(value))]
    heights = np.stack([places for places, _ in [*columns, *axis_ends]], axis=1)
    figure = new_figure(3.8, max(7.0, 1.1 * (len(parameters) + 1)))
    axes = figure.subplots()
    scale = Normalize(value.min(), value.max())
    for line, own in zip(heights, value, strict=True):
        axes.plot(range(len(line)), line, color=colormaps[SEQUENTIAL](scale(own)), linewidth=1.0, alpha=0.8)
    for x, (_, ticks) in enumerate([*columns, *axis_ends]):
        _draw_axis(axes, x, ticks, has_absent=bool((heights[:, x] == _ABSENT).any()))
    axes.set_xticks(range(len(columns) + 1), [*(short_name(name).replace(".", ".\n").replace("_", "_\n") for name in parameters), "value"])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.3, len(columns) + 0.5)
    axes.set_title(title)
    figure.colorbar(ScalarMappable(scale, SEQUENTIAL), ax=axes, label=objective.label, pad=0.02, fraction=0.04)
    return figure


def _places(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights in [0, 1] (absent values below), and what to write where."""
    return _place_numbers(column) if is_number(column) else _place_names(column)


def _place_numbers(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    values = column.astype(float).to_numpy()
    scaled = np.log(values) if is_logarithmic(column) else values
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    places = (scaled - low) / (high - low) if high > low else np.where(np.isnan(scaled), np.nan, 0.5)
    ends = [(0.0, np.nanmin(values)), (1.0, np.nanmax(values))] if high > low else [(0.5, np.nanmin(values))]
    return np.where(np.isnan(places), _ABSENT, places), [(place, f"{number:.3g}") for place, number in ends]


def _place_names(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    names = sorted({str(value) for value in column.dropna()})
    place = {name: (i / (len(names) - 1) if len(names) > 1 else 0.5) for i, name in enumerate(names)}
    return np.array([_ABSENT if pd.isna(value) else place[str(value)] for value in column]), [(place[name], name) for name in names]


def _draw_axis(axes: Axes, x: int, ticks: Sequence[tuple[float, str]], has_absent: bool) -> None:
    axes.plot([x, x], [0, 1], color=GREY, linewidth=1, zorder=4)
    for place, text in [*ticks, *([(_ABSENT, "absent")] if has_absent else [])]:
        axes.text(x + 0.03, place, text, fontsize=7, va="center", zorder=5, bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0})
