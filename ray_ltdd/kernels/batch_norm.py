"""Batch norm of training with the ReLU that may follow it, as one torch operator with gradients.

torch passes over the map again and again, for each moment, for the scale and shift and for the ReLU, forward and backward. Here it is read
from memory twice forward, where an image's map fits the cache, and with its gradient twice backward. Results do not depend on the number of threads.

Shapes: N images, C channels, H height, W width.
"""

import ctypes
from typing import Any

import torch

from ray_ltdd.kernels.operators import LIBRARY, call, channels_last, operator
from ray_ltdd.kernels.ops import image_moments


@operator("batch_norm(Tensor map, Tensor scale, Tensor shift, float epsilon, bool relu) -> (Tensor, Tensor, Tensor)")
def _batch_norm(
    map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float, relu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NCHW = channels_last(map_NCHW)
    mean_NC, var_NC = image_moments(map_NCHW)
    mean_C = mean_NC.mean(0)
    # law of total variance: images have the same number of pixels
    var_C = var_NC.mean(0) + (mean_NC - mean_C).square().mean(0)
    factor_C, offset_C = _line(scale_C, shift_C, mean_C, var_C, epsilon)
    out = torch.empty_like(map_NCHW)
    call("scale_shift", ctypes.c_int(relu), map_NCHW, factor_C, offset_C, out, *_pixels(map_NCHW))
    return out, mean_C, var_C


def _line(
    scale_C: torch.Tensor, shift_C: torch.Tensor, mean_C: torch.Tensor, var_C: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    factor_C = scale_C * (var_C + epsilon).rsqrt()
    return factor_C, shift_C - mean_C * factor_C


def _pixels(map_NCHW: torch.Tensor) -> tuple[int, int, ctypes.c_int]:
    channels = map_NCHW.shape[1]
    return map_NCHW.numel() // channels, channels, ctypes.c_int(torch.get_num_threads())


@operator(
    "batch_norm_gradient(Tensor map, Tensor scale, Tensor shift, Tensor mean, Tensor var, float epsilon, bool relu, Tensor gradient)"
    " -> (Tensor, Tensor, Tensor)"
)
def _batch_norm_gradient(
    map_NCHW: torch.Tensor,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    mean_C: torch.Tensor,
    var_C: torch.Tensor,
    epsilon: float,
    relu: bool,
    gradient_NCHW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NCHW, gradient_NCHW = channels_last(map_NCHW), channels_last(gradient_NCHW)
    n, channels, height, width = map_NCHW.shape
    n_pixels, _, threads = _pixels(map_NCHW)
    factor_C, offset_C = _line(scale_C, shift_C, mean_C, var_C, epsilon)
    plain_NC, centred_NC = map_NCHW.new_empty(n, channels), map_NCHW.new_empty(n, channels)
    given = (ctypes.c_int(relu), map_NCHW, mean_C, factor_C, offset_C, gradient_NCHW)
    call("scale_shift_sums", *given, plain_NC, centred_NC, n, height * width, channels, threads)
    rate_C, of_shift_C = (var_C + epsilon).rsqrt(), plain_NC.sum(0)
    of_scale_C = centred_NC.sum(0) * rate_C
    slope_C, base_C = factor_C * rate_C * of_scale_C / n_pixels, factor_C * of_shift_C / n_pixels
    out = torch.empty_like(map_NCHW)
    call("scale_shift_backward", *given, slope_C, base_C, out, n_pixels, channels, threads)
    return out, of_scale_C, of_shift_C


@torch.library.register_fake("ray_ltdd::batch_norm_gradient", lib=LIBRARY)
@torch.library.register_fake("ray_ltdd::batch_norm", lib=LIBRARY)
def _(map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(map_NCHW, memory_format=torch.channels_last), torch.empty_like(scale_C), torch.empty_like(shift_C)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    map_NCHW, scale_C, shift_C, ctx.epsilon, ctx.relu = inputs
    ctx.save_for_backward(map_NCHW, scale_C, shift_C, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _backward(ctx: Any, gradient_NCHW: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*torch.ops.ray_ltdd.batch_norm_gradient(*ctx.saved_tensors, ctx.epsilon, ctx.relu, gradient_NCHW), None, None)


torch.library.register_autograd("ray_ltdd::batch_norm", _backward, setup_context=_keep, lib=LIBRARY)


def batch_norm(
    map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float, relu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise a batch by its own moments over images and pixels, scale and shift it, with or without a ReLU.

    Args:
        map_NCHW: float32, C a multiple of 16.
        scale_C, shift_C: float32.
        epsilon: added to the variance.
        relu: whether a ReLU follows.

    Returns:
        out_NCHW: float32.
        mean_C, var_C: float32 (biased) moments, which have no gradient.
    """
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.ray_ltdd.batch_norm(map_NCHW, scale_C, shift_C, epsilon, relu)
    return out
