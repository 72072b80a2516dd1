"""The alignment terms of Eq. 2-3 and the smoothing of the synthetic statistics, written as loops.

Legend: K classes of the unit, A all classes, F channels, L layers.
"""

import math

import numpy as np
from reference.targets import global_target


def distance(first_F, second_F):
    """The L2 norm of the difference."""
    return math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(first_F, second_F, strict=True)))


def class_term(synthetic_L, target_L, weight_L):
    """Sum over layers of the weight times the mean over classes of |mean difference| + |variance difference|."""
    total = 0.0
    for (mean_KF, var_KF), (target_mean_KF, target_var_KF), weight in zip(synthetic_L, target_L, weight_L, strict=True):
        gaps = [distance(mean_KF[k], target_mean_KF[k]) + distance(var_KF[k], target_var_KF[k]) for k in range(len(mean_KF))]
        total += weight * sum(gaps) / len(gaps)
    return total


def global_term(synthetic_L, others_L, own, target_L, weight_L, variance):
    """Sum over layers of the weight times the distance of the balanced mixture of all classes to the global target."""
    total = 0.0
    for (mean_KF, var_KF), (mean_AF, var_AF), (target_mean_F, target_var_F), weight in zip(synthetic_L, others_L, target_L, weight_L, strict=True):
        n_all = len(mean_AF)
        mean_AF, var_AF = np.array(mean_AF, dtype=np.float64), np.array(var_AF, dtype=np.float64)
        for row, label in enumerate(own):
            mean_AF[label], var_AF[label] = mean_KF[row], var_KF[row]
        mean_F, var_F = global_target(mean_AF, var_AF, [1 / n_all] * n_all, variance)
        total += weight * (distance(mean_F, target_mean_F) + distance(var_F, target_var_F))
    return total


def smoothed(batches, momentum):
    """s_0 = batch_0, s_t = m s_{t-1} + (1 - m) batch_t."""
    state = batches[0]
    for batch in batches[1:]:
        state = momentum * state + (1 - momentum) * batch
    return state
