"""The settings of one sweep: what is searched, over which cells, by which rules."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ray_ltdd.config import OutputConfig
from ray_ltdd.settings import Settings

Scalar = None | bool | int | float | str
Objective = Literal["top1", "mean_per_class", "seconds", "label_bytes"]

ACCURACIES: tuple[Objective, ...] = ("top1", "mean_per_class")


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _conditions(value: Any) -> Any:
    return {name: _listed(wanted) for name, wanted in value.items()} if isinstance(value, dict) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


def _require_scalars(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{value!r} is no single value: an Optuna study stores null, true, false, numbers and text only")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{value!r} is there twice (true equals 1 and 2 equals 2.0): remove one")
    return values


class ParameterConfig(Settings):
    """One searched parameter: `choices`, or a range from `low` to `high` of the kind (whole or not) the setting itself has."""

    choices: tuple[Any, ...] | None = Field(None, description="the values to choose from: null, true, false, numbers or text")
    low: float | None = Field(None, description="smallest value, included; in the setting's unit")
    high: float | None = Field(None, description="largest value, included; in the setting's unit")
    log: bool = Field(False, description="draw on a logarithmic scale")
    step: float | None = Field(None, gt=0, description="values are low, low + step, ...; empty: 1 for whole numbers, else continuous")
    when: Annotated[dict[str, tuple[Any, ...]], BeforeValidator(_conditions)] = Field(
        default_factory=dict,
        description="the parameter exists only where each named parameter (one with choices) or setting has the value, or one of the values",
    )
    sets: Names = Field(
        (),
        description="the settings it sets, if not the one it is named after: several that move together, or one with two ranges under two conditions",
    )

    @field_validator("choices")
    @classmethod
    def _choices_can_be_stored(cls, choices: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if choices is not None and len(choices) < 2:
            raise ValueError("give at least two choices: what does not vary belongs under set")
        return None if choices is None else _require_scalars(choices)

    @field_validator("when")
    @classmethod
    def _conditions_can_be_compared(cls, when: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for wanted in when.values():
            _require_scalars(wanted)
        return when

    @model_validator(mode="after")
    def _is_a_choice_or_a_range(self) -> Self:
        problem = next(self._problems(), None)
        if problem:
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        if self.choices is not None:
            if (self.low, self.high, self.step, self.log) != (None, None, None, False):
                yield "choices exclude low, high, step and log: give the one or the other"
            return
        if self.low is None or self.high is None:
            yield "give choices, or both low and high"
            return
        if self.low >= self.high:
            yield f"low={self.low:g} must be below high={self.high:g}"
        if self.log and self.low <= 0:
            yield f"log=true needs low above 0 (it is {self.low:g})"
        if self.log and self.step is not None:
            yield "log and step exclude each other: remove one"
        if self.step is not None and not _is_whole((self.high - self.low) / self.step):
            yield f"high - low = {self.high - self.low:g} must be a multiple of step={self.step:g}"


def _is_whole(x: float) -> bool:
    return abs(x - round(x)) < 1e-9 * max(abs(x), 1)


class SamplerConfig(Settings):
    """Who suggests the next trial."""

    kind: Literal["tpe", "random"] = Field("tpe", description="tpe: Optuna's tree-structured Parzen estimator; random: independent draws")
    n_startup_trials: int = Field(10, ge=1, description="random trials of a cell before TPE learns from them; concurrency should not exceed it")
    group: bool = Field(True, description="model parameters that exist together jointly, each conditional branch for itself; tpe only")


class PrunerConfig(Settings):
    """When a poor trial stops: on its first student's validation accuracy, at epochs that are the same for all trials of a cell."""

    kind: Literal["none", "median", "asha"] = Field(
        "none", description="median: stop below the median of all other trials at the same epoch; asha: keep the best 1/reduction_factor at each rung"
    )
    evaluation_epochs: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="student epochs after which its validation accuracy is measured, rising, all before its last"
    )
    grace: int = Field(1, ge=1, description="no trial stops before this student epoch")
    reduction_factor: int = Field(3, ge=2, description="asha: one of so many goes on, and a rung is at least so many times as far as the one before")
    n_startup_trials: int = Field(4, ge=0, description="median: so many trials of a cell end before any is stopped")

    @model_validator(mode="after")
    def _epochs_are_rising(self) -> Self:
        epochs = self.evaluation_epochs
        if list(epochs) != sorted(set(epochs)):
            raise ValueError(f"evaluation_epochs {list(epochs)} must rise")
        if self.kind != "none" and not self.rungs:
            raise ValueError(f"kind={self.kind} needs evaluation_epochs, at least one from grace={self.grace} on")
        return self

    @property
    def rungs(self) -> tuple[int, ...]:
        """The student epochs after which a trial can be stopped."""
        late = [epoch for epoch in self.evaluation_epochs if epoch >= self.grace]
        if self.kind != "asha":
            return tuple(late) if self.kind == "median" else ()
        chosen: list[int] = []
        for epoch in late:
            if not chosen or epoch >= chosen[-1] * self.reduction_factor:
                chosen.append(epoch)
        return tuple(chosen)


class WarmStartConfig(Settings):
    """What a cell tries first."""

    kind: Literal["none", "neighbour"] = Field("none", description="neighbour: try the best points of the neighbouring cell first")
    points: int = Field(3, ge=1, description="points taken over from the neighbour")
    head_start: int = Field(8, ge=1, description="trials of the neighbour that start before the cell's first; at most all of its trials")
    defaults: bool = Field(True, description="the first trial of a cell takes the settings' values without a search, where the space has them")


class SweepConfig(Settings):
    """One sweep: an Optuna study for every cell, the winners' final runs, and the budget."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$", max_length=100, description="name of the sweep's folder, in which it is continued")
    base: Names = Field(min_length=1, description="experiment file, relative to the sweep's; several: one more coordinate of the cells")
    set: dict[str, Any] = Field(default_factory=dict, description="settings of every run by dotted name, over the base's")
    set_in_trials: dict[str, Any] = Field(
        default_factory=dict, description="of trials only: split.validation_per_class, and a smaller budget, such as evaluate.epochs"
    )
    set_in_finals: dict[str, Any] = Field(default_factory=dict, description="of the winners' and the defaults' final runs only")
    cells: dict[str, tuple[Any, ...]] = Field(default_factory=dict, description="values of settings by dotted name; their product gives the cells")
    spaces: tuple[str, ...] = Field((), description="files of parameters, relative to the sweep's; search adds to them and replaces by name")
    search: dict[str, ParameterConfig] = Field(default_factory=dict, description="searched parameters by dotted name")
    objectives: tuple[Objective, ...] = Field(
        ("top1",),
        min_length=1,
        description="top1 or mean_per_class on the validation part (shares, maximised); also seconds (of all stages but experts, as measured when "
        "computed) and label_bytes (both minimised), which make a Pareto front",
    )
    trials: int = Field(30, ge=1, description="trials of every cell in all, earlier runs of the sweep included")
    concurrency: int = Field(2, ge=1, description="trials at work at one time, over all cells; 1 makes the suggestions reproducible")
    seed: int = Field(0, ge=0, description="the samplers' seed; the experiments' is `seed` of the base")
    max_hours: float | None = Field(None, gt=0, description="hours of wall time after which no trial starts; empty: no limit")
    final_seeds: int = Field(3, ge=0, description="final runs of a cell's winner and of the defaults, with seeds the search has not seen; 0: none")
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="who suggests")
    pruner: PrunerConfig = Field(default_factory=PrunerConfig, description="when poor trials stop")
    warm_start: WarmStartConfig = Field(default_factory=WarmStartConfig, description="what a cell tries first")
    output: OutputConfig = Field(default_factory=OutputConfig, description="folders; the sweep's own is ROOT/NAME")

    @field_validator("cells")
    @classmethod
    def _coordinates_have_values(cls, cells: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in cells.items():
            if not values:
                raise ValueError(f"{name} has no value: give at least one")
            _require_scalars(values)
        return cells

    @model_validator(mode="after")
    def _folder_is_not_the_stores(self) -> Self:
        if Path(self.output.root) / self.name == self.output.store_path:
            raise ValueError(f"the sweep's folder would be that of the artifact store, {self.output.store_path}: give the sweep another name")
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> Self:
        if self.objectives[0] not in ACCURACIES or any(name in self.objectives[1:] for name in (*ACCURACIES, self.objectives[0])):
            raise ValueError(f"objectives {list(self.objectives)} must be one of {' and '.join(ACCURACIES)}, then at most costs")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives {list(self.objectives)} name one twice")
        if len(self.objectives) > 1 and self.pruner.kind != "none":
            raise ValueError(f"pruner.kind={self.pruner.kind} needs a single objective: accuracy alone would stop the cheap end of the Pareto front")
        return self

    @property
    def directions(self) -> tuple[Literal["maximize", "minimize"], ...]:
        """Of the objectives, as Optuna names them."""
        return tuple("maximize" if name in ACCURACIES else "minimize" for name in self.objectives)
