"""Work units: fixed groups of classes with all their images, chosen from the settings, never from the number of workers.

Legend: K classes.
"""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def work_units(n_classes: int, classes_per_unit: int) -> list[tuple[int, ...]]:
    """Split classes 0..n_classes-1 into units of at most `classes_per_unit`.

    Unit u of U takes classes u, u + U, u + 2U, ...: class sizes fall with the class number, so every unit gets head and tail classes alike.
    """
    n_units = -(-n_classes // classes_per_unit)
    return [tuple(range(unit, n_classes, n_units)) for unit in range(n_units)]


def heaviest_first(items: Sequence[Item], costs: Sequence[float]) -> list[Item]:
    """Order items by falling cost, equal ones as they come: the long ones start first, so that no worker waits for one at the end."""
    order = sorted(range(len(items)), key=lambda i: -costs[i])
    return [items[i] for i in order]
