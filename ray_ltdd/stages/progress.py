"""How a stage says that it moves: a callback, nothing more."""

from collections.abc import Callable

Advance = Callable[[int], None]
"""Called with the number of units (images, steps) done since the last call."""


def silent(_: int) -> None:
    """Report to nobody."""
