"""What Ray Tune runs for every trial, and Ray for every final run: the pipeline, on the sweep's expert hosts. It computes nothing itself."""

import json
import os
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from ray import tune

from ray_ltdd import pipeline
from ray_ltdd.artifacts import Artifact
from ray_ltdd.cluster.executor import guest_executor
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter, StageRecord
from ray_ltdd.runs import Run, execute, open_run, sizes, student_rows
from ray_ltdd.search.cells import Cell
from ray_ltdd.search.plan import Role
from ray_ltdd.storage import atomic_file

RECORD, BUSY = "trial.json", "busy_seconds"
Point = Mapping[str, Any]


@dataclass(frozen=True)
class TrialSetup:
    """What all trials and final runs of a sweep are told.

    Attributes:
        sweep: its name.
        folder: its folder, absolute.
        group: of the expert hosts.
        cells: by name, all paths in their settings absolute.
        rungs: student epochs after which a trial may be stopped.
    """

    sweep: str
    folder: Path
    group: str
    cells: Mapping[str, Cell]
    rungs: tuple[int, ...]

    def trial_folder(self, cell: Cell, number: int) -> Path:
        """A trial's folder, which `ray-ltdd gallery` and `ray-ltdd evaluate` take for a run's."""
        return self.folder / "trials" / f"{cell.study_name}-{number:04d}"

    def row_fields(self, cell: Cell, role: str, trial: int | None, point: Point | None) -> dict[str, Any]:
        """What the sweep knows of a result row."""
        params = None if point is None else json.dumps(dict(point))
        return {"sweep": self.sweep, "cell": cell.name, "study": cell.study_name, "role": role, "trial": trial, "params": params}


@dataclass(frozen=True)
class Final:
    """A final run: the experiment on the full training split, tested once on the test part.

    Attributes:
        cell: its name.
        role: winner or defaults.
        trial: the winner's number in its study; None for the defaults.
        point: its point; None for the defaults.
        number: of the seed.
    """

    cell: str
    role: Role
    trial: int | None
    point: Point | None
    number: int

    def folder(self, setup: TrialSetup) -> Path:
        """The run's folder."""
        config = setup.cells[self.cell].final(self.point, self.number)
        return setup.folder / "finals" / f"{self.cell}-{self.role}-s{self.number}-{config.fingerprint[:8]}"


def run_trial(config: dict[str, Any], setup: TrialSetup) -> None:
    """Run one trial, and report to Tune: the first student's value after every rung, then the objectives' values or why there are none."""
    # hosts compute; more threads here would take their cores
    torch.set_num_threads(1)
    # Tune gives the next trial to this process once this one's thread has ended, and loses it where that takes longer than 2 s
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "600")
    cell, number = setup.cells[config["cell"]], int(config["number"])
    folder = setup.trial_folder(cell, number)
    try:
        with closing(_reports(setup, cell, number, json.loads(config["point"]))) as reports:
            for report in reports:
                tune.report(report)
    except Exception as error:
        _write_traceback(folder, error)
        tune.report({"failed": sentence(error), BUSY: _read_busy(folder)})


def _reports(setup: TrialSetup, cell: Cell, number: int, point: Point) -> Generator[dict[str, Any], None, None]:
    experiment, folder = cell.trial(point), setup.trial_folder(cell, number)
    fields = setup.row_fields(cell, "trial", number, point)
    with open_run(experiment, SilentReporter(), folder, partial(guest_executor, group=setup.group), fields) as run:
        rows: list[dict[str, Any]] = []
        try:
            distilled = pipeline.distil(experiment, run.bench, run.executor)
            image_bytes, label_bytes = sizes(run, distilled)
            part: Artifact | None = None
            for part in pipeline.train_in_parts(experiment, run.bench, run.executor, distilled, setup.rungs):
                rows = student_rows(run, "distilled", [part], image_bytes, label_bytes)
                _write_record(run, rows)
                value = _accuracy(cell.objectives[0], part)
                yield {"epoch": int(part.record["epoch"]), "value": value, BUSY: _busy(run.executor.records())}
            students = pipeline.evaluate(experiment, run.bench, run.executor, distilled, part).students["distilled"]
            rows = student_rows(run, "distilled", students, image_bytes, label_bytes)
        finally:
            _write_record(run, rows)
        values = [_value(name, students, run.executor.records(), label_bytes) for name in cell.objectives]
        yield {"values": values, BUSY: _busy(run.executor.records())}


def _value(objective: str, students: Sequence[Artifact], records: Sequence[StageRecord], label_bytes: int) -> float:
    if objective == "seconds":
        return sum(record.compute_seconds for record in records if record.title != "Experts")
    if objective == "label_bytes":
        return float(label_bytes)
    return fmean(_accuracy(objective, student) for student in students)


def _accuracy(objective: str, student: Artifact) -> float:
    if objective == "mean_per_class":
        return fmean(value for value in student.record["per_class"] if value is not None)
    return float(student.record["top1"])


def _busy(records: Sequence[StageRecord]) -> float:
    return sum(record.busy_seconds for record in records)


def _write_record(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    record = {"rows": list(rows), "stages": {record.title: record.describe() for record in run.executor.records()}}
    with atomic_file(run.folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record))


def read_record(folder: Path) -> dict[str, Any]:
    """Read what a trial left in its folder: `rows`, and `stages` by title; both empty where it left nothing."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {"rows": [], "stages": {}}
    return record


def _read_busy(folder: Path) -> float:
    return sum(stage[BUSY] for stage in read_record(folder)["stages"].values())


def sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _write_traceback(folder: Path, error: Exception) -> None:
    path = folder / "errors" / "trial.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)))


def run_final(final: Final, setup: TrialSetup) -> str | None:
    """Run one final run, which leaves all that a run leaves; return why it failed, None where it did not."""
    torch.set_num_threads(1)
    cell = setup.cells[final.cell]
    fields = setup.row_fields(cell, final.role, final.trial, final.point)
    try:
        config = cell.final(final.point, final.number)
        with open_run(config, SilentReporter(), final.folder(setup), partial(guest_executor, group=setup.group), fields) as run:
            execute(run)
    except Exception as error:
        _write_traceback(final.folder(setup), error)
        return sentence(error)
    return None
