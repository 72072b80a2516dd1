"""Which settings a sweep may name where, and what kind of value each takes."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from ray_ltdd.config import ExperimentConfig, section_of, setting_names

Kind = Literal["int", "float", "other"]
Section = Literal["set", "set_in_trials", "set_in_finals", "cells", "search"]

_BUDGET = "put it under set_in_trials"
_FIXED: dict[str, str] = {
    "name": "the sweep names runs itself",
    "output": "give the sweep's own output.root and output.store",
    "evaluate.part": "trials are scored on the validation part and final runs on the test part, always",
}
_FINALS = {"split.validation_per_class": "final runs train on the full training split"}
_ONE_FOR_ALL = {
    "seed": "seeds are averaged over, not chosen",
    "cluster": "it does not change an outcome: put it under set",
    "compute": "it is one for all trials: put it under set",
    "data.root": "it does not change an outcome: put it under set",
    "evaluate.seeds": _BUDGET,
    "evaluate.baselines": _BUDGET,
    "split.validation_per_class": _BUDGET,
}
_CELL = "results of different cells are not compared: list its values under cells"

REFUSED: Mapping[Section, Mapping[str, str]] = {
    "set": _FIXED,
    "set_in_trials": _FIXED,
    "set_in_finals": _FIXED | _FINALS,
    "cells": _FIXED | _ONE_FOR_ALL,
    "search": _FIXED | _ONE_FOR_ALL | {"data": _CELL, "split": _CELL, "distill.images_per_class": _CELL},
}
"""For each section: settings (or whole groups of them) it may not name, and why."""


@cache
def all_names() -> tuple[str, ...]:
    """Every dotted name of an experiment's settings."""
    return tuple(setting_names(inside_optional=True))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ": did you mean 'X'?" with the nearest of `names`, or an empty text when none is near."""
    known = list(names)
    same = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    near = [*difflib.get_close_matches(name, known, 1, 0.7), *same]
    return f": did you mean '{near[0]}'?" if near else ""


def refusal(name: str, section: Section) -> str | None:
    """Return what is wrong with naming the setting `name` in `section`, or None."""
    if name not in all_names():
        return f"there is no setting '{name}'" + (nearest(name, all_names()) or "; `ray-ltdd show CONFIG` lists all settings.")
    for refused, reason in REFUSED[section].items():
        if name == refused or name.startswith(f"{refused}."):
            return f"{name} cannot stand here: {reason}."
    return None


@cache
def kind_of(name: str) -> Kind:
    """Whether the setting `name` takes whole numbers, numbers, or something else.

    Raises:
        KeyError: there is no such setting.
    """
    model: type[BaseModel] = ExperimentConfig
    *sections, last = name.split(".")
    for section in sections:
        inner, _ = section_of(model.model_fields[section].annotation)
        if inner is None:
            raise KeyError(name)
        model = inner
    types = _alternatives(model.model_fields[last].annotation)
    return "float" if float in types else "int" if int in types else "other"


def value_of(config: ExperimentConfig, name: str) -> Any:
    """The value the setting `name` has in `config`; None in a section that is empty."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _alternatives(annotation: Any) -> set[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _alternatives(part)}
    return {annotation}
