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


@pytest.mark.parametrize("lumps_at", [[0], [150], [0, 1], [0, 3, 7], [70, 71]])
def test_what_was_done_before_an_interruption_is_no_rate(monkeypatch: pytest.MonkeyPatch, lumps_at: list[int]) -> None:
    """An expert's earlier work arrives at once, at the start or when it is resumed later, alone or with others': none makes the rest look shorter."""
    reports = [(0.5, 50)] * 250
    for lump_at in lumps_at:
        reports[lump_at] = (0.5, 20_000)
    lines = _printed(monkeypatch, 100_000, reports)
    assert len(lines) == 125 // SECONDS_BETWEEN_LINES + 1
    rates = [float(line.rsplit("(", 1)[1].split()[0]) for line in lines[:-1]]
    assert all("left" in line for line in lines[:-1]) and all(96 <= rate <= 100 for rate in rates), lines


def test_what_a_dead_worker_takes_back_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work since the last checkpoint is lost with a host: the count falls, the rate stays that of the others."""
    reports = [(0.5, 50)] * 250
    reports[100] = (0.5, -6_000)
    lines = _printed(monkeypatch, 100_000, reports)
    assert lines[1] == "Experts: 0 images of 100,000, about 1,008 s left (99 images/s)"
    assert lines[2].endswith("about 970 s left (100 images/s)")


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
