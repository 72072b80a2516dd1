"""Whether the points of a space are valid experiments: both ends of every range and every choice, in every conditional branch."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from ray_ltdd.config import validate
from ray_ltdd.errors import InputError
from ray_ltdd.search.space import Parameter, Space
from ray_ltdd.yaml_files import with_settings

MOST_BRANCHES = 2000


def branches(space: Space) -> Iterator[dict[str, Any]]:
    """Yield every reachable combination of values of the parameters that others depend on."""
    deciding = {name for parameter in space.parameters for name, _ in parameter.when}
    return _extend([parameter for parameter in space.parameters if parameter.name in deciding], {})


def _extend(deciding: list[Parameter], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not deciding:
        yield values
        return
    first, rest = deciding[0], deciding[1:]
    if not first.exists(values):
        yield from _extend(rest, values)
        return
    for value in first.domain.ends:
        yield from _extend(rest, {**values, first.name: value})


def corners(space: Space, branch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield points of a branch: every end of every parameter while all others are at their first end, then while they are at their last.

    A rule that orders two parameters, such as min_scale <= max_scale, is broken at one of these points if anywhere. One that forbids a value between
    the ends is not found so; a trial there fails with its sentence.
    """
    free = [parameter for parameter in space.existing(branch) if parameter.name not in branch]
    for at in (0, -1):
        others = {**branch, **{parameter.name: parameter.domain.ends[at] for parameter in free}}
        yield others
        for parameter in free:
            yield from ({**others, parameter.name: end} for end in parameter.domain.ends)


def check_space(space: Space, values: Mapping[str, Any], place: str) -> list[str]:
    """Return what is wrong with a space, one sentence each.

    Args:
        space: of one cell.
        values: the cell's settings, nested as in a file.
        place: named in front of each sentence.
    """
    problems: dict[str, None] = {}
    seen: set[tuple[tuple[str, Any], ...]] = set()
    reached: set[str] = set()
    for count, branch in enumerate(branches(space), 1):
        if count > MOST_BRANCHES:
            return [f"{place}: search: the conditions make more than {MOST_BRANCHES} branches: let fewer parameters decide over others."]
        existing = list(space.existing(branch))
        reached |= {parameter.name for parameter in existing}
        setters = Counter(name for parameter in existing for name in parameter.sets)
        twice = {name: n for name, n in setters.items() if n > 1}
        problems |= dict.fromkeys(f"{place}: search: {n} parameters set {name} at one time: give them conditions." for name, n in twice.items())
        for point in corners(space, branch):
            identity = tuple(sorted((name, repr(value)) for name, value in point.items()))
            if identity not in seen and not twice:
                seen.add(identity)
                problems |= dict.fromkeys(_invalid(space, point, values, place))
    never = [parameter.name for parameter in space.parameters if parameter.name not in reached]
    return [*problems, *(f"{place}: search.{name}: its conditions never hold together: remove it or change them." for name in never)]


def _invalid(space: Space, point: Mapping[str, Any], values: Mapping[str, Any], place: str) -> list[str]:
    origins = {name: f"{place}: search.{p.name}={point[p.name]}" for p in space.existing(point) for name in p.sets}
    try:
        validate(with_settings(values, space.settings(point)), place, origins)
    except InputError as error:
        return str(error).splitlines()
    return []
