"""The record of a sweep: one Optuna study for every cell, all in one journal file. Only the sweep's driver touches it; no Ray here.

A suggestion follows from the sampler's seed, the number of trials before it and their outcomes, not from how often the driver was started: a sampler
that began its random numbers anew at every start would suggest its first points again.
"""

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ray_ltdd.cluster.pruning import make_pruner
from ray_ltdd.errors import InputError
from ray_ltdd.search.cells import Cell, neighbour
from ray_ltdd.search.config import SweepConfig
from ray_ltdd.search.load import Sweep
from ray_ltdd.seeding import derive_seed

JOURNAL = "study.journal"
INTERRUPTED = "the sweep ended while it was at work"
ORIGIN, REASON, RETRY_OF, WARM_POINTS = "origin", "reason", "retry_of", "warm_points"
_STALE_LOCK_SECONDS = 3.0
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def open_journal(path: Path) -> BaseStorage:
    """Open the journal, made when missing, after what a killed driver left half-done: a torn last line, a lock nobody holds.

    Args:
        path: absolute; the caller has made sure that no other driver uses it.
    """
    lock = path.with_name(path.name + ".lock")
    before = _changed(lock)
    if before is not None:
        time.sleep(_STALE_LOCK_SECONDS)
        # whoever lives holds it for milliseconds
        if _changed(lock) == before:
            lock.unlink(missing_ok=True)
    if path.exists() and (whole := path.read_bytes()) and not whole.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(whole.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def _changed(link: Path) -> int | None:
    try:
        return link.lstat().st_mtime_ns
    except FileNotFoundError:
        return None


@dataclass
class CellStudy:
    """One cell's study.

    Attributes:
        cell: the cell.
        config: the sweep's settings.
        study: Optuna's.
    """

    cell: Cell
    config: SweepConfig
    study: optuna.Study

    def trials(self) -> list[FrozenTrial]:
        """All trials by number, also those that wait, or were interrupted and begun again."""
        return self.study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """The trials that count: those at work, and finished ones that were not begun again under another number."""
        again = {trial.user_attrs.get(RETRY_OF) for trial in self.trials()}
        return [trial for trial in self.trials() if trial.state != TrialState.WAITING and trial.number not in again]

    def n_done(self) -> int:
        """Trials that are finished and count."""
        return sum(trial.state in _FINISHED for trial in self.counted())

    def completed(self) -> list[FrozenTrial]:
        """The trials with all their values, most accurate first."""
        found = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(found, key=lambda trial: -trial.values[0])

    def front(self) -> list[FrozenTrial]:
        """The trials no other is better than in every objective, most accurate first; with one objective, the best."""
        return self.completed()[:1] if len(self.config.objectives) == 1 else sorted(self.study.best_trials, key=lambda trial: -trial.values[0])

    def defaults(self) -> FrozenTrial | None:
        """The trial of the settings as they are; None unless it is complete and the space has all their values."""
        found = next((trial for trial in self.completed() if trial.user_attrs.get(ORIGIN) == "defaults"), None)
        return found if found is not None and self.cell.trial(self.point(found)) == self.cell.trial() else None

    def point(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of a trial's parameters, by parameter name."""
        return {name: trial.params[name] for name in (p.name for p in self.cell.space.parameters) if name in trial.params}

    def ask(self, near: "CellStudy | None") -> tuple[Trial, dict[str, Any]]:
        """Begin the next trial; return it and its point.

        Args:
            near: the study of the cell this one may start from.
        """
        self._enqueue_first_points(near)
        # TPE keeps nothing but its random numbers
        self.study.sampler = self._sampler(len(self.counted()))
        trial = self.study.ask()
        return trial, self.cell.space.suggest(trial)

    def _sampler(self, ordinal: int) -> optuna.samplers.BaseSampler:
        settings, seed = self.config.sampler, derive_seed(self.cell.sampler_seed(self.config.seed), "suggestion", ordinal) % 2**32
        if settings.kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # `group` is marked as experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if settings.group:
                return optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed, multivariate=True, group=True)
            return optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed)

    def _enqueue_first_points(self, near: "CellStudy | None") -> None:
        rule = self.config.warm_start
        known = {trial.user_attrs.get(ORIGIN) for trial in self.trials()}
        if rule.defaults and "defaults" not in known:
            self.study.enqueue_trial(self.cell.space.point_of(self.cell.trial()), {ORIGIN: "defaults"})
            # the neighbour has time to finish more trials until this cell's next
            return
        if rule.kind != "neighbour" or near is None:
            return
        points = list(self.study.user_attrs.get(WARM_POINTS, []))
        more = self._points_of(near, points)
        if more:
            points += more
            # kept before they are enqueued: a driver killed in between goes on with the same ones
            self.study.set_user_attr(WARM_POINTS, points)
        for i, point in enumerate(points):
            if f"neighbour {i}" not in known:
                self.study.enqueue_trial(point, {ORIGIN: f"neighbour {i}"})

    def _points_of(self, near: "CellStudy", chosen: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The neighbour's best points that are new here, as many as are still wanted; there may be more once it has finished more trials."""
        known = [*chosen, *(self.point(trial) or trial.system_attrs.get("fixed_params") for trial in self.trials())]
        more: list[dict[str, Any]] = []
        for trial in near.completed():
            point = self.cell.space.transfer(near.point(trial))
            if point not in known and point not in more and len(chosen) + len(more) < self.config.warm_start.points:
                more.append(point)
        return more

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        """Take in a trial's first student's value after `epoch`; return whether the trial is to stop."""
        if not math.isfinite(value):
            return False
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        if epoch in frozen.intermediate_values:
            # told before, by a process that died after it had been let pass
            return False
        trial.report(value, epoch)
        return trial.should_prune()

    def complete(self, trial: Trial, values: Sequence[float]) -> None:
        """Finish a trial; one with a value that is no number has failed."""
        wrong = [f"{name}={value}" for name, value in zip(self.config.objectives, values, strict=False) if not math.isfinite(value)]
        if len(values) != len(self.config.objectives) or wrong:
            self.fail(trial, f"its value is no number: {', '.join(wrong)}" if wrong else f"it reported {len(values)} values")
            return
        self.study.tell(trial, list(values))

    def prune(self, trial: Trial) -> None:
        """Finish a stopped trial; the last value reported is its value."""
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str) -> None:
        """Finish a trial that failed for its own reasons."""
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def end_running(self) -> list[int]:
        """Fail the trials nobody works on any more, and queue their points again; return their numbers."""
        found = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for frozen in found:
            self.fail(Trial(self.study, frozen._trial_id), INTERRUPTED)
        again = {trial.user_attrs.get(RETRY_OF) for trial in self.trials()}
        for frozen in self.trials():
            if frozen.user_attrs.get(REASON) == INTERRUPTED and frozen.number not in again:
                self._enqueue_again(frozen)
        return [frozen.number for frozen in found]

    def retry_failed(self) -> None:
        """Queue the points of all failed trials again."""
        for frozen in self.counted():
            if frozen.state == TrialState.FAIL:
                self._enqueue_again(frozen)

    def _enqueue_again(self, frozen: FrozenTrial) -> None:
        origin = {ORIGIN: frozen.user_attrs[ORIGIN]} if ORIGIN in frozen.user_attrs else {}
        # a driver may have been killed between two parameters of a point that was given
        point = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
        self.study.enqueue_trial(point, {RETRY_OF: frozen.number, **origin})


@dataclass(frozen=True)
class Studies:
    """All cells' studies, by the cell's name, in the sweep's order."""

    by_cell: Mapping[str, CellStudy]

    def __iter__(self) -> Iterator[CellStudy]:
        return iter(self.by_cell.values())

    def __getitem__(self, cell: str) -> CellStudy:
        return self.by_cell[cell]

    def near(self, cell: Cell) -> CellStudy | None:
        """The study of the cell that `cell` may start from."""
        found = neighbour([study.cell for study in self], cell)
        return None if found is None else self[found.name]

    def n_done(self) -> dict[str, int]:
        """Trials of every cell that are finished and count."""
        return {study.cell.name: study.n_done() for study in self}

    def end_running(self) -> int:
        """Fail what nobody works on, see `CellStudy.end_running`; return how many trials that were."""
        return sum(len(study.end_running()) for study in self)

    def retry_failed(self) -> None:
        """Queue the points of all failed trials again."""
        for study in self:
            study.retry_failed()


def open_studies(sweep: Sweep, storage: BaseStorage) -> Studies:
    """Open every cell's study, made when missing.

    Raises:
        InputError: a study of that name has other objectives' directions.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Studies({cell.name: CellStudy(cell, sweep.config, _open(cell, sweep.config, storage)) for cell in sweep.cells})


def _open(cell: Cell, config: SweepConfig, storage: BaseStorage) -> optuna.Study:
    study = optuna.create_study(
        study_name=cell.study_name, storage=storage, directions=config.directions, pruner=make_pruner(config.pruner), load_if_exists=True
    )
    found = [direction.name.lower() for direction in study.directions]
    if found != list(config.directions):
        raise InputError(
            f"the study {cell.study_name} of the sweep {config.name} has the directions {', '.join(found)}, the sweep's objectives have "
            f"{', '.join(config.directions)}: give the sweep another name."
        )
    if "cell" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(config.objectives))
        study.set_user_attr("coordinates", json.dumps(dict(cell.coordinates)))
        study.set_user_attr("cell", cell.name)
    return study


def found_studies(sweep: Sweep) -> list[CellStudy]:
    """The studies that a sweep has already; read without changing anything, also while it runs."""
    path = sweep.folder.absolute() / JOURNAL
    if not path.exists():
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    known = set(optuna.get_all_study_names(storage))
    found = [cell for cell in sweep.cells if cell.study_name in known]
    return [CellStudy(cell, sweep.config, optuna.load_study(study_name=cell.study_name, storage=storage)) for cell in found]
