"""Soft labels by Eq. T, one class of one image at a time."""

import math


def calibrated_labels(logit_NK, mirrored_logit_NK, count_K, tau):
    """The mean of the teacher's logits for an image and for its mirror image, minus tau times the log prior less its mean over classes."""
    log_prior_K = [math.log(count / sum(count_K)) for count in count_K]
    middle = sum(log_prior_K) / len(log_prior_K)
    return [
        [(logit_NK[n][k] + mirrored_logit_NK[n][k]) / 2 - tau * (log_prior_K[k] - middle) for k in range(len(count_K))] for n in range(len(logit_NK))
    ]
