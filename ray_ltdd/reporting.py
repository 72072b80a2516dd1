"""Progress for people: a bar per stage on a terminal, plain lines elsewhere, nothing when quiet."""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ray_ltdd.stages.progress import Advance

SECONDS_BETWEEN_LINES = 30.0
SHORT_STAGE_SECONDS = 0.5
SECONDS_BEFORE_RATE = 2.0
LINES_OF_A_RATE = 9
TIMES_A_USUAL_REPORT = 100
MOST_WORKERS_SHOWN = 8


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Show the recent speed, or the mean once finished."""
        # two reports at almost the same time, as from two workers, are no rate yet
        speed = task.finished_speed or task.speed if (task.elapsed or 0) > SECONDS_BEFORE_RATE else None
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="cyan")


class _WorkersProgress(Progress):
    """A bar, and below it a line for every worker."""

    workers: Sequence[str] = ()

    def get_renderables(self) -> Iterator[RenderableType]:
        yield from super().get_renderables()
        for line in self.workers:
            yield Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True)


class ConsoleReporter:
    """Shows stages on a console; see `ray_ltdd.executor.Reporter`."""

    def __init__(self, console: Console, quiet: bool) -> None:
        """Args: the console; quiet shows nothing."""
        self.console = console
        self._quiet = quiet
        self._progress: _WorkersProgress | None = None
        self._lines: _Lines | None = None

    @contextmanager
    def stage(self, title: str, n_images: int) -> Iterator[Advance]:
        """Show one stage; a total of 0 is unknown."""
        if self._quiet:
            yield lambda _: None
        elif self.console.is_terminal:
            with self._bar() as progress:
                bar = progress.add_task(title, total=n_images or None)
                self._progress = progress
                try:
                    yield lambda n: progress.advance(bar, n)
                finally:
                    self._progress = None
        else:
            self._lines = _Lines(self.console, title, n_images)
            try:
                yield self._lines.advance
                self._lines.close()
            finally:
                self._lines = None

    def workers(self, lines: Sequence[str]) -> None:
        """Show what every worker does: under the bar on a terminal, after the next line elsewhere."""
        if self._progress is not None:
            more = len(lines) - MOST_WORKERS_SHOWN
            self._progress.workers = [*lines[:MOST_WORKERS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        elif self._lines is not None:
            self._lines.workers = list(lines)

    def note(self, sentence: str) -> None:
        """Print a line."""
        if not self._quiet:
            self.console.print(f"Note: {sentence}", highlight=False, soft_wrap=True)

    def _bar(self) -> _WorkersProgress:
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        return _WorkersProgress(*columns, console=self.console, transient=True)


class _Lines:
    def __init__(self, console: Console, title: str, n_images: int) -> None:
        self._console, self._title, self._total = console, title, n_images
        self._done = 0
        self._reports: list[int] = []
        self.workers: list[str] = []
        self._started = time.monotonic()
        self._printed: float | None = None
        self._rates: deque[float] = deque(maxlen=LINES_OF_A_RATE)

    def advance(self, n: int) -> None:
        now = time.monotonic()
        self._done += n
        if self._printed is None:
            # the time before the first report, and what an interrupted run had done, which is in it, are no work of now
            self._printed = now
            return
        self._reports.append(n)
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            # every resumed worker tells its earlier work in one report, sooner or later, and of a dead one it is taken back
            most = TIMES_A_USUAL_REPORT * statistics.median_low(self._reports)
            self._rates.append(sum(report for report in self._reports if abs(report) <= most) / (now - self._printed))
            self._reports, self._printed = [], now
            rate = statistics.median(self._rates)
            of = f" of {self._total:,}, about {(self._total - self._done) / rate:,.0f} s left" if self._total and rate else ""
            self._console.print(f"{self._title}: {self._done:,} images{of} ({rate:,.0f} images/s)", highlight=False, soft_wrap=True)
            for line in self.workers if len(self.workers) > 1 else []:
                self._console.print(f"  {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        seconds = time.monotonic() - self._started
        if seconds >= SHORT_STAGE_SECONDS:
            self._console.print(f"{self._title}: done in {seconds:.1f} s", highlight=False, soft_wrap=True)


def make_console(stderr: bool = False) -> Console:
    """A console that shows names and paths as they are: brackets in them are no markup, words between colons no emoji."""
    return Console(stderr=stderr, markup=False, emoji=False)


def make_reporter(quiet: bool) -> ConsoleReporter:
    """A reporter on standard error, so that standard output holds the outcome alone."""
    return ConsoleReporter(make_console(stderr=True), quiet)
