"""What a sweep will compute, before anything is started: cells, trials, runs of stages and how many of them are shared."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.errors import InputError
from ray_ltdd.search.cells import Cell
from ray_ltdd.search.config import Scalar
from ray_ltdd.search.load import Sweep
from ray_ltdd.search.sizes import training_counts
from ray_ltdd.search.work import STAGES, StageRun, stage_runs

Counts = Callable[[ExperimentConfig], np.ndarray | None]
Role = Literal["winner", "defaults"]
Pair = tuple[Role, int]
"""Role and number of a final run."""
ROLES: tuple[Role, ...] = ("winner", "defaults")


@dataclass(frozen=True)
class CellPlan:
    """What one cell adds.

    Attributes:
        name: of the cell.
        n_trials: still to be run.
        n_finals: final runs of the winner and of the defaults, still to be run.
        n_parameters: of its space, all conditional branches counted.
        n_train: training images of a trial; None: not known before the dataset is prepared.
    """

    name: str
    n_trials: int
    n_finals: int
    n_parameters: int
    n_train: int | None


@dataclass(frozen=True)
class StagePlan:
    """What a sweep asks of one stage.

    Attributes:
        stage: folder of the store.
        n_asked: runs of the stage all trials and final runs need.
        n_stored: different ones the store holds already (known of experts only).
        runs: different ones to be computed.
    """

    stage: str
    n_asked: int
    n_stored: int
    runs: tuple[StageRun, ...]

    @property
    def n_shared(self) -> int:
        """Runs that need no computation because another trial's serves."""
        return self.n_asked - self.n_stored - len(self.runs)


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will compute, at most: pruned trials cost less.

    Attributes:
        cells: in their order.
        stages: in the paper's order.
        unsized: cells that count as no work, since their numbers of images are not known before their dataset is prepared.
        concurrency: trials at work at one time.
    """

    cells: tuple[CellPlan, ...]
    stages: tuple[StagePlan, ...]
    unsized: tuple[str, ...]
    concurrency: int

    @property
    def n_trials(self) -> int:
        """Trials of all cells."""
        return sum(cell.n_trials for cell in self.cells)

    @property
    def n_finals(self) -> int:
        """Final runs of all cells."""
        return sum(cell.n_finals for cell in self.cells)


def plan_sweep(
    sweep: Sweep,
    done: Mapping[str, int] | None = None,
    stored: AbstractSet[str] = frozenset(),
    tested: Mapping[str, AbstractSet[Pair]] | None = None,
    counts: Counts = training_counts,
) -> SweepPlan:
    """Say what a sweep will compute.

    The points are not known yet: as many as there will be trials are drawn from the space at random, with a fixed seed, and their stages counted.

    Args:
        sweep: the sweep.
        done: trials each cell has already, by name.
        stored: signatures of the experts in the store (`ray_ltdd.search.costs.stored_experts`).
        tested: role and number of the final runs that each cell's winner and defaults have already, by the cell's name.
        counts: tells an experiment's training images of each class, None where it cannot.

    Raises:
        InputError: a split cannot be drawn.
    """
    known: dict[str, np.ndarray | None] = {}
    asked: list[StageRun] = []
    cells = []
    for cell in sweep.cells:
        n_trials = max(sweep.config.trials - (done or {}).get(cell.name, 0), 0)
        # a further trial may find another winner
        over = set() if n_trials else (tested or {}).get(cell.name, set())
        trials, finals = _experiments(cell, n_trials, [pair for pair in product(ROLES, range(sweep.config.final_seeds)) if pair not in over])
        experiments = [*((trial, sweep.config.pruner.rungs) for trial in trials), *((final, ()) for final in finals)]
        sizes = [_counts_of(experiment, cell, counts, known) for experiment in (cell.trial(), *trials, *finals)]
        for (experiment, rungs), count_K in zip(experiments, sizes[1:], strict=True):
            asked += stage_runs(experiment, count_K, rungs) if count_K is not None else []
        n_train = None if sizes[0] is None else int(sizes[0].sum())
        cells.append(CellPlan(cell.name, n_trials, len(finals), len(cell.space), n_train))
    stages = tuple(_stage_plan(stage, [run for run in asked if run.kind.stage == stage], stored) for stage in STAGES)
    unsized = tuple(cell.name for cell in cells if cell.n_train is None)
    return SweepPlan(tuple(cells), tuple(stage for stage in stages if stage.n_asked), unsized, sweep.config.concurrency)


def _experiments(cell: Cell, n_trials: int, finals: Sequence[Pair]) -> tuple[list[ExperimentConfig], list[ExperimentConfig]]:
    """Trials at random points, then final runs, the winner's at the first of them."""
    draw = RandomTrial(random.Random(f"plan {cell.name}"))
    points = [cell.space.suggest(draw) for _ in range(max(n_trials, 1))]
    at = {"winner": points[0], "defaults": None}
    return [cell.trial(point) for point in points[:n_trials]], [cell.final(at[role], number) for role, number in finals]


def _counts_of(experiment: ExperimentConfig, cell: Cell, counts: Counts, known: dict[str, np.ndarray | None]) -> np.ndarray | None:
    name = f"{experiment.data.model_dump_json()} {experiment.split.model_dump_json()}"
    if name not in known:
        try:
            known[name] = counts(experiment)
        except InputError as error:
            raise InputError(f"cell {cell.name}: {error}") from None
    return known[name]


def _stage_plan(stage: str, asked: Sequence[StageRun], stored: AbstractSet[str]) -> StagePlan:
    different = {run.identity: run for run in asked}
    missing = tuple(run for run in different.values() if run.signature not in stored)
    return StagePlan(stage, len(asked), len(different) - len(missing), missing)


@dataclass(frozen=True)
class RandomTrial:
    """Suggests as Optuna's random sampler does, without a study: what `Space.suggest` needs, drawn from `rng`."""

    rng: random.Random

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """Return one of `choices`."""
        return self.rng.choice(choices)

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """Return a number in [low, high]."""
        if step is not None:
            return low + step * self.rng.randint(0, round((high - low) / step))
        drawn = math.exp(self.rng.uniform(math.log(low), math.log(high))) if log else self.rng.uniform(low, high)
        return min(max(drawn, low), high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return a whole number in [low, high]."""
        return round(self.suggest_float(name, low, high, log=True)) if log else self.rng.randrange(low, high + 1, step)
