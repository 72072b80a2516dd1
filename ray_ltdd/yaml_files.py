"""Settings as YAML and as `name=value`, before anything knows what they mean. Free of torch, so that a command can look at a file at once."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ray_ltdd.errors import InputError, on_one_line

# what ruamel raises beside errors of its own for a date such as 2020-13-45, a tag that does not fit (!!int abc), or nesting without end
_NO_VALUE = (ValueError, LookupError, TypeError, RecursionError)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping (3e-4 is a number there). Duplicate keys are refused; what aliases name is copied to each of their places.

    Raises:
        InputError: the file is missing, unreadable, no YAML or no mapping, or an alias stands inside what it names.
    """
    try:
        values = _load(path.read_text())
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"the configuration file {path} is a link to {path.readlink()}, which does not exist: mend the link.") from None
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else [], 1, 0.5)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file, such as configs/quickstart.yaml."
        raise InputError(f"there is no configuration file {path}: {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the configuration file {path}: {error}.") from None
    except YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {on_one_line(error)}.") from None
    except _NO_VALUE as error:
        raise InputError(f"cannot read a value of {path} ({error}): quote it, or write it as YAML.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold settings as `name: value` lines, not a {type(values).__name__}.")
    return values


def parse_override(text: str) -> tuple[str, Any]:
    """Split `a.b=value`; the value is read as YAML.

    Raises:
        InputError: there is no `=`, or the value is no YAML, or YAML in which it hardly says what was meant: one with a comment, or a bare ~ (null).
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"cannot use '{text}': overrides are written name=value, such as recover.steps=75.")
    if value.strip() == "~":
        raise InputError(f"cannot use '{text}': ~ alone means no value in YAML; write {name}=null, or the folder's path.")
    try:
        if _has_comment(value):
            raise InputError(f"cannot use '{text}': YAML takes # after a space for a comment; quote the value: {name}='\"...\"'.")
        return name.strip(), _load(value)
    except (YAMLError, *_NO_VALUE):
        raise InputError(f"cannot read the value of '{text}': quote it, or write it as YAML.") from None


def _has_comment(text: str) -> bool:
    # the scanner passes over a comment without a token
    ends = [token.end_mark.index for token in YAML(typ="safe", pure=True).scan(text) if token.end_mark.index > token.start_mark.index]
    return bool(text[max(ends, default=0) :].strip())


def _load(text: str) -> Any:
    return _unshared(YAML(typ="safe", pure=True).load(text))


def _unshared(value: Any, outer: tuple[int, ...] = ()) -> Any:
    # an anchor and its aliases are one object: whoever sets a part of one section would set it in all others
    if id(value) in outer:
        raise YAMLError("an alias stands inside what it names")
    if isinstance(value, dict):
        return {name: _unshared(inner, (*outer, id(value))) for name, inner in value.items()}
    return [_unshared(inner, (*outer, id(value))) for inner in value] if isinstance(value, list) else value


def override(values: dict[str, Any], text: str) -> tuple[str, Any]:
    """Set what `text` (`a.b=value`) says in `values`, and return name and value.

    Raises:
        InputError: `text` is malformed, or goes below a single value.
    """
    name, value = parse_override(text)
    _set(values, name.split("."), value, text)
    return name, value


def _set(values: dict[str, Any], path: list[str], value: Any, text: str) -> None:
    for name in path[:-1]:
        if values.get(name) is None:
            # a section that a file names and leaves empty is null in YAML
            values[name] = {}
        inner = values[name]
        if not isinstance(inner, dict):
            raise InputError(f"cannot use '{text}': {name} holds the single value {inner!r}, it has no parts to set.")
        values = inner
    values[path[-1]] = value


def with_settings(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested `values` with the settings in `changes` (by dotted name) set; `values` is left as it is."""
    result = dict(values)
    for name, value in changes.items():
        *sections, last = name.split(".")
        inner = result
        for section in sections:
            inner[section] = dict(inner.get(section) or {})
            inner = inner[section]
        inner[last] = value
    return result
