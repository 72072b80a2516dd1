"""The experts' losses (Eq. 5 and 6) and the correction of soft labels, one number at a time.

Legend: N images, K classes, P projection.
"""

import math

import numpy as np


def cosine(first_P, second_P):
    dot = sum(float(a) * float(b) for a, b in zip(first_P, second_P, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in first_P)) / math.sqrt(sum(float(b) ** 2 for b in second_P))


def robust(prediction_1_NP, projection_1_NP, prediction_2_NP, projection_2_NP):
    """Eq. 5 with the stop-gradient on the projection; only its value here."""
    n = len(prediction_1_NP)
    return -sum(cosine(prediction_1_NP[i], projection_2_NP[i]) + cosine(prediction_2_NP[i], projection_1_NP[i]) for i in range(n)) / n


def class_weights(count_K, exponent):
    """Class frequencies to the power -q, scaled to sum to K."""
    rate_K = [n / sum(count_K) for n in count_K]
    raw = [rate**-exponent for rate in rate_K]
    return np.array([len(raw) * w / sum(raw) for w in raw])


def cross_entropy(logit_K, label):
    top = max(float(v) for v in logit_K)
    return top + math.log(sum(math.exp(float(v) - top) for v in logit_K)) - float(logit_K[label])


def mixed_cross_entropy(logit_NK, first_N, second_N, lambda_N, weight_K):
    """Mean over images of lambda w_a CE(a) + (1 - lambda) w_b CE(b)."""
    total = 0.0
    for logit_K, a, b, lam in zip(logit_NK, first_N, second_N, lambda_N, strict=True):
        total += lam * weight_K[a] * cross_entropy(logit_K, a) + (1 - lam) * weight_K[b] * cross_entropy(logit_K, b)
    return total / len(first_N)


def prior_correction(count_K, tau):
    """tau times the log prior, moved so that its mean over classes is 0."""
    log_prior = [math.log(n / sum(count_K)) for n in count_K]
    return np.array([tau * (v - sum(log_prior) / len(log_prior)) for v in log_prior])
