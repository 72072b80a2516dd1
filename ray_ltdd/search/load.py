"""Read a sweep file: strictly, all mistakes at once, and everything checked that can be before anything starts.

Precedence, the later wins: the base, `set`, the cell's coordinates, `set_in_trials` or `set_in_finals`, the searched values.
On the command line, `name=value` changes the sweep's setting of that name, or puts an experiment's setting under `set`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_ltdd.config import setting_names
from ray_ltdd.errors import InputError
from ray_ltdd.search.build import build_cells, build_space
from ray_ltdd.search.cells import Cell
from ray_ltdd.search.config import ParameterConfig, SweepConfig
from ray_ltdd.search.names import Section, all_names, nearest, refusal
from ray_ltdd.yaml_files import override, parse_override, read_yaml

_SETS: tuple[Section, ...] = ("set", "set_in_trials", "set_in_finals")
_BY_NAME: tuple[Section, ...] = (*_SETS, "cells", "search")
_COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Sweep:
    """A sweep that has been checked.

    Attributes:
        config: its settings, `spaces` merged into `search`, files by absolute path.
        cells: in the order they are started in.
    """

    config: SweepConfig
    cells: tuple[Cell, ...]

    @property
    def folder(self) -> Path:
        """ROOT/NAME, where the studies and the results are."""
        return Path(self.config.output.root) / self.config.name


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, apply `name=value` overrides, check every cell's settings and search space.

    Raises:
        InputError: a file is missing or no mapping, a name is unknown, a value out of range, a condition impossible; one line for each mistake.
    """
    path = Path(path)
    # a section that a file names and leaves empty is null in YAML
    values = _by_dotted_name({name: value for name, value in read_yaml(path).items() if value is not None or name not in _BY_NAME})
    origins: dict[str, str] = {}
    for text in overrides:
        # before the others: they may change single values of a space
        if parse_override(text)[0] == "spaces":
            _override(values, text)
    for space in reversed(_as_list(values.get("spaces"))):
        if isinstance(space, str) and isinstance(values.get("search", {}), dict):
            parameters, own = read_yaml(path.parent / space), values.get("search", {})
            origins |= {f"search.{name}": str(path.parent / space) for name in parameters if name not in own}
            values["search"] = {**parameters, **own}
    origins |= dict.fromkeys([_override(values, text) for text in overrides], _COMMAND_LINE)
    # a parameter set to null on the command line is not searched
    if isinstance(values.get("search"), dict):
        values["search"] = {name: spec for name, spec in values["search"].items() if spec is not None}
    config = _validate(values, path, origins)
    config = config.model_copy(update={"base": tuple(str((path.parent / base).absolute()) for base in config.base)})
    return Sweep(config, build_cells(config, build_space(config, str(path)), str(path)))


def _validate(values: dict[str, Any], path: Path, origins: Mapping[str, str]) -> SweepConfig:
    problems: list[str] = []
    for section in _BY_NAME:
        for name, value in values[section].items() if isinstance(values.get(section), dict) else ():
            names = _names_set_by(name, value) if section == "search" else [name]
            wrong = [refusal(str(setting), section) for setting in names]
            problems += [f"{origins.get(f'{section}.{name}', str(path))}: {section}: {sentence}" for sentence in wrong if sentence]
    try:
        config = SweepConfig.model_validate(values)
    except ValidationError as error:
        problems = [_explain(problem, origins, path) for problem in error.errors()] + problems
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    return config


def _names_set_by(name: str, value: Any) -> list[str]:
    sets = value.get("sets") if isinstance(value, dict) else None
    return _as_list(sets) or [name]


def _explain(problem: Mapping[str, Any], origins: Mapping[str, str], path: Path) -> str:
    loc = [str(part) for part in problem["loc"]]
    name = ".".join(loc)
    places = (origins[known] for n in range(len(loc), 0, -1) if (known := ".".join(loc[:n])) in origins)
    place = next(places, str(path))
    if problem["type"] == "extra_forbidden":
        siblings = list(ParameterConfig.model_fields) if loc[0] == "search" else [*setting_names(SweepConfig), *SweepConfig.model_fields]
        return f"{place}: there is no setting '{name}' of a sweep" + (nearest(loc[-1] if loc[0] == "search" else name, siblings) or ".")
    if problem["type"] == "missing":
        return f"{place}: {name} is missing: give it."
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (it is {given!r})" if not isinstance(given, dict | list | tuple) else ""
    return f"{place}: {name or 'the sweep'}{shown}: {message[0].lower()}{message[1:]}."


def _override(values: dict[str, Any], text: str) -> str:
    """Apply one override and return the name it goes by in messages."""
    name, value = parse_override(text)
    section, _, rest = name.partition(".")
    if section not in SweepConfig.model_fields and name in all_names():
        section, rest = "set", name
    if section in _BY_NAME and rest:
        own = values.setdefault(section, {})
        if not isinstance(own, dict):
            raise InputError(f"cannot use '{text}': {section} holds the single value {own!r}, it has no parts to set.")
        _override_by_name(own, section, rest, value)
        return f"{section}.{rest}"
    if section not in SweepConfig.model_fields:
        known = [*setting_names(SweepConfig), *all_names()]
        raise InputError(f"{_COMMAND_LINE}: there is no setting '{name}'" + (nearest(name, known) or " of a sweep or an experiment."))
    override(values, text)
    if section in _SETS and isinstance(value, dict):
        values[section] = _flat(value)
    return name


def _override_by_name(own: dict[str, Any], section: str, rest: str, value: Any) -> None:
    parameter, _, field = rest.rpartition(".")
    inner = own.get(parameter, {})
    # search.recover.steps.high=50 is a part of a parameter, search.recover.steps={low: 10, high: 50} a whole one
    if section == "search" and rest not in own and isinstance(inner, dict) and (inner or field in ParameterConfig.model_fields):
        own[parameter] = {**inner, field: value}
    else:
        own[rest] = value


def _by_dotted_name(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {section: _flat(values[section]) for section in _SETS if isinstance(values.get(section), dict)}
    return {**values, **flat}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] if value is not None else []
