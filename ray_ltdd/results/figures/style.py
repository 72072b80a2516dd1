"""What all figures have in common: sizes for a printed page, colours that every kind of colour vision tells apart, markers for print in grey."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from ray_ltdd.errors import InputError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette without its yellow, which vanishes on white paper."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#767676"
LIGHT = "#D0D0D0"
SEQUENTIAL = "viridis"
PAGE_WIDTH = 7.0
"""Inches: the text width of an A4 or letter page, two columns of a paper."""

FREE_LEGEND_ROWS = 4
LEGEND_ROW_INCHES = 0.17
"""By which a figure grows for every row of its legend beyond `FREE_LEGEND_ROWS`."""

_RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.dpi": 200,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw under the common style, whatever style the caller's process has set."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_RC)
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, width: float = PAGE_WIDTH) -> Figure:
    """Return an empty figure of the given size in inches, laid out so that nothing overlaps."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colour(index: int) -> str:
    """The colour of series number `index`; they repeat after seven."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """The marker of series number `index`; it moves on when the colours repeat, so that 49 series differ."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


def exact_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Put the x axis on a logarithmic scale that names the given values and no others."""
    if min(values) < max(values):
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(values)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{value:g}" for value in values])


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of `axes` below the whole figure, in as many columns as fit its width; none where there is nothing to name.

    A legend of more than `FREE_LEGEND_ROWS` makes the figure higher instead of its panels flatter.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    n_columns = max(n for n in range(1, len(labels) + 1) if n == 1 or _legend_width(labels, n) <= figure.get_figwidth())
    n_rows = -(-len(labels) // n_columns)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW_INCHES * max(n_rows - FREE_LEGEND_ROWS, 0))
    figure.legend(handles, labels, loc="outside lower center", ncols=n_columns)


def _legend_width(labels: Sequence[str], n_columns: int) -> float:
    # matplotlib fills column after column; a character takes a sixteenth of an inch, a line's sample and the gap 0.65 inches
    columns = np.array_split(np.array([len(label) for label in labels]), n_columns)
    return float(sum(column.max() / 16 + 0.65 for column in columns))


def logarithmic(axes: Axes, low: float, high: float) -> None:
    """Put the x axis on a logarithmic scale with plain numbers, few enough to be read: powers of ten, or 1, 2, 5 where it spans less than 20."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 20 * low else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def require_values(name: str, values: Sequence[float] | np.ndarray) -> None:
    """Refuse to draw nothing.

    Raises:
        InputError: there is no finite value.
    """
    if not np.isfinite(np.asarray(values, float)).any():
        raise InputError(f"there is nothing to draw for {name}: no finite value is among the {len(values)} given.")
