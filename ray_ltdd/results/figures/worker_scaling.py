"""What more workers gained: speedup of every stage over the number of workers."""

import pandas as pd
from matplotlib.figure import Figure

from ray_ltdd.results.figures.style import GREY, colour, exact_ticks, legend_below, marker, new_figure, require_values, styled


@styled
def worker_scaling(gains: pd.DataFrame, title: str = "Speedup over the fewest workers") -> Figure:
    """Draw the speedup of every stage, and what it would be if twice the workers took half the time.

    Args:
        gains: of `ray_ltdd.results.costs.worker_gains`, of one fingerprint.
        title: above the figure.

    Raises:
        InputError: there is nothing to draw.
    """
    require_values("the workers' gain", gains["speedup"].to_numpy(float))
    figure = new_figure(3.4, 5.5)
    axes = figure.subplots()
    workers = sorted(gains["n_workers"].astype(float).unique())
    axes.plot(workers, [n / workers[0] for n in workers], color=GREY, linestyle="--", linewidth=1, label="ideal")
    for index, (stage, own) in enumerate(gains.groupby("stage", sort=False)):
        axes.plot(own["n_workers"].astype(float), own["speedup"], color=colour(index), marker=marker(index), label=str(stage))
    exact_ticks(axes, workers)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("workers (number)")
    axes.set_ylabel("speedup (no unit)")
    axes.set_title(title)
    legend_below(figure, axes)
    return figure
