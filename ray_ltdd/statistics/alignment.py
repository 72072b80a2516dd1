"""Alignment of the synthetic set's class moments with the real set's, globally and class by class (Eq. 2-3).

Legend: K classes of the work unit, A all classes, F channels, L layers.
"""

from dataclasses import dataclass

import torch

from ray_ltdd.statistics.targets import VarianceReading

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


@dataclass(frozen=True)
class ClassSums:
    """What the global term must know of a set of classes in one layer: sums, as large for a thousand classes as for one.

    Attributes:
        shift_F: sum over classes of mean_c - origin, [F]; the origin is the global target's mean.
        square_F: sum of (mean_c - origin)^2, [F].
        var_F: sum of var_c, [F].
        n_classes: how many.
    """

    shift_F: torch.Tensor
    square_F: torch.Tensor
    var_F: torch.Tensor
    n_classes: int

    @classmethod
    def of(cls, mean_KF: torch.Tensor, var_KF: torch.Tensor, origin_F: torch.Tensor) -> "ClassSums":
        """Sum over K classes, in the moments' type. Gradients flow."""
        shift_KF = mean_KF - origin_F
        return cls(shift_KF.sum(0), shift_KF.square().sum(0), var_KF.sum(0), len(mean_KF))

    def plus(self, other: "ClassSums", sign: int = 1) -> "ClassSums":
        """The sums over both sets of classes; with sign -1, over those of this set that are not in `other`."""
        return ClassSums(
            self.shift_F + sign * other.shift_F,
            self.square_F + sign * other.square_F,
            self.var_F + sign * other.var_F,
            self.n_classes + sign * other.n_classes,
        )

    def to(self, device: torch.device) -> "ClassSums":
        """As float32 on the device."""
        shift_F, square_F, var_F = (sum_F.float().to(device) for sum_F in (self.shift_F, self.square_F, self.var_F))
        return ClassSums(shift_F, square_F, var_F, self.n_classes)


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


def global_alignment(synthetic: list[Moments], others: list[ClassSums], targets: list[LayerTarget], variance: VarianceReading) -> torch.Tensor:
    """The global term: sum over layers of w_l * (|mean_S - mean_D|_2 + |var_S - var_D|_2). A scalar.

    S is class-balanced, so its moments are the uniform mixture of its classes': the unit's own with their gradient, the others' as last exchanged.

    Args:
        synthetic: the unit's moments, one pair [K, F] a layer.
        others: sums over the classes of all other units as last exchanged, one a layer, with the target's mean as origin.
        targets: one a layer.
        variance: how class variances make a global one; the same reading as in the target.
    """
    total = torch.zeros((), device=synthetic[0][0].device)
    for (mean_KF, var_KF), rest, target in zip(synthetic, others, targets, strict=True):
        whole = rest.plus(ClassSums.of(mean_KF, var_KF, target.global_moments[0]))
        gap_F, var_F = whole.shift_F / whole.n_classes, whole.var_F / whole.n_classes
        if variance == "mixture":
            # sum_c (mean_c - mean)^2 / n, about the target's mean instead of their own
            var_F = var_F + whole.square_F / whole.n_classes - gap_F.square()
        total = total + target.weight * (_norm(gap_F) + _distance(var_F, target.global_moments[1]))
    return total


def _distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return _norm(first - second)


def _norm(gap: torch.Tensor) -> torch.Tensor:
    # the norm's gradient at exactly zero would be NaN
    return gap.square().sum(-1).add(1e-12).sqrt()
