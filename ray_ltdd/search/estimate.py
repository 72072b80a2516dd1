"""How long a planned sweep takes and how much disk it fills, from what its stages have cost before. What was never measured is not guessed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray_ltdd.models.config import ModelConfig
from ray_ltdd.search.costs import StageCost
from ray_ltdd.search.plan import StagePlan, SweepPlan
from ray_ltdd.search.work import CostKind, StageRun


@dataclass(frozen=True)
class Rate:
    """What work of one kind costs on one device.

    Attributes:
        seconds: for each unit of work.
        n_bytes: for each unit of size.
        n_measured: artifacts it was measured on.
        device: the device.
    """

    seconds: float
    n_bytes: float
    n_measured: int
    device: str


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will cost.

    Attributes:
        stage: folder of the store.
        seconds, n_bytes: of the runs whose kind has been measured; None: of none.
        unmeasured: what the others are, in words.
    """

    stage: str
    seconds: float | None
    n_bytes: float | None
    unmeasured: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """What a sweep will cost, as far as that has been measured.

    Attributes:
        stages: in the paper's order.
        concurrency: trials at work at one time.
        devices: that the costs were measured on.
    """

    stages: tuple[StageEstimate, ...]
    concurrency: int
    devices: tuple[str, ...]

    @property
    def compute_seconds(self) -> float | None:
        """Seconds of computation, one after another; None when nothing has been measured."""
        return _total(stage.seconds for stage in self.stages)

    @property
    def wall_seconds(self) -> float | None:
        """`compute_seconds` over the concurrency: what it takes if as many trials as that really run side by side without slowing each other."""
        total = self.compute_seconds
        return None if total is None else total / self.concurrency

    @property
    def n_bytes(self) -> float | None:
        """Bytes the store will grow by."""
        return _total(stage.n_bytes for stage in self.stages)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """What the numbers leave out."""
        return tuple(text for stage in self.stages for text in stage.unmeasured)


def rates(costs: Sequence[StageCost]) -> Mapping[CostKind, Rate]:
    """Return what each kind of work costs: total seconds over total work, on the device that did such work last."""
    by_kind: dict[CostKind, list[StageCost]] = defaultdict(list)
    for cost in costs:
        by_kind[cost.kind].append(cost)
    return {kind: _rate(measured) for kind, measured in by_kind.items()}


def _rate(measured: Sequence[StageCost]) -> Rate:
    device = max(measured, key=lambda cost: cost.created).device
    here = [cost for cost in measured if cost.device == device]
    work, size = sum(cost.work for cost in here), sum(cost.size for cost in here)
    return Rate(sum(cost.seconds for cost in here) / max(work, 1), sum(cost.n_bytes for cost in here) / max(size, 1), len(here), device)


def estimate(plan: SweepPlan, costs: Sequence[StageCost]) -> Estimate:
    """Estimate time and disk of a plan.

    A kind of work is one stage on one dataset and image size with one set of networks; its time grows with the images passed (epochs, steps, crops
    included) and its bytes with the distilled images. Work whose kind is not among `costs` is left out of the sums and named instead.
    """
    known = rates(costs)
    used = {known[run.kind].device for stage in plan.stages for run in stage.runs if run.kind in known}
    return Estimate(tuple(_estimate(stage, known) for stage in plan.stages), plan.concurrency, tuple(sorted(used)))


def _estimate(stage: StagePlan, known: Mapping[CostKind, Rate]) -> StageEstimate:
    measured = [run for run in stage.runs if run.kind in known]
    left_out = dict.fromkeys(_in_words(run) for run in stage.runs if run.kind not in known)
    if not measured and stage.runs:
        return StageEstimate(stage.stage, None, None, tuple(left_out))
    seconds = sum(run.work * known[run.kind].seconds for run in measured)
    n_bytes = sum(run.size * known[run.kind].n_bytes for run in measured)
    return StageEstimate(stage.stage, seconds, n_bytes, tuple(left_out))


def _in_words(run: StageRun) -> str:
    networks = dict.fromkeys(ModelConfig.model_validate_json(part).label for part in run.kind.network.split(" + ") if part)
    return " ".join([run.kind.stage, *(["of", " and ".join(networks)] if networks else []), *(["on", run.kind.dataset] if run.kind.dataset else [])])


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
