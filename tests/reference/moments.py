"""Class moments from their definition, one pixel after another (Eq. 8).

Legend: N images, K classes, F channels, H W pixels.
"""

import numpy as np


def exact_class_moments(x_NFHW, label_N, n_classes):
    """Mean and variance over all images and pixels of each class, float64 [K, F] each; zeros for a class without images."""
    mean_KF = np.zeros((n_classes, x_NFHW.shape[1]))
    var_KF = np.zeros_like(mean_KF)
    for k in range(n_classes):
        for f in range(x_NFHW.shape[1]):
            values = [float(v) for n, label in enumerate(label_N) if label == k for v in np.asarray(x_NFHW[n, f]).ravel()]
            if values:
                mean_KF[k, f] = sum(values) / len(values)
                var_KF[k, f] = sum((v - mean_KF[k, f]) ** 2 for v in values) / len(values)
    return mean_KF, var_KF


def newest_weight(schedule, n_before, n_batch, value, exponent):
    """The weight a of a batch with `n_batch` images of a class of which `n_before` were seen."""
    if n_batch == 0:
        return 0.0
    if n_before == 0:
        return 1.0
    share = n_batch / (n_before + n_batch)
    if schedule == "constant":
        return value
    if schedule == "power":
        return share**exponent
    if schedule == "warmup":
        return max(value, share)
    return share


def running_class_moments(batches, n_classes, schedule, value=0.1, exponent=1.0):
    """Mix mean and second moment batch after batch: m <- (1 - a) m + a m_batch; the variance is what they then say.

    `batches` holds pairs (x_NFHW, label_N). Returns mean_KF, var_KF, count_K.
    """
    n_features = batches[0][0].shape[1]
    mean_KF, second_KF = np.zeros((n_classes, n_features)), np.zeros((n_classes, n_features))
    count_K = [0] * n_classes
    for x_NFHW, label_N in batches:
        for k in range(n_classes):
            own = [np.asarray(x_NFHW[n], dtype=np.float64) for n, label in enumerate(label_N) if label == k]
            a = newest_weight(schedule, count_K[k], len(own), value, exponent)
            count_K[k] += len(own)
            for f in range(n_features if own else 0):
                values = [float(v) for image in own for v in image[f].ravel()]
                mean_KF[k, f] = (1 - a) * mean_KF[k, f] + a * sum(values) / len(values)
                second_KF[k, f] = (1 - a) * second_KF[k, f] + a * sum(v * v for v in values) / len(values)
    return mean_KF, second_KF - mean_KF**2, np.array(count_K)
