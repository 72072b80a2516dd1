"""The global target of Eq. 9 and its variants, class by class.

Legend: K classes, F channels.
"""

import numpy as np


def class_weights(kind, count_K, beta):
    """Weights that sum to 1. The effective number of n images is the sum of beta^i for i < n."""
    weights = []
    for n in count_K:
        if kind == "uniform":
            weights.append(1.0)
        elif kind == "sample":
            weights.append(float(n))
        else:
            effective = sum(beta**i for i in range(int(n)))
            weights.append(n / effective)
    return np.array([w / sum(weights) for w in weights])


def global_target(mean_KF, var_KF, weight_K, variance):
    """Mean and variance over classes, one channel at a time."""
    n_classes, n_features = mean_KF.shape
    mean_F, var_F = np.zeros(n_features), np.zeros(n_features)
    for f in range(n_features):
        mean_F[f] = sum(weight_K[k] * mean_KF[k, f] for k in range(n_classes))
        var_F[f] = sum(weight_K[k] * var_KF[k, f] for k in range(n_classes))
        if variance == "mixture":
            var_F[f] += sum(weight_K[k] * (mean_KF[k, f] - mean_F[f]) ** 2 for k in range(n_classes))
    return mean_F, var_F
