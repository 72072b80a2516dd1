"""From class moments to one global target (Eq. 9) and what else it could be.

Legend: K classes, F channels.
"""

from typing import Literal

import torch

ClassWeights = Literal["uniform", "sample", "effective_number"]
VarianceReading = Literal["mean_of_classes", "mixture"]


def class_weights(kind: ClassWeights, count_K: torch.Tensor, beta: float = 0.999) -> torch.Tensor:
    """Return the classes' weights in the global target, float64 [K], summing to 1.

    Args:
        kind: `uniform` (Eq. 9: 1/K each); `sample` (n_c/N, what a running mean over the long-tailed set gives: the biased baseline);
            `effective_number` (n_c (1 - beta)/(1 - beta^n_c), normalised: from `sample` at beta = 0 towards `uniform` as beta goes to 1).
        count_K: training images of each class.
        beta: of `effective_number`, in [0, 1).
    """
    n_K = count_K.double()
    if kind == "uniform":
        weight_K = torch.ones_like(n_K)
    elif kind == "sample":
        weight_K = n_K
    else:
        weight_K = n_K * (1 - beta) / (1 - beta**n_K)
    return weight_K / weight_K.sum()


def mixture_moments(
    mean_KF: torch.Tensor, var_KF: torch.Tensor, weight_K: torch.Tensor, variance: VarianceReading
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance over the classes, [F] each. Gradients flow.

    mean = sum_c w_c mean_c. The variance is, literally as in Eq. 9, `mean_of_classes` = sum_c w_c var_c; or that of the `mixture`, which adds
    sum_c w_c (mean_c - mean)^2, the law of total variance: what a batch with class shares w really has.
    """
    weight = weight_K.to(mean_KF.dtype)
    mean_F = weight @ mean_KF
    var_F = weight @ var_KF
    if variance == "mixture":
        var_F = var_F + weight @ (mean_KF - mean_F).square()
    return mean_F, var_F
