"""Settings of rows of any version as this one resolves them: what went without saying before it could be chosen is said."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from ray_ltdd.config import ExperimentConfig


class _Setting(NamedTuple):
    """A setting's default as plain data, and the settings it, or each of its entries, holds, if it does."""

    default: Any
    section: type[BaseModel] | None


def completed(settings: Mapping[str, Any], model: type[BaseModel] = ExperimentConfig) -> dict[str, Any]:
    """Return settings with the defaults of those they lack, in every section and every entry of a list; what this version does not know is kept.

    Args:
        settings: nested plain data, as resolved by this version or an earlier one.
        model: whose settings they are.
    """
    known = dict(settings)
    for name, setting in _settings_of(model).items():
        if name not in known:
            known[name] = deepcopy(setting.default)
        elif setting.section is not None:
            known[name] = _completed(known[name], setting.section)
    return known


def _completed(value: Any, section: type[BaseModel]) -> Any:
    if isinstance(value, list):
        return [_completed(entry, section) for entry in value]
    return completed(value, section) if isinstance(value, Mapping) else value


@cache
def _settings_of(model: type[BaseModel]) -> dict[str, _Setting]:
    found = {}
    for name, info in model.model_fields.items():
        kinds = (kind for kind in (info.annotation, *get_args(info.annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel))
        found[name] = _Setting(to_jsonable_python(info.get_default(call_default_factory=True)), next(kinds, None))
    return found
