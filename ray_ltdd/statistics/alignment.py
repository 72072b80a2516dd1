"""Alignment of the synthetic set's class moments with the real set's, globally and class by class (Eq. 2-3).

Legend: K classes of the work unit, A all classes, F channels, L layers.
"""

from dataclasses import dataclass

import torch

from ray_ltdd.statistics.targets import VarianceReading, mixture_moments

Moments = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LayerTarget:
    """What one layer of the synthetic set is matched to.

    Attributes:
        class_moments: mean and variance of the unit's classes, float32 [K, F] each.
        global_moments: mean and variance of the global target, float32 [F] each.
        weight: of this layer in the sum.
    """

    class_moments: Moments
    global_moments: Moments
    weight: float


class SmoothedMoments:
    """Synthetic class moments smoothed over steps; the gradient flows through the current step only.

    s_t = m s_{t-1} + (1 - m) batch_t, with s_0 = batch_0: it does not start at zero, and a new unit starts anew.
    """

    def __init__(self, momentum: float, state: list[Moments] | None = None) -> None:
        """Args: momentum m in [0, 1); the state of an earlier part of the same unit, one pair [K, F] a layer."""
        self.momentum = momentum
        self.state = state

    def update(self, batch: list[Moments]) -> list[Moments]:
        """Take in this step's moments, one pair [K, F] a layer, and return the smoothed ones with their gradient."""
        m = self.momentum
        if self.state is None:
            smoothed = batch
        else:
            smoothed = [
                (m * old_mean + (1 - m) * mean, m * old_var + (1 - m) * var)
                for (old_mean, old_var), (mean, var) in zip(self.state, batch, strict=True)
            ]
        self.state = [(mean.detach(), var.detach()) for mean, var in smoothed]
        return smoothed


def class_alignment(synthetic: list[Moments], targets: list[LayerTarget]) -> torch.Tensor:
    """The class-wise term: sum over layers of w_l * mean over classes of (|mean_S,c - mean_D,c|_2 + |var_S,c - var_D,c|_2). A scalar."""
    total = torch.zeros((), device=synthetic[0][0].device)
    for (mean_KF, var_KF), target in zip(synthetic, targets, strict=True):
        gap_K = _distance(mean_KF, target.class_moments[0]) + _distance(var_KF, target.class_moments[1])
        total = total + target.weight * gap_K.mean()
    return total


def global_alignment(
    synthetic: list[Moments],
    others: list[Moments],
    targets: list[LayerTarget],
    own_A: torch.Tensor,
    variance: VarianceReading,
) -> torch.Tensor:
    """The global term: sum over layers of w_l * (|mean_S - mean_D|_2 + |var_S - var_D|_2). A scalar.

    S is class-balanced, so its moments are the uniform mixture of its classes': the unit's own with their gradient, the others' as last exchanged.

    Args:
        synthetic: the unit's moments, one pair [K, F] a layer.
        others: all classes' moments as last exchanged, one pair [A, F] a layer; the rows of the unit's own classes are not used.
        targets: one a layer.
        own_A: int64 [K], the rows of the unit's classes in `others`.
        variance: how class variances make a global one; the same reading as in the target.
    """
    total = torch.zeros((), device=own_A.device)
    for (mean_KF, var_KF), (mean_AF, var_AF), target in zip(synthetic, others, targets, strict=True):
        weight_A = torch.full((len(mean_AF),), 1 / len(mean_AF), device=mean_AF.device)
        mean_F, var_F = mixture_moments(mean_AF.index_copy(0, own_A, mean_KF), var_AF.index_copy(0, own_A, var_KF), weight_A, variance)
        total = total + target.weight * (_distance(mean_F, target.global_moments[0]) + _distance(var_F, target.global_moments[1]))
    return total


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # the norm's gradient at exactly zero distance would be NaN
    return (first - second).square().sum(-1).add(1e-12).sqrt()
