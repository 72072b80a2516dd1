"""What Ray Tune is given: a searcher that asks the cells' studies in turn, and a scheduler that tells it every intermediate value.

Both live in the driver. Tune's own snapshots are never restored: the journal is the record, and a continued sweep is a new Tune run.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import Trial
from ray.tune import Stopper
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ray_ltdd.cluster.studies import CellStudy, Studies
from ray_ltdd.cluster.trial import BUSY
from ray_ltdd.search.cells import Cell

DIED = "the process that drove it died"


@dataclass
class Running:
    """A trial at work.

    Attributes:
        study: of its cell.
        trial: Optuna's.
        stopped: it is to be pruned.
        reason: why it failed, once Tune has said so.
    """

    study: CellStudy
    trial: Trial
    stopped: bool = False
    reason: str = DIED


class StudySearcher(Searcher):
    """Multiplexes one study for every cell; see `ray.tune.search.Searcher`.

    Attributes:
        running: trials at work, by Tune's name of them.
    """

    def __init__(self, studies: Studies, order: Iterable[Cell], finished: Callable[[CellStudy, int], None], deadline: float = float("inf")) -> None:
        """Args.

        studies: of all cells.
        order: the cell of each trial still to be started.
        finished: called with study and number of every trial that has ended.
        deadline: on the monotonic clock; no trial starts after it.
        """
        super().__init__()
        self._studies = studies
        self._order = deque(order)
        self._finished = finished
        self._deadline = deadline
        self.running: dict[str, Running] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles it into a file nobody reads
        return {}

    def waiting(self) -> list[str]:
        """The cells of the trials not started yet, by name, in their order."""
        return [cell.name for cell in list(self._order)]

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # FINISHED is a string, whatever the base class says
        """Begin the next trial: the settings Tune hands to the trainable, or that there is none."""
        if not self._order or time.monotonic() >= self._deadline:
            return Searcher.FINISHED
        cell = self._order.popleft()
        study = self._studies[cell.name]
        trial, point = study.ask(self._studies.near(cell))
        self.running[trial_id] = Running(study, trial)
        return {"cell": cell.name, "number": trial.number, "point": json.dumps(point)}

    def report(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take in what a trial reports; return whether it is to stop."""
        known = self.running.get(trial_id)
        if known is None or "epoch" not in result:
            return False
        known.trial.set_user_attr(BUSY, result.get(BUSY, 0.0))
        known.stopped = known.study.report(known.trial, int(result["epoch"]), float(result["value"]))
        return known.stopped

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Finish a trial in its study; one that is unknown, or ended before, is passed over."""
        known = self.running.pop(trial_id, None)
        if known is None:
            return
        if result and BUSY in result:
            known.trial.set_user_attr(BUSY, result[BUSY])
        if known.stopped:
            known.study.prune(known.trial)
        elif error or not result:
            known.study.fail(known.trial, known.reason)
        elif "failed" in result:
            known.study.fail(known.trial, str(result["failed"]))
        else:
            known.study.complete(known.trial, result.get("values", ()))
        self._finished(known.study, known.trial.number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a continued sweep is a new Tune run over the journal."""


class ReportingScheduler(FIFOScheduler):
    """First in, first out; stops what the searcher says is to be stopped, and tells it why trials failed."""

    def __init__(self, searcher: StudySearcher) -> None:
        """Args: who is told."""
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Pass on a report."""
        stop = self._searcher.report(trial.trial_id, result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Keep why the trial's process failed."""
        known = self._searcher.running.get(trial.trial_id)
        if known is not None and trial.error_file:
            lines = [line.strip() for line in Path(trial.error_file).read_text().splitlines() if line.strip()]
            known.reason = f"{DIED}: {lines[-1][:300]}"


class EndOnRequest(Stopper):
    """Ends the whole Tune run once asked to."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __reduce__(self) -> tuple[object, ...]:
        return EndOnRequest, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether a trial is to stop on its own account: never."""
        return False

    def stop_all(self) -> bool:
        """Whether all are to stop."""
        return self.asked.is_set()
