"""Per-class mean and variance of a layer's input channels, by update / merge / compute (Eq. 8).

The variance of a class is that over its images *and* their pixels: the mean variance inside an image plus the variance of the images' means. Leaving
the second out is an error of earlier code that a test here catches.

Legend: N images of a batch, K classes, F channels of the layer, H W its pixels.
"""

import torch

from ray_ltdd.kernels import ops, serving
from ray_ltdd.statistics.schedules import MomentumConfig, momentum


def image_moments(x_NFHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image's mean and (biased) variance over its pixels, float32 [N, F] each. Gradients flow."""
    if serving.suit(x_NFHW) and x_NFHW.shape[1] % serving.BLOCK == 0:
        return ops.image_moments(x_NFHW)
    x_NFP = x_NFHW.flatten(2).float()
    mean_NF = x_NFP.mean(2)
    var_NF = (x_NFP - mean_NF[:, :, None]).square().mean(2)
    return mean_NF, var_NF


def pool_by_class(mean_NF: torch.Tensor, var_NF: torch.Tensor, member_KN: torch.Tensor, weight_KN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pool images' moments into class moments by the law of total variance. Gradients flow.

    Args:
        mean_NF: images' means.
        var_NF: images' variances.
        member_KN: 1 where image n belongs to class k, else 0. Its dtype is the accumulation's.
        weight_KN: member_KN with rows summing to 1 (rows of absent classes: 0).

    Returns:
        mean_KF = sum_n w_kn mean_n, var_KF = sum_n w_kn (var_n + (mean_n - mean_k)^2).
    """
    mean_NF, var_NF = mean_NF.to(member_KN.dtype), var_NF.to(member_KN.dtype)
    mean_KF = weight_KN @ mean_NF
    deviation_NF = mean_NF - member_KN.T @ mean_KF
    return mean_KF, weight_KN @ (var_NF + deviation_NF.square())


def membership(label_N: torch.Tensor, n_classes: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return member_KN and weight_KN for `pool_by_class`. A label outside 0..n_classes-1 (a placeholder) belongs to no class."""
    member_KN = (label_N[None, :] == torch.arange(n_classes, device=label_N.device)[:, None]).to(dtype)
    return member_KN, member_KN / member_KN.sum(1, keepdim=True).clamp(min=1)


class ClassMoments:
    """Running class moments of one layer.

    Each update mixes the class's moments so far with the batch's, weights 1 - a and a:

        mean <- (1 - a) mean + a mean_batch
        var  <- (1 - a) var  + a var_batch + a (1 - a) (mean_batch - mean)^2

    With a = B/(N+B) (`cumulative`) this is Chan's update: mean and variance are exactly those of all images, whatever the batches and their order.
    """

    def __init__(self, n_classes: int, n_features: int, config: MomentumConfig, device: torch.device | str = "cpu") -> None:
        """Start empty. The state is float64 on `device` (on the CPU where the device has no float64)."""
        self.config = config
        self.count_K = torch.zeros(n_classes, dtype=torch.int64, device=device)
        self.mean_KF = torch.zeros(n_classes, n_features, dtype=torch.float64, device=device)
        self.var_KF = torch.zeros_like(self.mean_KF)

    def update(self, mean_NF: torch.Tensor, var_NF: torch.Tensor, label_N: torch.Tensor) -> None:
        """Take in one batch.

        Args:
            mean_NF: images' means over pixels.
            var_NF: images' variances over pixels.
            label_N: int64; negative marks a placeholder, which counts for nothing.
        """
        member_KN, weight_KN = membership(label_N, len(self.count_K), torch.float64)
        mean_KF, var_KF = pool_by_class(mean_NF, var_NF, member_KN, weight_KN)
        batch_K = member_KN.sum(1).long()
        self._mix(momentum(self.config, self.count_K, batch_K), mean_KF, var_KF, batch_K)

    def merge(self, other: "ClassMoments") -> None:
        """Take in what another instance saw.

        Raises:
            ValueError: both saw images of one class under a schedule that depends on the order of batches.
        """
        if self.config.schedule != "cumulative" and bool(((self.count_K > 0) & (other.count_K > 0)).any()):
            raise ValueError(f"moments of one class can be merged under the cumulative schedule only, not under {self.config.schedule}")
        a_K = other.count_K.double() / (self.count_K + other.count_K).double().clamp(min=1)
        self._mix(a_K, other.mean_KF, other.var_KF, other.count_K)

    def compute(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mean_KF and var_KF (float64) and count_K (int64). Rows of classes never seen are 0."""
        return self.mean_KF, self.var_KF, self.count_K

    def _mix(self, a_K: torch.Tensor, mean_KF: torch.Tensor, var_KF: torch.Tensor, count_K: torch.Tensor) -> None:
        a = a_K[:, None]
        shift = mean_KF - self.mean_KF
        self.mean_KF = self.mean_KF + a * shift
        self.var_KF = (1 - a) * self.var_KF + a * var_KF + a * (1 - a) * shift.square()
        self.count_K = self.count_K + count_K
