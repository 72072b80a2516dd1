"""Lines about a stage's progress, where there is no terminal to draw a bar on."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from ray_ltdd.reporting import SECONDS_BETWEEN_LINES, ConsoleReporter, make_console, make_reporter


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def _printed(monkeypatch: pytest.MonkeyPatch, total: int, reports: list[tuple[float, int]]) -> list[str]:
    """The lines of a stage of which the reports (seconds later, images) arrive."""
    clock = _Clock()
    monkeypatch.setattr("ray_ltdd.reporting.time", clock)
    out = io.StringIO()
    reporter = ConsoleReporter(Console(file=out, width=200), quiet=False)
    with reporter.stage("Experts", total) as advance:
        for seconds, n in reports:
            clock.now += seconds
            advance(n)
    return out.getvalue().splitlines()


def test_the_time_left_follows_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _printed(monkeypatch, 10_000, [(0.5, 50)] * 70)
    assert lines[0] == "Experts: 3,050 images of 10,000, about 70 s left (100 images/s)"
    assert lines[-1] == "Experts: done in 35.0 s"


@pytest.mark.parametrize("lump_at", [0, 150])
def test_what_was_done_before_an_interruption_is_no_rate(monkeypatch: pytest.MonkeyPatch, lump_at: int) -> None:
    """One expert's earlier work arrives at once, at the start or later, when a second expert is resumed: neither makes the rest look shorter."""
    reports = [(0.5, 50)] * 250
    reports[lump_at] = (0.5, 50_000)
    lines = _printed(monkeypatch, 100_000, reports)
    assert len(lines) == 125 // SECONDS_BETWEEN_LINES + 1
    assert all(line.endswith("(100 images/s)") for line in lines[:-1] if "left" in line), lines


def test_a_stage_of_unknown_size_says_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _printed(monkeypatch, 0, [(20.0, 10)] * 3)[0] == "Experts: 30 images (0 images/s)"


def test_names_and_paths_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets are no markup and words between colons no emoji, in lines, cells and notes."""
    name, table = "/tmp/runs[red]/[/x]/:car:", Table("name")
    table.add_row(name)
    make_console().print(f"dataset: {name}", soft_wrap=True)
    make_console().print(table)
    make_reporter(quiet=False).note(name)
    printed = capsys.readouterr()
    assert printed.out.count(name) == 2 and printed.err == f"Note: {name}\n"
