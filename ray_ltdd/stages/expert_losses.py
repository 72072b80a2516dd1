"""The losses that train an expert on a long-tailed set (Eq. 5-7).

Legend: N images of a batch, K classes, P projection size.
"""

import torch
import torch.nn.functional as F


def robust_loss(
    prediction_1_NP: torch.Tensor,
    projection_1_NP: torch.Tensor,
    prediction_2_NP: torch.Tensor,
    projection_2_NP: torch.Tensor,
) -> torch.Tensor:
    """L_robust (Eq. 5) = - cos(p_1, sg(z_2)) - cos(p_2, sg(z_1)), mean over the batch; between -2 and 2.

    The stop-gradient is on the projection z, as in SimSiam, not on the prediction p as the paper prints it.
    """
    forward = F.cosine_similarity(prediction_1_NP, projection_2_NP.detach(), dim=1)
    backward = F.cosine_similarity(prediction_2_NP, projection_1_NP.detach(), dim=1)
    return -(forward + backward).mean()


def inverse_frequency_weights(count_K: torch.Tensor, exponent: float) -> torch.Tensor:
    """Class weights r_k^-q of Eq. 6, normalised to *sum to K* (as in the authors' code; the paper prints a sum of 1). float32 [K]."""
    weight_K = count_K.double() ** -exponent
    return (weight_K * len(count_K) / weight_K.sum()).float()


def mixed_cross_entropy(
    logit_NK: torch.Tensor,
    first_N: torch.Tensor,
    second_N: torch.Tensor,
    lambda_N: torch.Tensor,
    weight_K: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy against mixed labels: mean over images of lambda w_a CE(a) + (1 - lambda) w_b CE(b), with w = 1 when `weight_K` is None.

    The mean divides by the number of images, not by the sum of weights.
    """
    log_p_NK = F.log_softmax(logit_NK.float(), dim=1)
    first = -log_p_NK.gather(1, first_N[:, None])[:, 0]
    second = -log_p_NK.gather(1, second_N[:, None])[:, 0]
    if weight_K is not None:
        first, second = first * weight_K[first_N], second * weight_K[second_N]
    return (lambda_N * first + (1 - lambda_N) * second).mean()


def imitation_loss(logit_NK: torch.Tensor, guide_logit_NK: torch.Tensor) -> torch.Tensor:
    """|l - g|^2, summed over classes as in Eq. 10, mean over images: the squared distance to the logits g of the expert that is imitated."""
    return (logit_NK.float() - guide_logit_NK.float()).square().sum(1).mean()


def debiased_share(step: int, n_steps: int) -> float:
    """alpha = (t/T)^2 of Eq. 6, advanced per step: 0 at the first step, 1 at the last."""
    return (step / max(n_steps - 1, 1)) ** 2
