"""What a sweep shows: a live table on a terminal, lines elsewhere, tables at the end; nothing wider than a terminal."""

import io
from dataclasses import replace

from rich.console import Console

from ray_ltdd.reporting import ConsoleReporter
from ray_ltdd.search.estimate import Estimate, StageEstimate
from ray_ltdd.search.plan import CellPlan, StagePlan, SweepPlan
from ray_ltdd.search.report import FINAL_RUN, CellReport, CellStatus, Comparison, FinalScore, FoundPoint, StageUse, SweepReport, SweepStatus
from ray_ltdd.search.work import CostKind, StageRun
from ray_ltdd.sweep_view import ConsoleView, plan_tables, print_lines, report_tables

NAME = "cifar100_lt-if100-ipc50"
RUNNING = CellStatus(NAME, 20, 8, 3, 1, 2, 0.6543, 7, 0.6012, 1800.0, 12.345)
WAITING = CellStatus("other", 20, 0, 0, 0, 0, None, None, None, None, 0.0)
STATUS = SweepStatus("searching", (RUNNING, WAITING), ("recovery of classes 0, 1", ""), "GPU-hours")


def view(is_terminal, quiet=False):
    """A view 80 columns wide, and what it has written."""
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=is_terminal, color_system=None, legacy_windows=False)
    return ConsoleView(ConsoleReporter(console, quiet), quiet), text


def shown(parts):
    text = io.StringIO()
    print_lines(Console(file=text, width=80), parts)
    return text.getvalue()


def test_a_terminal_gets_a_table_that_is_redrawn():
    live, text = view(is_terminal=True)
    with live.open():
        live.update(STATUS)
        first = text.getvalue()
        live.update(STATUS)
    assert all(word in first for word in (NAME, "12/20", "65.4 (#7)", "30 min", "12.35", "GPU-hours", "1 of 2 expert hosts at work"))
    assert "…" not in first
    assert "\x1b[1A" in text.getvalue(), "drawn over the first"


def test_a_log_gets_a_line_a_cell_now_and_then(monkeypatch):
    plain, text = view(is_terminal=False)
    with plain.open():
        plain.update(STATUS)
        plain.update(STATUS)
    lines = text.getvalue().splitlines()
    assert len(lines) == 3 and lines[0] == "searching"
    wanted = "12 of 20 trials done, 2 running, 3 pruned, 1 failed, best 65.4 (trial 7), 12.35 GPU-hours, about 30 min left"
    assert lines[1] == f"  {NAME}: {wanted}"
    monkeypatch.setattr("ray_ltdd.sweep_view.SECONDS_BETWEEN_LINES", 0.0)
    plain.update(STATUS)
    assert len(text.getvalue().splitlines()) == 3, "what has not changed is not said again"
    plain.update(SweepStatus("testing", STATUS.cells, (), "GPU-hours"))
    assert text.getvalue().splitlines()[3:] == ["testing"]
    plain.update(SweepStatus("testing", (WAITING,), (), "GPU-hours"))
    assert len(text.getvalue().splitlines()) == 6


def test_quiet_shows_nothing():
    for is_terminal in (True, False):
        silent, text = view(is_terminal, quiet=True)
        with silent.open():
            silent.update(STATUS)
        assert text.getvalue() == ""


def test_the_outcome():
    point = FoundPoint(7, {"top1": 0.6543, "seconds": 1234.5}, {"recover.steps": 100, "relabel.tau": 0.123456, "select_crops.max_rounds": None})
    other = FoundPoint(3, {"top1": 0.5, "seconds": 100.0}, {"recover.steps": 20})
    test = Comparison(3, 0.0123, -0.0046, 0.0291, 0.0869, 0.25)
    scores = (FinalScore(0.5512, 0.0123, 9), FinalScore(0.5389, 0.0212, 9))
    first = CellReport(RUNNING, point, (point, other), False, *scores, test, {"the loss became NaN": 2})
    second = CellReport(WAITING, None, (), False, None, None, None, {})
    third = CellReport(WAITING, point, (), True, *scores[:1] * 2, Comparison(3, 0.0, 0.0, 0.0, 1.0, 1.0), {})
    uses = (StageUse("Experts", 4, 44, 480.0, 440.0), StageUse("Experts' accuracy", 2, 2, 1.0, 0.5))
    text = shown(report_tables(SweepReport("f", ("top1", "seconds"), (first, second, third), uses, 60.0, "GPU-hours", ("max_hours=1 were over",))))
    assert not any(cell.has_failed for cell in (first, second, third))
    assert replace(second, status=RUNNING).has_failed, "a trial failed, and none is the winner"
    assert replace(first, failures={f"{FINAL_RUN}no space left": 1}).has_failed
    for expected in (
        "55.1 ± 1.2",
        "+1.2 [-0.5, +2.9]",
        "0.087",
        "trial 7 (top1 65.4, seconds 1,234): recover.steps=100 relabel.tau=0.1235 select_crops.max_rounds=null",
        "on the front: trial 3 (top1 50.0, seconds 100)",
        "other: no trial has ended with a value",
        f"Failed 2 times in {NAME}: the loss became NaN",
        "the defaults won",
        "Note: max_hours=1 were over",
    ):
        assert expected in text, expected
    assert [cell.strip() for cell in next(line for line in text.splitlines() if "│ all" in line).split("│")][1:-1] == [
        "all",
        "52",
        "6",
        "46",
        "40.5",
        "440.5",
    ]
    assert all(len(line) <= 80 for line in text.splitlines() if "│" in line or "┃" in line) and "…" not in text


def test_the_plan():
    run = StageRun(CostKind("experts"), "a", 1, 1)
    plan = SweepPlan((CellPlan(NAME, 12, 6, 8, 10847), CellPlan("other", 1, 0, 2, None)), (StagePlan("experts", 30, 2, (run,)),), ("other",), 2)
    known = Estimate((StageEstimate("experts", 7200.0, 1e6, ("students of ConvNet-3 on x",)),), 2, ("H100",))
    text = shown(plan_tables(plan, known, "runs/x"))
    for expected in ("13 trials and 6 final runs", "10,847", "unknown", "About 2.0 h of computation on H100, 60 min with 2 trials", "1.0 MB"):
        assert expected in text, expected
    assert "students of ConvNet-3 on x" in text and "other" in text.splitlines()[-1]
    unknown = Estimate((StageEstimate("experts", None, None, ("experts of ConvNet-3",)),), 2, ())
    assert "How long it takes is not known" in shown(plan_tables(plan, unknown, "runs/x"))
