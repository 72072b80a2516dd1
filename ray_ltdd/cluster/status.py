"""Where a sweep stands, read from its studies while it runs, and its outcome when it has ended."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from statistics import fmean

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from ray_ltdd.cluster.studies import REASON, CellStudy, Studies
from ray_ltdd.cluster.trial import BUSY, Final, TrialSetup
from ray_ltdd.placement import ClusterConfig
from ray_ltdd.results.aggregate import compared_over_seeds
from ray_ltdd.results.load import load_results
from ray_ltdd.search.load import Sweep
from ray_ltdd.search.report import FINAL_RUN, CellReport, CellStatus, Comparison, FinalScore, FoundPoint, SweepStatus

GPU_SHARE = "gpu_share"
_TRACEBACK = re.compile(r"; traceback: [^;)]*")
"""Every failure's own file, which would keep equal failures apart."""
N_RECENT = 20
"""Trials whose mean duration tells how long others will take."""


class Meter:
    """Measures a sweep.

    Attributes:
        waiting: gives the cells of the trials that have not started, in their order.
        device_unit: GPU-hours or CPU-hours.
    """

    def __init__(self, sweep: Sweep, studies: Studies, cluster: ClusterConfig) -> None:
        """Args: the sweep, its studies, what a host takes."""
        self._sweep = sweep
        self._studies = studies
        self._cluster = cluster
        self._devices_per_host = cluster.cpus_per_worker
        # Optuna's times are local and naive
        self._started = datetime.now()
        self.waiting: Callable[[], list[str]] = list
        self.device_unit = "CPU-hours"
        self._set_devices(next((study.study.user_attrs.get(GPU_SHARE, 0.0) for study in studies), 0.0))

    def set_devices(self, gpu_share: float) -> None:
        """Take in what share of a GPU a host has, 0: none; the studies remember it for calls that start no host."""
        self._set_devices(gpu_share)
        for study in self._studies:
            if study.study.user_attrs.get(GPU_SHARE) != gpu_share:
                study.study.set_user_attr(GPU_SHARE, gpu_share)

    def _set_devices(self, gpu_share: float) -> None:
        if gpu_share:
            self._devices_per_host, self.device_unit = gpu_share, "GPU-hours"

    def status(self, phase: str, hosts: Mapping[str, str]) -> SweepStatus:
        """Say where all cells stand."""
        waiting, seconds = self.waiting(), self._seconds_a_trial()
        cells = tuple(self._cell(study, waiting, seconds) for study in self._studies)
        return SweepStatus(phase, cells, tuple(hosts[name] for name in sorted(hosts)), self.device_unit)

    def _seconds_a_trial(self) -> float | None:
        ended = [t for study in self._studies for t in study.counted() if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        here = sorted((t for t in ended if t.datetime_start and t.datetime_start >= self._started), key=_end)[-N_RECENT:]
        durations = [(_end(t) - t.datetime_start).total_seconds() for t in here if t.datetime_start]
        return fmean(durations) if durations else None

    def _cell(self, study: CellStudy, waiting: Sequence[str], seconds: float | None) -> CellStatus:
        counted, name = study.counted(), study.cell.name
        numbers = Counter(trial.state for trial in counted)
        best, default = next(iter(study.completed()), None), study.defaults()
        last = max((i for i, cell in enumerate(waiting) if cell == name), default=-1)
        left = last + 1 + (numbers[TrialState.RUNNING] > 0)
        return CellStatus(
            name,
            max(self._sweep.config.trials, study.n_done()),
            numbers[TrialState.COMPLETE],
            numbers[TrialState.PRUNED],
            numbers[TrialState.FAIL],
            numbers[TrialState.RUNNING],
            best.values[0] if best else None,
            best.number if best else None,
            default.values[0] if default else None,
            None if seconds is None or not left else seconds * max(left / self._sweep.config.concurrency, 1),
            self._devices_per_host * sum(trial.user_attrs.get(BUSY, 0.0) for trial in study.trials()) / 3600,
        )

    def cell(self, study: CellStudy) -> CellStatus:
        """Say where one cell stands."""
        return self._cell(study, self.waiting(), None)

    @property
    def studies(self) -> Studies:
        """The sweep's studies."""
        return self._studies


def _end(trial: FrozenTrial) -> datetime:
    return trial.datetime_complete or datetime.max


def cell_reports(meter: Meter, finals: Sequence[Final], failed: Sequence[tuple[Final, str]], setup: TrialSetup) -> tuple[CellReport, ...]:
    """The outcome of every cell, its final runs' rows read from their folders."""
    return tuple(
        _cell_report(meter, study, [f for f in finals if f.cell == study.cell.name], [why for f, why in failed if f.cell == study.cell.name], setup)
        for study in meter.studies
    )


def _cell_report(meter: Meter, study: CellStudy, finals: Sequence[Final], failed: Sequence[str], setup: TrialSetup) -> CellReport:
    front = [_found(study, trial) for trial in study.front()]
    rows = {role: _rows([final for final in finals if final.role == role], setup) for role in ("winner", "defaults")}
    reasons = [trial.user_attrs.get(REASON, "") for trial in study.counted() if trial.state == TrialState.FAIL]
    return CellReport(
        meter.cell(study),
        front[0] if front else None,
        tuple(front) if len(study.config.objectives) > 1 else (),
        bool(front) and study.cell.trial(front[0].params) == study.cell.trial(),
        _score(rows["winner"]),
        _score(rows["defaults"]),
        _compare(rows["winner"], rows["defaults"]),
        dict(Counter([*(_TRACEBACK.sub("", reason) for reason in reasons), *(FINAL_RUN + reason for reason in failed)])),
    )


def _found(study: CellStudy, trial: FrozenTrial) -> FoundPoint:
    return FoundPoint(trial.number, dict(zip(study.config.objectives, trial.values, strict=True)), study.point(trial))


def _rows(finals: Sequence[Final], setup: TrialSetup) -> pd.DataFrame | None:
    folders = [folder for final in finals if (folder := final.folder(setup) / "results").is_dir()]
    if not folders:
        return None
    rows = load_results(folders)
    # `ray-ltdd evaluate` may have added other networks, without a role
    return rows[(rows["method"] == "distilled") & rows["role"].notna()]


def _score(rows: pd.DataFrame | None) -> FinalScore | None:
    if rows is None or rows.empty:
        return None
    deviation = float(rows["top1"].std()) if len(rows) > 1 else None
    return FinalScore(float(rows["top1"].mean()), deviation, len(rows))


def _compare(winner: pd.DataFrame | None, defaults: pd.DataFrame | None) -> Comparison | None:
    test = compared_over_seeds(winner, defaults) if winner is not None and defaults is not None else None
    if test is None:
        return None
    return Comparison(test.n, test.mean, test.low, test.high, None if math.isnan(test.p) else test.p, test.p_signed_rank)
