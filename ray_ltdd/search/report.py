"""What a sweep says while it runs and when it has ended, as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FINAL_RUN = "final run: "
"""Before the reason for which one failed."""


@dataclass(frozen=True)
class CellStatus:
    """Where one cell stands.

    Attributes:
        name: of the cell.
        n_trials: asked for in all.
        n_complete, n_pruned, n_failed, n_running: trials that count.
        best: value of the best trial so far, the first objective; None without one.
        best_trial: its number.
        default: value of the settings without a search, None while it is not known.
        eta_seconds: until its last trial has ended, if trials go on as they did; None while that is not known, or nothing is left.
        device_hours: hosts were busy with its trials, times the devices each of them holds.
    """

    name: str
    n_trials: int
    n_complete: int
    n_pruned: int
    n_failed: int
    n_running: int
    best: float | None
    best_trial: int | None
    default: float | None
    eta_seconds: float | None
    device_hours: float

    @property
    def n_done(self) -> int:
        """Trials that have ended."""
        return self.n_complete + self.n_pruned + self.n_failed


@dataclass(frozen=True)
class SweepStatus:
    """Where a sweep stands.

    Attributes:
        phase: what it does now, in words.
        cells: in their order.
        hosts: the task at work on every host, empty when idle.
        device_unit: GPU-hours or CPU-hours.
    """

    phase: str
    cells: tuple[CellStatus, ...]
    hosts: tuple[str, ...]
    device_unit: str


@dataclass(frozen=True)
class StageUse:
    """What a sweep asked of one stage; work units are counted one by one.

    Attributes:
        title: of the stage.
        n_computed: runs of it that were computed.
        n_shared: runs that were there already, from other trials or earlier.
        compute_seconds: that all asked for took when they were computed.
        saved_seconds: the part of them that was not spent again.
    """

    title: str
    n_computed: int
    n_shared: int
    compute_seconds: float
    saved_seconds: float

    @property
    def n_asked(self) -> int:
        """Runs of it that were asked for."""
        return self.n_computed + self.n_shared

    def plus(self, other: "StageUse") -> "StageUse":
        """Add up two uses of one stage."""
        return StageUse(
            self.title,
            self.n_computed + other.n_computed,
            self.n_shared + other.n_shared,
            self.compute_seconds + other.compute_seconds,
            self.saved_seconds + other.saved_seconds,
        )


@dataclass(frozen=True)
class FoundPoint:
    """A trial worth reporting: its number, its objectives' values by name, the searched parameters that exist at it."""

    trial: int
    values: Mapping[str, float]
    params: Mapping[str, Any]


@dataclass(frozen=True)
class FinalScore:
    """Top-1 accuracy on the test part, a share, over all final seeds and their students: mean, sample deviation (None with one), their number."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """The winner against the defaults, seed by seed: attributes as in `ray_ltdd.results.aggregate.PairedTest`, shares; p None where it has none."""

    n: int
    mean: float
    low: float
    high: float
    p: float | None
    p_signed_rank: float


@dataclass(frozen=True)
class CellReport:
    """The outcome of one cell.

    Attributes:
        status: numbers of trials, best value, value of the defaults.
        winner: the most accurate trial; None where none is complete.
        front: with several objectives, the trials no other is better than in all of them.
        winner_is_defaults: the search found nothing better than the settings as they are.
        winner_test, defaults_test: of the final runs.
        comparison: of the final runs; None where there are fewer than two pairs.
        failures: reasons of trials and final runs that failed, with their numbers of times.
    """

    status: CellStatus
    winner: FoundPoint | None
    front: tuple[FoundPoint, ...]
    winner_is_defaults: bool
    winner_test: FinalScore | None
    defaults_test: FinalScore | None
    comparison: Comparison | None
    failures: Mapping[str, int]

    @property
    def has_failed(self) -> bool:
        """Whether a final run failed, or trials did and left no winner."""
        return any(reason.startswith(FINAL_RUN) for reason in self.failures) or (self.winner is None and self.status.n_failed > 0)


@dataclass(frozen=True)
class SweepReport:
    """The outcome of a sweep.

    Attributes:
        folder: of the sweep.
        objectives: by name, the first one decides.
        cells: in their order.
        stages: what was asked of them, in the order of the paper.
        wall_seconds: of this call.
        device_unit: of the cells' device_hours.
        notes: sentences the user should read.
    """

    folder: str
    objectives: tuple[str, ...]
    cells: tuple[CellReport, ...]
    stages: tuple[StageUse, ...]
    wall_seconds: float
    device_unit: str
    notes: tuple[str, ...]

    @property
    def has_failed(self) -> bool:
        """Whether a cell lacks its outcome because something failed."""
        return any(cell.has_failed for cell in self.cells)

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "n_asked": sum(stage.n_asked for stage in self.stages)}
