"""From class moments to one global target (Eq. 9) and what else it could be.

Legend: K classes of a part, A all classes, F channels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch

ClassWeights = Literal["uniform", "sample", "effective_number"]
VarianceReading = Literal["mean_of_classes", "mixture"]
ClassTensors = dict[str, torch.Tensor]
ClassPart = tuple[Sequence[int], ClassTensors]


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


@torch.no_grad()
def mixture_moments(parts: Callable[[], Iterable[ClassPart]], weight_A: torch.Tensor, variance: VarianceReading) -> ClassTensors:
    """Return mean and variance over all classes, `LAYER/mean` and `LAYER/var`, float64 [F], part after part: no two parts are held together.

    mean = sum_c w_c mean_c. The variance is, literally as in Eq. 9, `mean_of_classes` = sum_c w_c var_c; or that of the `mixture`, which adds
    sum_c w_c (mean_c - mean)^2, the law of total variance: what a batch with class shares w really has.

    Args:
        parts: gives pairs of classes and their moments (`LAYER/mean`, `LAYER/var`, float64 [K, F]) in a fixed order, as often as it is called.
        weight_A: the classes' weights, float64 [A].
        variance: how the variance is read.
    """
    whole: ClassTensors = {}
    for classes, moments in parts():
        for name, value_KF in moments.items():
            whole[name] = whole.get(name, 0) + weight_A[list(classes)] @ value_KF
    if variance == "mixture":
        for classes, moments in parts():
            for name, mean_KF in moments.items():
                if name.endswith("/mean"):
                    whole[f"{name.removesuffix('mean')}var"] += weight_A[list(classes)] @ (mean_KF - whole[name]).square()
    return whole
