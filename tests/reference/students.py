"""The student's loss written from Eq. 10, image by image."""

import numpy as np


def cross_entropy(logit, label):
    return np.log(np.exp(logit - logit.max()).sum()) + logit.max() - logit[label]


def student_loss(logit_BK, label_B, partner_B, lambda_B, target_BK, hard_weight, soft_weight):
    """Eq. 10, summed over classes, averaged over images; None for no soft labels."""
    total = 0.0
    for i, logit in enumerate(logit_BK):
        mixed = lambda_B[i] * cross_entropy(logit, label_B[i]) + (1 - lambda_B[i]) * cross_entropy(logit, partner_B[i])
        total += hard_weight * mixed
        if target_BK is not None:
            total += soft_weight * sum((logit[k] - target_BK[i][k]) ** 2 for k in range(len(logit)))
    return total / len(logit_BK)
