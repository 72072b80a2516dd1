"""The four normalisations an encoder can have.

Shapes: N images, C channels, H height, W width.
"""

import torch
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.models.config import NormalizationKind

MAX_GROUPS = 32


class InstanceNorm(nn.GroupNorm):
    """Affine instance normalisation without running estimates (eps 1e-5): a group norm of one channel a group.

    Group norm's kernel because it is the fastest on a CPU. Training ConvNet-3 (width 128, batch 128, fp32, 2 cores with
    AVX2), images/s eager and compiled: group norm 267 and 411, written out with var_mean 164 and 401; in another
    run group norm 225 and 336, nn.InstanceNorm2d 219 and 282.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised map, [N, C, H, W] like `input`.

        Raises:
            InputError: the map is 1x1. Its only pixel equals its mean, so every image would come out the same.
        """
        if input.shape[-1] * input.shape[-2] == 1:
            raise InputError(
                f"instance normalisation of {self.num_channels} channels meets a map of 1x1 pixels and would erase it: "
                "set model.normalization to 'batch' or 'group', or use larger images."
            )
        return super().forward(input)


def build_normalization(kind: NormalizationKind, channels: int) -> nn.Module:
    """Return a layer that normalises maps of `channels` channels; "none" gives the identity."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "group":
        return nn.GroupNorm(_n_groups(channels), channels)
    return nn.Identity()


def _n_groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels evenly, with two channels each: one is instance norm."""
    return max(n for n in range(1, MAX_GROUPS + 1) if channels % n == 0 and (n == 1 or channels // n >= 2))
