"""A search space: parameters, some of which exist only under others, suggested one after another in a fixed order."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.search.config import Scalar
from ray_ltdd.search.names import value_of

_UNSET = object()
Condition = tuple[str, tuple[Scalar, ...]]


class Trial(Protocol):
    """What a space asks of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Scalar]) -> Any:
        """Return one of `choices`."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """Return a number in [low, high]."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Return a whole number in [low, high]."""
        ...


@dataclass(frozen=True)
class Choice:
    """A parameter with a few values."""

    values: tuple[Scalar, ...]

    def suggest(self, trial: Trial, name: str) -> Scalar:
        """Ask the trial for a value."""
        value: Scalar = trial.suggest_categorical(name, self.values)
        return value

    def contains(self, value: Any) -> bool:
        """Whether `value` is one of them; true is not 1 here."""
        return any(isinstance(value, bool) == isinstance(own, bool) and value == own for own in self.values)

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """All values: each has to be tried where a space is checked."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A numerical parameter in [low, high]; `whole` numbers, or floats; `step` None: continuous."""

    low: float
    high: float
    whole: bool = False
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Trial, name: str) -> Scalar:
        """Ask the trial for a value."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether `value` is a number the range can give."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not self.low <= value <= self.high:
            return False
        if self.whole and not float(value).is_integer():
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return abs(steps - round(steps)) < 1e-6

    @property
    def ends(self) -> tuple[Scalar, ...]:
        """Both bounds."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


@dataclass(frozen=True)
class Parameter:
    """One searched parameter.

    Attributes:
        name: in the study.
        sets: dotted names of the settings that take its value.
        domain: its values.
        when: it exists where each named parameter has one of the values.
    """

    name: str
    sets: tuple[str, ...]
    domain: Choice | Range
    when: tuple[Condition, ...] = ()

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether it exists beside the parameters suggested before it."""
        return all(_is_one_of(values.get(name, _UNSET), wanted) for name, wanted in self.when)


@dataclass(frozen=True)
class Space:
    """The parameters of one cell, each after those it depends on. Picklable."""

    parameters: tuple[Parameter, ...]

    def __len__(self) -> int:
        """Number of parameters, those of all conditional branches counted."""
        return len(self.parameters)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Ask the trial for every parameter that exists, in the space's order; return its values by parameter name."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.exists(values):
                values[parameter.name] = parameter.domain.suggest(trial, parameter.name)
        return values

    def existing(self, values: Mapping[str, Any]) -> Iterator[Parameter]:
        """Yield the parameters that exist beside `values`."""
        return (parameter for parameter in self.parameters if parameter.exists(values))

    def contains(self, values: Mapping[str, Any]) -> bool:
        """Whether `values` is a whole point: exactly the parameters that exist, each in its domain."""
        existing = list(self.existing(values))
        whole = {parameter.name for parameter in existing} == set(values)
        return whole and all(parameter.domain.contains(values[parameter.name]) for parameter in existing)

    def transfer(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of another space's point this space has, to be enqueued; Optuna draws what is missing.

        A value outside its domain here is dropped, and with it the parameters that exist only under it.
        """
        kept: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.exists(kept) and parameter.domain.contains(values.get(parameter.name, _UNSET)):
                kept[parameter.name] = values[parameter.name]
        return kept

    def point_of(self, config: ExperimentConfig) -> dict[str, Any]:
        """Return the values that the settings of `config` amount to, to be enqueued; what lies outside its domain is left out."""
        point: dict[str, Any] = {}
        for parameter in self.parameters:
            found = [value_of(config, name) for name in parameter.sets]
            if parameter.exists(point) and parameter.domain.contains(found[0]) and all(value == found[0] for value in found):
                point[parameter.name] = found[0]
        return point

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings, by dotted name, of a point of this space.

        Raises:
            KeyError: a parameter that exists has no value.
        """
        return {name: values[parameter.name] for parameter in self.existing(values) for name in parameter.sets}

    def within(self, config: ExperimentConfig) -> "Space":
        """Return this space in an experiment: conditions on settings that are not searched are resolved, what cannot exist is dropped."""
        kept: dict[str, Parameter] = {}
        searched = {parameter.name for parameter in self.parameters}
        for parameter in self.parameters:
            fixed = [(name, wanted) for name, wanted in parameter.when if name not in searched]
            free = tuple((name, wanted) for name, wanted in parameter.when if name in searched)
            if all(_is_one_of(value_of(config, name), wanted) for name, wanted in fixed) and all(name in kept for name, _ in free):
                kept[parameter.name] = replace(parameter, when=free)
        return Space(tuple(kept.values()))


def _is_one_of(value: Any, wanted: tuple[Scalar, ...]) -> bool:
    return value is not _UNSET and Choice(wanted).contains(value)
