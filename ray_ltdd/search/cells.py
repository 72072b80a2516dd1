"""The cells of a sweep: one Optuna study for each benchmark, imbalance factor and number of images per class, or whatever coordinates are given."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray_ltdd.config import ExperimentConfig, validate
from ray_ltdd.search.space import Space
from ray_ltdd.seeding import derive_seed
from ray_ltdd.yaml_files import with_settings

_SHORT = {"split.imbalance_factor": "if", "distill.images_per_class": "ipc"}


@dataclass(frozen=True)
class Cell:
    """One study.

    Attributes:
        name: unique in the sweep, such as `cifar10_lt-if100-ipc10`; may stand in file names.
        base: the base's dataset, or the name of its file where several bases have one dataset.
        coordinates: the cell's values by dotted name.
        position: their places in the sweep's lists, the base's first.
        trial_values, final_values: settings of a trial and of a final run before any searched value, nested as in a file.
        space: what is searched here.
        objectives: names of the study's objectives.
    """

    name: str
    base: str
    coordinates: Mapping[str, Any]
    position: tuple[int, ...]
    trial_values: Mapping[str, Any]
    final_values: Mapping[str, Any]
    space: Space
    objectives: tuple[str, ...]

    def trial(self, point: Mapping[str, Any] | None = None) -> ExperimentConfig:
        """Return the experiment of a trial at a point of the space (None: the settings as they are), scored on the validation part.

        Raises:
            InputError: a rule that couples settings forbids the values between the ends of their ranges, see `ray_ltdd.search.branches.corners`.
        """
        return validate(with_settings(self.trial_values, self.space.settings(point) if point is not None else {}), self.name)

    def final(self, point: Mapping[str, Any] | None = None, number: int = 0) -> ExperimentConfig:
        """Return final run `number` at a point (None: the defaults), trained on the full training split, tested on the test part.

        Runs of one number have one seed, whatever the point: they are a pair. No trial has that seed.
        """
        values = with_settings(self.final_values, self.space.settings(point) if point is not None else {})
        seed = self._config.seed + 1 + number
        return validate({**values, "seed": seed}, self.name)

    @cached_property
    def _config(self) -> ExperimentConfig:
        return self.trial()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 8 hex digits) of what a study must not mix: the trials' settings, the space, the objectives."""
        space = [[p.name, p.sets, type(p.domain).__name__, vars(p.domain), p.when] for p in self.space.parameters]
        content = [self._config.fingerprint, space, self.objectives]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def study_name(self) -> str:
        """CELL-FINGERPRINT: a sweep whose space was changed goes on in a new study beside the old one."""
        return f"{self.name}-{self.fingerprint}"

    def sampler_seed(self, seed: int) -> int:
        """Return the sampler's seed, below 2^32, in a sweep with this `seed`."""
        return derive_seed(seed, "sweep", self.name) % 2**32


def cell_name(base: str, coordinates: Mapping[str, Any], short: bool = True) -> str:
    """Return BASE-ifX-ipcY-..., other coordinates by the last part of their dotted name, or by all of it where `short` is false."""
    parts = [f"{_SHORT.get(name) or (name.rpartition('.')[2] if short else name)}{_text(value)}" for name, value in coordinates.items()]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join([base, *parts]))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None or isinstance(value, bool) else str(value)


def snake(lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield all positions of a grid so that each differs from the one before by one step of one coordinate."""
    if not lengths:
        yield ()
        return
    rest = list(snake(lengths[1:]))
    for i in range(lengths[0]):
        yield from ((i, *position) for position in (rest if i % 2 == 0 else reversed(rest)))


def neighbour(cells: Sequence[Cell], cell: Cell) -> Cell | None:
    """Return the cell that `cell` may start from, None for the first.

    Of the cells before it that differ from it by one step of one coordinate: the first one of the same base, or else the first one.
    """
    before = cells[: cells.index(cell)]
    near = [other for other in before if sum(abs(a - b) for a, b in zip(other.position, cell.position, strict=True)) == 1]
    return min(near, key=lambda other: other.position[0] != cell.position[0], default=None)


def interleave(cells: Sequence[Cell], trials: int, head_start: int = 0, done: Mapping[str, int] | None = None) -> Iterator[Cell]:
    """Yield the cell of each trial still to be started: round robin, so that cells advance side by side.

    A sweep that is continued goes on in the order it would have had undisturbed: what is done already is passed over in it.

    Args:
        cells: in the sweep's order.
        trials: of every cell in all.
        head_start: a cell joins once its neighbour has had so many trials (or all of them) started.
        done: trials each cell has already, by name.
    """
    passed_over = dict(done or {})
    for cell in _undisturbed(cells, trials, head_start):
        if passed_over.get(cell.name, 0) > 0:
            passed_over[cell.name] -= 1
        else:
            yield cell


def _undisturbed(cells: Sequence[Cell], trials: int, head_start: int) -> Iterator[Cell]:
    started = {cell.name: 0 for cell in cells}
    neighbours = {cell.name: neighbour(cells, cell) for cell in cells}
    while any(n < trials for n in started.values()):
        for cell in cells:
            first = neighbours[cell.name]
            may_start = first is None or started[first.name] >= min(head_start, trials)
            if may_start and started[cell.name] < trials:
                started[cell.name] += 1
                yield cell
