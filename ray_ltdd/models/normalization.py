"""The four normalisations an encoder can have.

Shapes: N images, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ray_ltdd.errors import InputError
from ray_ltdd.kernels import serving
from ray_ltdd.kernels.batch_norm import batch_norm
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


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation, in training by our kernel where it serves."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the normalised map, [N, C, H, W] like `input`."""
        return self.trained(input, relu=False) if self.kernel_serves(input) else super().forward(input)

    def kernel_serves(self, input: torch.Tensor) -> bool:
        """Whether our kernel normalises `input`: in training, channels in blocks, more than a value a channel, nothing that torch would refuse."""
        if not self.training or input.dim() != 4 or input.shape[1] != self.num_features or self.num_features % serving.BLOCK:
            return False
        return input.numel() > self.num_features and serving.suit(input, smallest=1)

    def trained(self, input: torch.Tensor, relu: bool) -> torch.Tensor:
        """Return the map normalised by its own moments, with a ReLU or without, and count them in; only where the kernel serves."""
        out, mean_C, var_C = batch_norm(input, self.weight, self.bias, self.eps, relu)
        n_values = input.numel() // self.num_features
        # running estimates that nobody asked to do without
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * (n_values / (n_values - 1)), self.momentum)
        return out


def norm_relu(norm: nn.Module, map_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the ReLU of what a layer of `build_normalization` makes of a map, [N, C, H, W]; in one where our kernels can and nobody watches it."""
    watched = norm._forward_pre_hooks or norm._forward_hooks
    if isinstance(norm, BatchNorm) and not watched and norm.kernel_serves(map_NCHW):
        return norm.trained(map_NCHW, relu=True)
    return F.relu(norm(map_NCHW))


def build_normalization(kind: NormalizationKind, channels: int) -> nn.Module:
    """Return a layer that normalises maps of `channels` channels; "none" gives the identity."""
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "instance":
        return InstanceNorm(channels)
    if kind == "group":
        return nn.GroupNorm(_n_groups(channels), channels)
    return nn.Identity()


def _n_groups(channels: int) -> int:
    """Return the most groups up to 32 that divide the channels evenly, with two channels each: one is instance norm."""
    return max(n for n in range(1, MAX_GROUPS + 1) if channels % n == 0 and (n == 1 or channels // n >= 2))
