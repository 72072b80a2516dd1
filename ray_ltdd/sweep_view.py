"""A sweep for people: a live table on a terminal, a line a cell now and then elsewhere; its plan and its outcome as tables."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ray_ltdd.reporting import ConsoleReporter, make_reporter
from ray_ltdd.search.config import ACCURACIES
from ray_ltdd.search.estimate import Estimate
from ray_ltdd.search.plan import SweepPlan
from ray_ltdd.search.report import CellReport, CellStatus, FinalScore, FoundPoint, SweepReport, SweepStatus

SECONDS_BETWEEN_LINES = 30.0
_MOST_FRONT_POINTS = 10


class ConsoleView:
    """Shows a sweep on a console; see `ray_ltdd.cluster.sweep.View`.

    Attributes:
        reporter: shows what comes before the first trial.
    """

    def __init__(self, reporter: ConsoleReporter, quiet: bool) -> None:
        """Args: shows on the reporter's console; quiet shows nothing."""
        self.reporter = reporter
        self._quiet = quiet
        self._live: Live | None = None
        self._printed = float("-inf")
        self._shown: list[str] = []

    @contextmanager
    def open(self) -> Iterator["ConsoleView"]:
        """Show while the body runs."""
        try:
            yield self
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def update(self, status: SweepStatus) -> None:
        """Show where the sweep stands."""
        if self._quiet:
            return
        if self.reporter.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.reporter.console, auto_refresh=False)
                self._live.start()
            self._live.update(status_table(status), refresh=True)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print(status)

    def _print(self, status: SweepStatus) -> None:
        self._printed = time.monotonic()
        lines = [status.phase, *(_line(cell, status.device_unit) for cell in status.cells)]
        # what has not changed is not said again
        changed = lines if lines[1:] != self._shown[1:] else lines[:1] if lines != self._shown else []
        self._shown = lines
        for line in changed:
            self.reporter.console.print(line, highlight=False, soft_wrap=True)


def make_view(quiet: bool) -> ConsoleView:
    """A view on standard error, so that standard output holds the outcome alone."""
    return ConsoleView(make_reporter(quiet), quiet)


def _line(cell: CellStatus, unit: str) -> str:
    best = f", best {_percent(cell.best)} (trial {cell.best_trial})" if cell.best is not None else ""
    eta = f", about {_duration(cell.eta_seconds)} left" if cell.eta_seconds is not None else ""
    counts = f"{cell.n_done} of {cell.n_trials} trials done, {cell.n_running} running, {cell.n_pruned} pruned, {cell.n_failed} failed"
    return f"  {cell.name}: {counts}{best}, {cell.device_hours:.2f} {unit}{eta}"


def status_table(status: SweepStatus) -> RenderableType:
    """The live table, at most 80 columns wide where cells' names are those of the shipped sweeps."""
    table = Table(title=f"Sweep: {status.phase}", title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("cell", "trials", "best", "running", "pruned", "failed", "ETA", status.device_unit):
        table.add_column(heading, justify="left" if heading == "cell" else "right", no_wrap=True)
    for cell in status.cells:
        table.add_row(*_cells_of(cell))
    at_work = [label for label in status.hosts if label]
    hosts = Text(f"{len(at_work)} of {len(status.hosts)} expert hosts at work{': ' if at_work else ''}{'; '.join(at_work[:4])}", style="dim")
    return Group(table, hosts)


def _cells_of(cell: CellStatus) -> list[str]:
    best = f"{_percent(cell.best)} (#{cell.best_trial})" if cell.best is not None else ""
    eta = _duration(cell.eta_seconds) if cell.eta_seconds is not None else ""
    counts = [str(n or "") for n in (cell.n_running, cell.n_pruned, cell.n_failed)]
    return [cell.name, f"{cell.n_done}/{cell.n_trials}", best, *counts, eta, f"{cell.device_hours:.2f}"]


def report_tables(report: SweepReport) -> Iterator[RenderableType]:
    """Yield what is said at the end, tables at most 80 columns wide where cells' names are those of the shipped sweeps."""
    yield _search_table(report)
    for cell in report.cells:
        yield from _points(cell, report.objectives)
    if any(cell.winner_test for cell in report.cells):
        yield _test_table(report)
    yield _sharing_table(report)
    for cell in report.cells:
        for reason, n in cell.failures.items():
            yield Text(f"Failed{f' {n} times' if n > 1 else ''} in {cell.status.name}: {reason}")
    for note in report.notes:
        yield Text(f"Note: {note}")


def _search_table(report: SweepReport) -> Table:
    accuracy = "top-1" if report.objectives[0] == "top1" else "mean accuracy per class"
    table = _table(f"Trials: {accuracy} on the validation part, in percent", ("cell", "trials", "pruned", "failed", "best", "defaults"))
    for cell in report.cells:
        status = cell.status
        counts = [str(n) for n in (status.n_done, status.n_pruned, status.n_failed)]
        table.add_row(status.name, *counts, _percent(status.best), _percent(status.default))
    return table


def _test_table(report: SweepReport) -> Table:
    table = _table("Final runs: top-1 on the test part, in percent", ("cell", "winner", "defaults", "difference", "p"))
    # the widest of the tables
    table.box, table.pad_edge = SIMPLE_HEAD, False
    table.caption_justify = "left"
    table.caption = (
        "±: deviation over all seeds' students. Difference: winner minus defaults, seed by seed, its 95 % interval and the paired t test's p."
    )
    for cell in report.cells:
        table.add_row(cell.status.name, _score(cell.winner_test), _score(cell.defaults_test), *_difference(cell))
    return table


def _difference(cell: CellReport) -> tuple[str, str]:
    test = cell.comparison
    if cell.winner_is_defaults:
        return "the defaults won", ""
    if test is None:
        return "", ""
    difference = f"{100 * test.mean:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
    return difference, "n/a" if test.p is None else f"{test.p:.3f}"


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    return table


def _points(cell: CellReport, objectives: Sequence[str]) -> Iterator[Text]:
    if cell.winner is None:
        yield Text(f"{cell.status.name}: no trial has ended with a value.")
        return
    yield Text(f"Best of {cell.status.name}: {_point(cell.winner, objectives)}")
    for point in cell.front[1:_MOST_FRONT_POINTS]:
        yield Text(f"  on the front: {_point(point, objectives)}")


def _point(point: FoundPoint, objectives: Sequence[str]) -> str:
    values = ", ".join(f"{name} {_percent(point.values[name]) if name in ACCURACIES else f'{point.values[name]:,.4g}'}" for name in objectives)
    params = " ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={_plain(value)}" for name, value in point.params.items())
    return f"trial {point.trial} ({values}): {params}"


def _plain(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _sharing_table(report: SweepReport) -> Table:
    table = _table("Runs of stages, unit by unit, all trials and final runs", ("stage", "asked for", "computed", "shared", "s spent", "s saved"))
    for use in report.stages:
        seconds = [f"{use.compute_seconds - use.saved_seconds:,.1f}", f"{use.saved_seconds:,.1f}"]
        table.add_row(use.title, f"{use.n_asked:,}", f"{use.n_computed:,}", f"{use.n_shared:,}", *seconds)
    table.add_section()
    asked, computed, shared = (sum(getattr(use, name) for use in report.stages) for name in ("n_asked", "n_computed", "n_shared"))
    spent, saved = sum(use.compute_seconds - use.saved_seconds for use in report.stages), sum(use.saved_seconds for use in report.stages)
    table.add_row("all", f"{asked:,}", f"{computed:,}", f"{shared:,}", f"{spent:,.1f}", f"{saved:,.1f}")
    return table


def plan_tables(plan: SweepPlan, estimate: Estimate, folder: str) -> Iterator[RenderableType]:
    """Yield what is said of a sweep before it is started."""
    yield Text(f"{plan.n_trials} trials and {plan.n_finals} final runs in {folder}")
    cells = _table("Cells", ("cell", "trials", "final runs", "parameters", "images"))
    for cell in plan.cells:
        n_train = "unknown" if cell.n_train is None else f"{cell.n_train:,}"
        cells.add_row(cell.name, str(cell.n_trials), str(cell.n_finals), str(cell.n_parameters), n_train)
    yield cells
    headings = ("stage", "asked for", "shared", "stored", "to compute", "hours", "disk")
    stages = _table("Runs of stages, at most: pruned trials cost less", headings)
    known = {stage.stage: stage for stage in estimate.stages}
    for stage in plan.stages:
        cost = known[stage.stage]
        hours = "" if cost.seconds is None else f"{cost.seconds / 3600:.2f}"
        disk = "" if cost.n_bytes is None else decimal(int(cost.n_bytes))
        counts = [f"{n:,}" for n in (stage.n_asked, stage.n_shared, stage.n_stored, len(stage.runs))]
        stages.add_row(stage.stage, *counts, hours, disk)
    yield stages
    yield Text(_total(estimate))
    if estimate.unmeasured:
        yield Text(f"Left out, since the store holds no such work to measure it by: {'; '.join(estimate.unmeasured)}.")
    if plan.unsized:
        yield Text(f"Left out, since the dataset has to be prepared first (`ray-ltdd data prepare`): {', '.join(plan.unsized)}.")


def _total(estimate: Estimate) -> str:
    if estimate.compute_seconds is None or estimate.wall_seconds is None:
        return "How long it takes is not known: nothing like it is in the store yet."
    disk = "" if estimate.n_bytes is None else f", {decimal(int(estimate.n_bytes))} of disk"
    return (
        f"About {_duration(estimate.compute_seconds)} of computation on {' and '.join(estimate.devices)}, "
        f"{_duration(estimate.wall_seconds)} with {estimate.concurrency} trials side by side{disk}."
    )


def _score(score: FinalScore | None) -> str:
    if score is None:
        return ""
    return _percent(score.mean) + (f" ± {100 * score.deviation:.1f}" if score.deviation is not None else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_lines(console: Console, parts: Iterator[RenderableType]) -> None:
    """Print tables as they are and sentences without cutting them."""
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
