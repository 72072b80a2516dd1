"""What one epoch draws, as tensors with a row a step, such that a recorded step can take its own."""

from dataclasses import fields
from typing import Any, Self

import torch


class EpochRows:
    """Base of dataclasses whose fields are all tensors of S rows, on the device."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them, in the order of the fields."""
        own: Any = self
        return tuple(getattr(self, field.name) for field in fields(own))

    def row(self, row_1: torch.Tensor) -> Self:
        """The draws of one step, S = 1; `row_1` is its number, int64 [1] on the device."""
        return type(self)(*(tensor.index_select(0, row_1) for tensor in self.tensors()))
