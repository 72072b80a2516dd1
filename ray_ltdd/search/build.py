"""From a sweep's settings to its space and its cells, checked; every mistake is collected, then all are said at once."""

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_ltdd.config import load_config, validate
from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.prepare import DataConfig
from ray_ltdd.errors import InputError
from ray_ltdd.search.branches import check_space
from ray_ltdd.search.cells import Cell, cell_name, snake
from ray_ltdd.search.config import ParameterConfig, SweepConfig
from ray_ltdd.search.names import all_names, kind_of, nearest
from ray_ltdd.search.space import Choice, Parameter, Range, Space
from ray_ltdd.yaml_files import read_yaml, with_settings


def build_space(config: SweepConfig, place: str) -> Space:
    """Return the space, parameters that others depend on before those.

    Raises:
        InputError: a parameter names the wrong kind of values, a condition names nothing or goes in a circle; one line for each.
    """
    problems = [f"{place}: search.{name}: {text}" for name, spec in config.search.items() for text in _parameter_problems(name, spec, config.search)]
    if not config.search:
        problems.append(f"{place}: search is empty: name at least one setting to search, or a file of them under spaces.")
    for section in ("set", "set_in_trials", "set_in_finals", "cells"):
        searched = [name for spec_name, spec in config.search.items() for name in _sets(spec_name, spec) if name in getattr(config, section)]
        problems += [f"{place}: {name} stands under {section} and under search: remove one." for name in dict.fromkeys(searched)]
    for section in ("set", "set_in_trials", "set_in_finals"):
        twice = [name for name in getattr(config, section) if name in config.cells]
        problems += [f"{place}: {name} stands under {section} and under cells: remove one." for name in twice]
    if config.pruner.kind != "none" and any("evaluate.epochs" in _sets(name, spec) for name, spec in config.search.items()):
        problems.append(f"{place}: search.evaluate.epochs: pruner.kind={config.pruner.kind} compares trials at one epoch of equal plans: use none.")
    if problems:
        raise InputError("\n".join(problems))
    return Space(tuple(_parameter(name, config.search[name]) for name in _parents_first(config.search, place)))


def _sets(name: str, spec: ParameterConfig) -> tuple[str, ...]:
    return spec.sets or (name,)


def _parameter_problems(name: str, spec: ParameterConfig, search: Mapping[str, ParameterConfig]) -> list[str]:
    problems = []
    kinds = {setting: kind_of(setting) for setting in _sets(name, spec)}
    if spec.choices is None:
        problems += [f"{setting} takes no number: give choices." for setting, kind in kinds.items() if kind == "other"]
        bounds = {"low": spec.low, "high": spec.high, "step": spec.step}
        fractions = [f"{bound}={value:g}" for bound, value in bounds.items() if value is not None and not value.is_integer()]
        whole = [setting for setting, kind in kinds.items() if kind == "int"]
        problems += [f"{setting} takes whole numbers, not {fraction}." for setting in whole for fraction in fractions]
        if len(set(kinds.values())) > 1:
            problems.append("sets mixes whole numbers with others: search them one by one.")
    setters: dict[str, list[str]] = {}
    for other, other_spec in search.items():
        for setting in _sets(other, other_spec):
            setters.setdefault(setting, []).append(other)
    for condition, wanted in spec.when.items():
        if condition in search:
            problems += _condition_problems(condition, wanted, search[condition])
        elif condition in setters:
            problems.append(f"when: {condition} is searched under another name: write {' or '.join(setters[condition])}.")
        elif condition not in all_names():
            problems.append(f"when: there is no parameter or setting '{condition}'" + (nearest(condition, [*search, *all_names()]) or "."))
    return problems


def _condition_problems(name: str, wanted: tuple[Any, ...], spec: ParameterConfig) -> list[str]:
    if spec.choices is None:
        return [f"when: {name} has a range, and a condition needs a parameter with choices."]
    choice = Choice(spec.choices)
    missing = [value for value in wanted if not choice.contains(value)]
    offered = f": {list(spec.choices)}."
    return [f"when: {value!r} is none of the choices of {name}{nearest(str(value), map(str, spec.choices)) or offered}" for value in missing]


def _parents_first(search: Mapping[str, ParameterConfig], place: str) -> list[str]:
    order: list[str] = []
    waiting = list(search)
    while waiting:
        ready = next((name for name in waiting if all(other in order or other not in search for other in search[name].when)), None)
        if ready is None:
            circle = [name for name in waiting if not _only_waits(name, waiting, search)]
            raise InputError(f"{place}: search: the conditions of {', '.join(circle)} go in a circle: remove one.")
        order.append(ready)
        waiting.remove(ready)
    return order


def _only_waits(name: str, waiting: list[str], search: Mapping[str, ParameterConfig]) -> bool:
    """Whether a parameter is on no circle itself, but below one."""
    reached, frontier = set(), [name]
    while frontier:
        for other in search[frontier.pop()].when:
            if other in waiting and other not in reached:
                reached.add(other)
                frontier.append(other)
    return name not in reached


def _parameter(name: str, spec: ParameterConfig) -> Parameter:
    sets = _sets(name, spec)
    domain: Choice | Range
    if spec.choices is not None:
        domain = Choice(spec.choices)
    else:
        assert spec.low is not None and spec.high is not None
        domain = Range(spec.low, spec.high, kind_of(sets[0]) == "int", spec.log, spec.step)
    return Parameter(name, sets, domain, tuple(spec.when.items()))


def build_cells(config: SweepConfig, space: Space, place: str) -> tuple[Cell, ...]:
    """Return the cells in an order in which each differs from the one before by one step of one coordinate.

    Raises:
        InputError: a cell's settings or a point of its space is invalid, or two cells are the same; one line for each mistake.
    """
    bases = _named_bases([(base, _base_values(base, config.set)) for base in config.base], config.cells)
    axes = [bases, *([(name, value) for value in values] for name, values in config.cells.items())]
    problems: dict[str, None] = {}
    cells: list[Cell] = []
    for position in snake([len(axis) for axis in axes]):
        (base, values), *coordinates = (axis[i] for axis, i in zip(axes, position, strict=True))
        try:
            cells.append(_cell(config, space, base, values, dict(coordinates), position))
        except InputError as error:
            problems |= dict.fromkeys(f"{place}: {line}" for line in str(error).splitlines())
            continue
        problems |= dict.fromkeys(_cell_problems(config, cells[-1], place))
    problems |= dict.fromkeys(_set_problems(space, cells, place))
    if problems:
        raise InputError("\n".join(problems))
    return tuple(cells)


def _named_bases(bases: list[tuple[str, dict[str, Any]]], cells: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Call bases by their datasets, or by their files where that would not tell them, or the cells, apart."""
    datasets = [(values.get("data") or {}).get("dataset", DataConfig().dataset) for _, values in bases]
    distinct = len(set(datasets)) == len(bases) and "data.dataset" not in cells
    # that it is text is checked later
    return [(str(dataset) if distinct else Path(base).stem, values) for dataset, (base, values) in zip(datasets, bases, strict=True)]


def _base_values(base: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    # loaded first, so that a mistake in the base is told as `ray-ltdd run` tells it
    load_config(base)
    return with_settings(read_yaml(Path(base)), changes)


def _cell(config: SweepConfig, space: Space, base: str, values: Mapping[str, Any], coordinates: dict[str, Any], position: tuple[int, ...]) -> Cell:
    short = len({name.rpartition(".")[2] for name in coordinates}) == len(coordinates)
    name = cell_name(base, coordinates, short)
    output = config.output.model_dump() | {"root": str(Path(config.output.root) / config.name), "store": str(config.output.store_path)}
    common = {**with_settings(values, coordinates), "name": name, "output": output}
    trial = with_settings(common, {"evaluate.baselines": (), **config.set_in_trials, "evaluate.part": "validation"})
    final = with_settings(common, {**config.set_in_finals, "evaluate.part": "test", "split.validation_per_class": 0})
    origins = {**dict.fromkeys(config.set, "set"), **{setting: f"cells.{setting}={value}" for setting, value in coordinates.items()}}
    experiment = validate(trial, f"cell {name}", origins | dict.fromkeys(config.set_in_trials, "set_in_trials"))
    validate(final, f"final runs of cell {name}", origins | dict.fromkeys(config.set_in_finals, "set_in_finals"))
    find_benchmark(experiment.data.dataset)
    return Cell(name, base, coordinates, position, trial, final, space.within(experiment), config.objectives)


def _cell_problems(config: SweepConfig, cell: Cell, place: str) -> list[str]:
    experiment = cell.trial()
    profile, epochs = experiment.split.profile, experiment.evaluate.epochs
    problems = []
    if not experiment.split.validation_per_class:
        problems.append(f"{place}: trials are scored on a validation part: give set_in_trials a split.validation_per_class, such as 50.")
    if "split.imbalance_factor" in cell.coordinates and profile not in ("exponential", "step"):
        problems.append(f"{place}: cells: split.imbalance_factor has no effect with split.profile={profile} of {cell.base}: remove it.")
    late = [epoch for epoch in config.pruner.evaluation_epochs if epoch >= epochs]
    if late:
        problems.append(f"{place}: pruner.evaluation_epochs: {late[0]} is not before the last of evaluate.epochs={epochs}: lower it.")
    return [*problems, *check_space(cell.space, cell.trial_values, place), *check_space(cell.space, cell.final_values, place)]


def _set_problems(space: Space, cells: list[Cell], place: str) -> list[str]:
    twice = [name for name, n in Counter(cell.name for cell in cells).items() if n > 1]
    if twice:
        return [f"{place}: more than one cell is called {', '.join(twice)}: give the bases' files, or the values, other names."]
    experiments = [(cell.name, cell.trial().model_copy(update={"name": "any"})) for cell in cells]
    same = [
        f"{place}: cells {name} and {other_name} are one and the same experiment: remove one."
        for (name, experiment), (other_name, other) in itertools.combinations(experiments, 2)
        if experiment == other
    ]
    present = {parameter.name for cell in cells for parameter in cell.space.parameters}
    nowhere = [parameter.name for parameter in space.parameters if parameter.name not in present] if cells else []
    return [*same, *(f"{place}: search.{name}: its conditions hold in no cell: remove it or change them." for name in nowhere)]
