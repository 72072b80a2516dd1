"""Accuracy against the bytes a user must keep, and which results nothing smaller or equal in size beats."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ray_ltdd.errors import InputError
from ray_ltdd.results.aggregate import GROUP, aggregate
from ray_ltdd.results.figures.style import GREY, colour, legend_below, logarithmic, marker, new_figure, require_values, styled

_MEANING = {"one": "one logit vector per image", "stored": "stored logits of views", "online": "teacher kept (online labels)"}

# width and height of "IPC 10" as shares of the axes
_NAME_SIZE = np.array([0.09, 0.05])


def accuracy_and_bytes(rows: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Aggregate rows of distilled images over seeds, with their size.

    Args:
        rows: of `load_results`; rows of other methods are passed over.
        metric: the accuracy.

    Returns:
        what `aggregate` returns, with `bytes` (images as PNG and labels) and `is_best` (bool: on the Pareto front of all returned).
    """
    distilled = rows[(rows["method"] == "distilled") & rows["image_bytes"].notna() & rows[metric].notna()]
    sizes = distilled.assign(bytes=distilled["image_bytes"] + distilled["label_bytes"].fillna(0)).groupby(GROUP, dropna=False)["bytes"].mean()
    table = aggregate(distilled, metric).merge(sizes.reset_index(), on=GROUP)
    return table.assign(is_best=pareto_front(table["bytes"].to_numpy(float), table["mean"].to_numpy(float)))


def pareto_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return which points no other point dominates, bool of the same length: none costs no more and gains no less, one of the two strictly.

    Args:
        cost: to be small.
        gain: to be large.
    """
    is_best = np.zeros(len(cost), bool)
    best, order = -np.inf, np.lexsort((-gain, cost))
    for i in order:
        # of equal points all are on the front or none
        is_best[i] = gain[i] > best or any(is_best[j] and cost[j] == cost[i] and gain[j] == gain[i] for j in order)
        best = max(best, gain[i])
    return is_best


@styled
def accuracy_over_bytes(table: pd.DataFrame, title: str = "Accuracy for the bytes kept") -> Figure:
    """Draw accuracy over bytes on a logarithmic axis, one marker a kind of label, and the Pareto front.

    Args:
        table: of `accuracy_and_bytes`, of one benchmark, IF and network (what differs in them cannot be compared).
        title: above the figure.

    Raises:
        InputError: there is nothing to draw, or rows that cannot be compared.
    """
    require_values("accuracy over bytes", table["bytes"].to_numpy(float))
    for name in ("benchmark", "imbalance_factor", "network", "part"):
        if table[name].nunique() > 1:
            raise InputError(f"results with different {name} ({', '.join(map(str, table[name].unique()))}) have no common front: keep one.")
    figure = new_figure(3.6, 5.5)
    axes = figure.subplots()
    front = table[table["is_best"]].sort_values("bytes")
    axes.step(front["bytes"], 100 * front["mean"], where="post", color=GREY, linestyle="--", linewidth=1, label="Pareto front", zorder=1)
    for index, (labels, group) in enumerate(table.groupby("labels", sort=True)):
        bars = 100 * group["deviation"].fillna(0)
        name = _MEANING.get(str(labels), str(labels))
        axes.errorbar(
            group["bytes"], 100 * group["mean"], yerr=bars, linestyle="none", marker=marker(index), color=colour(index), capsize=2, label=name
        )
    low, high = table["bytes"].min(), table["bytes"].max()
    if high > 1.5 * low:
        logarithmic(axes, low, high)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _size(value)))
    axes.margins(x=0.15, y=0.15)
    axes.set_xlabel("bytes of images (PNG) and labels")
    axes.set_ylabel(f"top-1 {table['part'].iloc[0]} accuracy (%)")
    axes.set_title(title)
    _name_sizes(axes, front)
    legend_below(figure, axes)
    return figure


def _name_sizes(axes: Axes, front: pd.DataFrame) -> None:
    """Name the images per class of the points on the front, the most accurate first; not where a name would lie on another.

    Names stand above on the left, where a front has no other points.
    """
    axes.autoscale_view()
    place_of = axes.transData + axes.transAxes.inverted()
    taken: list[np.ndarray] = []
    for row in front.sort_values("mean", ascending=False, kind="stable").to_dict("records"):
        point = (row["bytes"], 100 * row["mean"])
        place = place_of.transform(point)
        if all((abs(place - other) > _NAME_SIZE).any() for other in taken):
            taken.append(place)
            axes.annotate(f"IPC {row['images_per_class']}", point, xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=7)


def _size(value: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} B"
