"""Exponential moving average of everything a network is scored with: parameters and buffers."""

import copy
from typing import Any

import torch
from torch import nn

from ray_ltdd.errors import InputError


class ExponentialAverage:
    """The running average of a model's weights, kept in a copy that can be scored and saved.

    The average starts as the model stands, so nothing needs correcting for a start at zero.

    Attributes:
        averaged: a copy of the model holding the averages, in evaluation mode, without gradients.

    Args:
        model: the model being trained, not compiled (compile what wraps it).
        decay: weight of the old average at each update, in [0, 1).

    Raises:
        InputError: the decay is outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise InputError(f"the decay of the weight average must lie in [0, 1) but is {decay}: 0.99 is usual.")
        self._model = model
        self._decay = decay
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        # on the model's device, so that a recorded update counts itself
        self._n_updates = torch.zeros((), dtype=torch.int64, device=next(model.parameters()).device)

    @property
    def n_updates(self) -> int:
        """How many updates it has seen."""
        return int(self._n_updates)

    @torch.no_grad()
    def update(self) -> None:
        """Move every floating-point parameter and buffer towards the model's; copy the others, such as counters."""
        # lerp, not a * decay + b * (1 - decay): it leaves what does not change, such as pixel constants, exactly as is.
        moving = [pair for pair in self._pairs() if pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in moving], [current for _, current in moving], 1.0 - self._decay)
        for average, current in self._pairs():
            if not average.is_floating_point():
                average.copy_(current)
        self._n_updates += 1

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (average, current) for each tensor; looked up anew because moving a model replaces its buffers."""
        parameters = zip(self.averaged.parameters(), self._model.parameters(), strict=True)
        buffers = zip(self.averaged.buffers(), self._model.buffers(), strict=True)
        return [*parameters, *buffers]

    def state_dict(self) -> dict[str, Any]:
        """Return {"averaged": the averaged module's state dict, "n_updates": int}."""
        return {"averaged": self.averaged.state_dict(), "n_updates": self.n_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken. The decay is a setting and is not part of it."""
        self.averaged.load_state_dict(state["averaged"])
        self._n_updates.fill_(int(state["n_updates"]))
