"""Accuracy against the imbalance factor and against images per class, with the published curves."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.style import GREY, PAGE_WIDTH, colour, exact_ticks, legend_below, marker, new_figure, styled
from ray_ltdd.results.published import published
from ray_ltdd.results.tables import BENCHMARK_NAMES

SHOWN_METHODS = ("RLDD", "DAMED", "EDC", "MTT", "Random")
"""Published methods drawn unless the caller names others: the paper's, the best before it, one trajectory method, the baseline."""

# neighbouring curves of ours are moved sideways by the first factor, so that points of one place do not hide each other; many of them by less, so
# that none is further than the second factor from its place
_APART = 1.06
_AWAY_AT_MOST = 1.08

_MOST_CURVES = 8
"""Settings of ours that are told apart; of more, each is a dot of one series: nobody finds a curve among forty."""

_NAMES = {"imbalance_factor": "IF", "images_per_class": "IPC"}
_LONG_NAMES = {"imbalance_factor": "imbalance factor", "images_per_class": "images per class"}


@styled
def accuracy_over_imbalance(ours: pd.DataFrame, benchmark: str, network: str, methods: Sequence[str] = SHOWN_METHODS) -> Figure:
    """Draw top-1 over the imbalance factor, one panel for each number of images per class.

    Args:
        ours: of `ray_ltdd.results.tables.own_results`; may be empty. Bars are the deviation over seeds.
        benchmark: such as `cifar10_lt`.
        network: the student's usual name, such as `ConvNet-3`.
        methods: published ones to draw, the first in black, the others in grey and told apart by their markers.

    Raises:
        InputError: there is neither a published number nor one of ours.
    """
    return _curves(ours, benchmark, network, methods, along="imbalance_factor", panel="images_per_class")


@styled
def accuracy_over_images(ours: pd.DataFrame, benchmark: str, network: str, methods: Sequence[str] = SHOWN_METHODS) -> Figure:
    """Draw top-1 over images per class, one panel for each imbalance factor; see `accuracy_over_imbalance`."""
    return _curves(ours, benchmark, network, methods, along="images_per_class", panel="imbalance_factor")


def _curves(ours: pd.DataFrame, benchmark: str, network: str, methods: Sequence[str], along: str, panel: str) -> Figure:
    own = ours[(ours["benchmark"] == benchmark) & (ours["network"] == network)]
    own = own.assign(percent=100 * own["mean"], percent_deviation=100 * own["deviation"])
    theirs = published()
    theirs = theirs[(theirs["benchmark"] == benchmark) & (theirs["network"] == network) & theirs["method"].isin(list(methods))]
    theirs = theirs.drop_duplicates(["imbalance_factor", "images_per_class", "method"])
    # a published panel of a single point is no curve
    panels = sorted({*own[panel], *(value for value, group in theirs.groupby(panel) if group[along].nunique() > 1)} or set(theirs[panel]))
    if not panels:
        raise InputError(f"there is no accuracy of {network} students on {benchmark}, neither ours nor published by {', '.join(methods)}.")
    width = PAGE_WIDTH if len(panels) > 1 else PAGE_WIDTH / 2
    figure = new_figure(3.3, width)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    order = [name for name in methods if (theirs["method"] == name).any()]
    labels = list(dict.fromkeys(own["label"]))
    distilled = list(dict.fromkeys(own.loc[own["method"] == "distilled", "label"]))
    dots = distilled if len(distilled) > _MOST_CURVES else []
    for axes, value in zip(row, panels, strict=True):
        _draw(axes, theirs[theirs[panel] == value], along, "method", order, _theirs_style)
        here = own[own[panel] == value]
        style = _own_style
        if dots:
            style = _own_style_beside_dots
            _draw_dots(axes, here[here["label"].isin(dots)], along, f"ours, each of {len(dots)} settings")
        _draw(axes, here, along, "label", [label for label in labels if label not in dots], style, _sideways)
        axes.set_title(f"{_NAMES[panel]} {value:g}")
        axes.set_xlabel(_LONG_NAMES[along])
        exact_ticks(axes, sorted({*own[along], *theirs[along]}))
        axes.margins(x=0.1)
    row[0].set_ylabel("top-1 test accuracy (%)")
    figure.suptitle(f"{BENCHMARK_NAMES.get(benchmark, benchmark)}, {network} students")
    legend_below(figure, row[0])
    return figure


def _draw(
    axes: Axes,
    rows: pd.DataFrame,
    along: str,
    by: str,
    names: Sequence[str],
    style: Callable[[int], dict[str, object]],
    sideways: Callable[[int], np.ndarray] = np.ones,
) -> None:
    drawn = [name for name in names if (rows[by] == name).any()]
    factor_of = dict(zip(drawn, sideways(len(drawn)), strict=True))
    for index, name in enumerate(names):
        points = rows[rows[by] == name].sort_values(along)
        # an empty curve still belongs to the legend, which is taken from the first panel
        bars = points["percent_deviation"].fillna(0)
        x = points[along].astype(float) * factor_of.get(name, 1.0)
        axes.errorbar(x, points["percent"], yerr=bars, label=name, capsize=2, elinewidth=0.8, **style(index))  # type: ignore[arg-type]


def _draw_dots(axes: Axes, rows: pd.DataFrame, along: str, name: str) -> None:
    placed = rows.sort_values([along, "percent"])
    n_here = placed.groupby(along)["percent"].transform("size")
    x = [float(place) * _sideways(n)[i] for place, n, i in zip(placed[along], n_here, placed.groupby(along).cumcount(), strict=True)]
    style: dict[str, Any] = {**_own_style(0), "linestyle": "none", "markersize": 4}
    axes.errorbar(x, placed["percent"], yerr=placed["percent_deviation"].fillna(0), label=name, elinewidth=0.8, **style)


def _sideways(n: int) -> np.ndarray:
    """By what the places of n neighbouring curves are multiplied."""
    edge = min(_APART ** ((n - 1) / 2), _AWAY_AT_MOST)
    return np.geomspace(1 / edge, edge, n)


def _theirs_style(index: int) -> dict[str, object]:
    # the paper's own method is the one to be read off; the rest is background
    ink = "#000000" if index == 0 else GREY
    return {"color": ink, "marker": marker(index + 1), "linestyle": "--", "linewidth": 1.0, "markerfacecolor": "white", "zorder": 2}


def _own_style(index: int) -> dict[str, object]:
    return {"color": colour(index), "marker": marker(index), "linewidth": 1.8, "markersize": 5.5, "zorder": 3}


def _own_style_beside_dots(index: int) -> dict[str, object]:
    return _own_style(index + 1)
