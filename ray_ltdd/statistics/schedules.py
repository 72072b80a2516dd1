"""Momentum schedules: how much the newest batch weighs in a class's running moments (Eq. 8 and what it replaces)."""

from typing import Literal, Self

import torch
from pydantic import Field

from ray_ltdd.settings import Settings


class MomentumConfig(Settings):
    """The weight a of the newest batch, given B images of the class in it and N images of the class before it."""

    schedule: Literal["cumulative", "constant", "power", "warmup"] = Field(
        "cumulative",
        description="cumulative: a = B/(N+B), every image weighs the same (Eq. 8); constant: a = value, BatchNorm's; "
        "power: a = (B/(N+B))^exponent; warmup: a = max(value, B/(N+B))",
    )
    value: float = Field(0.1, gt=0, le=1, description="a of constant, lower bound of a in warmup; no unit")
    exponent: float = Field(
        1.0,
        gt=0,
        le=4,
        description="k of power: below 1 forgets old batches faster than cumulative, above 1 keeps them longer",
    )

    def in_effect(self) -> Self:
        """These settings, with the default of whatever the schedule does not use."""
        used = {"constant": {"value"}, "warmup": {"value"}, "power": {"exponent"}}.get(self.schedule, set())
        return self.with_defaults({"value", "exponent"} - used)


def momentum(config: MomentumConfig, before_K: torch.Tensor, batch_K: torch.Tensor) -> torch.Tensor:
    """Return a, float64 [K] in [0, 1].

    A class's first batch always has a = 1 (there is nothing to keep), a class absent from the batch a = 0.

    Args:
        config: the schedule.
        before_K: images of each class seen before this batch.
        batch_K: images of each class in this batch.
    """
    share_K = batch_K.double() / (before_K + batch_K).double().clamp(min=1)
    if config.schedule == "cumulative":
        a_K = share_K
    elif config.schedule == "constant":
        a_K = torch.full_like(share_K, config.value)
    elif config.schedule == "power":
        a_K = share_K**config.exponent
    else:
        a_K = share_K.clamp(min=config.value)
    a_K = torch.where(before_K == 0, torch.ones_like(a_K), a_K)
    return torch.where(batch_K == 0, torch.zeros_like(a_K), a_K)
