"""How the objective answers to the momentum schedule and to its parameter."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_ltdd.results.figures.style import GREY, colour, logarithmic, marker, new_figure, styled
from ray_ltdd.results.figures.trials import TOP1, Objective, finished

SCHEDULE = "calibrate.momentum.schedule"
OWN_PARAMETER = {"constant": "calibrate.momentum.value", "warmup": "calibrate.momentum.value", "power": "calibrate.momentum.exponent"}
"""The parameter each schedule has; `cumulative` has none."""


@styled
def momentum_response(trials: pd.DataFrame, objective: Objective = TOP1, title: str = "Response to the momentum schedule") -> Figure:
    """Draw the objective of the finished trials by schedule, and over each schedule's own parameter.

    Args:
        trials: see `ray_ltdd.results.figures.trials`; with `calibrate.momentum.schedule` and, as far as searched, the schedules' parameters.
        objective: what `value` is.
        title: above the figure.

    Raises:
        InputError: a column is missing, or no trial has ended.
    """
    done = finished(trials, [SCHEDULE]).assign(shown=lambda rows: objective.factor * rows["value"].astype(float))
    schedules = sorted(done[SCHEDULE].dropna().unique())
    panels = [schedule for schedule in schedules if not _own_trials(done, schedule).empty]
    figure = new_figure(3.2)
    row = figure.subplots(1, 1 + len(panels), sharey=True, squeeze=False, width_ratios=(1.5, *[1] * len(panels)))[0]
    _draw_schedules(row[0], done, schedules)
    for axes, schedule in zip(row[1:], panels, strict=True):
        of_schedule = _own_trials(done, schedule)
        index = schedules.index(schedule)
        axes.scatter(of_schedule[OWN_PARAMETER[schedule]].astype(float), of_schedule["shown"], s=16, color=colour(index), marker=marker(index))
        logarithmic(axes, of_schedule[OWN_PARAMETER[schedule]].min(), of_schedule[OWN_PARAMETER[schedule]].max())
        axes.set_title(schedule)
        axes.set_xlabel(OWN_PARAMETER[schedule].rpartition(".")[2] + " (no unit)")
    row[0].set_ylabel(objective.label)
    figure.suptitle(title)
    return figure


def _own_trials(done: pd.DataFrame, schedule: str) -> pd.DataFrame:
    """The schedule's trials that have its own parameter."""
    name = OWN_PARAMETER.get(schedule)
    return done[(done[SCHEDULE] == schedule) & done[name].notna()] if name in done else done.iloc[:0]


def _draw_schedules(axes: Axes, done: pd.DataFrame, schedules: list[str]) -> None:
    for place, schedule in enumerate(schedules):
        shown = done.loc[done[SCHEDULE] == schedule, "shown"].to_numpy(float)
        axes.boxplot(shown, positions=[place], widths=0.55, showfliers=False, medianprops={"color": "#000000"}, boxprops={"color": GREY})
        # spread sideways by rank, not at random: the same data give the same picture
        offsets = [0.3 * ((i * 0.618) % 1 - 0.5) for i in range(len(shown))]
        axes.scatter([place + o for o in offsets], shown, s=14, color=colour(place), marker=marker(place), alpha=0.8, linewidths=0, zorder=3)
    axes.set_xticks(
        range(len(schedules)), [f"{s} ({int((done[SCHEDULE] == s).sum())})" for s in schedules], rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.set_title("by schedule (trials)")
