"""The kernels as torch operators: with gradients, and opaque to torch.compile.

Maps are float32 [N, C, H, W] in channels-last memory; what comes otherwise is copied. Results do not depend on the number of threads.

Shapes: N images, C channels, I input and O output channels, H height, W width.
"""

import ctypes
from typing import Any

import torch

from ray_ltdd.kernels.operators import LIBRARY, call, channels_last, new_map, norm_argument, operator, strides
from ray_ltdd.kernels.serving import MOST_DIRECT_CHANNELS, products_are_bfloat16


@operator("conv3x3(Tensor map, Tensor weight, Tensor? bias, bool half) -> Tensor")
def _conv3x3(map_NIHW: torch.Tensor, weight_OIHW: torch.Tensor, bias_O: torch.Tensor | None, half: bool) -> torch.Tensor:
    map_NIHW = channels_last(map_NIHW)
    (n, n_in, height, width), n_out = map_NIHW.shape, weight_OIHW.shape[0]
    out = new_map(n, n_out, height, width, map_NIHW)
    size = (n, height, width, n_in, n_out, ctypes.c_int(torch.get_num_threads()))
    if n_in <= MOST_DIRECT_CHANNELS:
        call("direct", map_NIHW, weight_OIHW, strides(weight_OIHW), bias_O, out, *size)
    else:
        call("winograd", ctypes.c_int(half), map_NIHW, weight_OIHW, strides(weight_OIHW), ctypes.c_int(0), bias_O, out, *size)
    return out


@torch.library.register_fake("ray_ltdd::conv3x3", lib=LIBRARY)
def _(map_NIHW: torch.Tensor, weight_OIHW: torch.Tensor, bias_O: torch.Tensor | None, half: bool) -> torch.Tensor:
    n, _, height, width = map_NIHW.shape
    return new_map(n, weight_OIHW.shape[0], height, width, map_NIHW)


@operator("conv3x3_input_gradient(Tensor gradient, Tensor weight, bool half) -> Tensor")
def _input_gradient(gradient_NOHW: torch.Tensor, weight_OIHW: torch.Tensor, half: bool) -> torch.Tensor:
    gradient_NOHW = channels_last(gradient_NOHW)
    (n, n_out, height, width), n_in = gradient_NOHW.shape, weight_OIHW.shape[1]
    out = new_map(n, n_in, height, width, gradient_NOHW)
    threads = ctypes.c_int(torch.get_num_threads())
    if n_in <= MOST_DIRECT_CHANNELS:
        call("direct_input", gradient_NOHW, weight_OIHW, strides(weight_OIHW), out, n, height, width, n_in, n_out, threads)
    else:
        turned = (strides(weight_OIHW, swapped=True), ctypes.c_int(1), None)
        call("winograd", ctypes.c_int(half), gradient_NOHW, weight_OIHW, *turned, out, n, height, width, n_out, n_in, threads)
    return out


@torch.library.register_fake("ray_ltdd::conv3x3_input_gradient", lib=LIBRARY)
def _(gradient_NOHW: torch.Tensor, weight_OIHW: torch.Tensor, half: bool) -> torch.Tensor:
    n, _, height, width = gradient_NOHW.shape
    return new_map(n, weight_OIHW.shape[1], height, width, gradient_NOHW)


@operator("conv3x3_weight_gradient(Tensor map, Tensor gradient, Tensor weight, bool half) -> Tensor")
def _weight_gradient(map_NIHW: torch.Tensor, gradient_NOHW: torch.Tensor, weight_OIHW: torch.Tensor, half: bool) -> torch.Tensor:
    map_NIHW, gradient_NOHW = channels_last(map_NIHW), channels_last(gradient_NOHW)
    (n, n_in, height, width), n_out = map_NIHW.shape, gradient_NOHW.shape[1]
    out = torch.empty_like(weight_OIHW)
    given = (map_NIHW, gradient_NOHW, out, strides(out), n, height, width, n_in, n_out, ctypes.c_int(torch.get_num_threads()))
    if n_in <= MOST_DIRECT_CHANNELS:
        call("direct_weights", *given)
    else:
        call("winograd_weights", ctypes.c_int(half), *given)
    return out


@torch.library.register_fake("ray_ltdd::conv3x3_weight_gradient", lib=LIBRARY)
def _(map_NIHW: torch.Tensor, gradient_NOHW: torch.Tensor, weight_OIHW: torch.Tensor, half: bool) -> torch.Tensor:
    return torch.empty_like(weight_OIHW)


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    map_NIHW, weight_OIHW, _, ctx.half = inputs
    ctx.save_for_backward(map_NIHW if ctx.needs_input_grad[1] else None, weight_OIHW)


def _convolution_backward(ctx: Any, gradient_NOHW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    map_NIHW, weight_OIHW = ctx.saved_tensors
    for_map, for_weight, for_bias, _ = ctx.needs_input_grad
    return (
        torch.ops.ray_ltdd.conv3x3_input_gradient(gradient_NOHW, weight_OIHW, ctx.half) if for_map else None,
        torch.ops.ray_ltdd.conv3x3_weight_gradient(map_NIHW, gradient_NOHW, weight_OIHW, ctx.half) if for_weight else None,
        gradient_NOHW.sum((0, 2, 3)) if for_bias else None,
        None,
    )


torch.library.register_autograd("ray_ltdd::conv3x3", _convolution_backward, setup_context=_keep_convolution, lib=LIBRARY)


def conv3x3(map_NIHW: torch.Tensor, weight_OIHW: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """Convolve with 3x3 filters, stride 1 and padding 1: what torch's conv2d gives, up to about 1e-5 of the largest value.

    In `bfloat16_products` it errs by about 1.2 % of the norm.

    Args:
        map_NIHW: float32, H and W at least 3.
        weight_OIHW: float32 [O, I, 3, 3]; channels as `serving.suit_channels` has them.
        bias_O: float32, or None.

    Returns:
        float32 [N, O, H, W].
    """
    out_NOHW: torch.Tensor = torch.ops.ray_ltdd.conv3x3(map_NIHW, weight_OIHW, bias_O, products_are_bfloat16())
    return out_NOHW


@operator("norm_relu_pool(Tensor map, Tensor scale, Tensor shift, float epsilon) -> (Tensor, Tensor, Tensor)")
def _norm_relu_pool(
    map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NCHW = channels_last(map_NCHW)
    n, channels, height, width = map_NCHW.shape
    out, mean_NC, rate_NC = _pooled(n, channels, height, width, map_NCHW)
    size = (n, height, width, channels, ctypes.c_int(torch.get_num_threads()))
    call("norm_relu_pool", map_NCHW, norm_argument(scale_C, shift_C, epsilon), out, mean_NC, rate_NC, *size)
    return out, mean_NC, rate_NC


def _pooled(n: int, channels: int, height: int, width: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return new_map(n, channels, height // 2, width // 2, like), like.new_empty(n, channels), like.new_empty(n, channels)


@torch.library.register_fake("ray_ltdd::norm_relu_pool", lib=LIBRARY)
def _(map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, channels, height, width = map_NCHW.shape
    return _pooled(n, channels, height, width, map_NCHW)


@operator(
    "norm_relu_pool_gradient(Tensor map, Tensor scale, Tensor shift, Tensor mean, Tensor rate, float epsilon, Tensor gradient)"
    " -> (Tensor, Tensor, Tensor)"
)
def _norm_relu_pool_gradient(
    map_NCHW: torch.Tensor,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    mean_NC: torch.Tensor,
    rate_NC: torch.Tensor,
    epsilon: float,
    gradient_NCHW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NCHW, gradient_NCHW = channels_last(map_NCHW), channels_last(gradient_NCHW)
    n, channels, height, width = map_NCHW.shape
    out, scale_NC, shift_NC = torch.empty_like(map_NCHW), torch.empty_like(mean_NC), torch.empty_like(mean_NC)
    size = (n, height, width, channels, ctypes.c_int(torch.get_num_threads()))
    norm = norm_argument(scale_C, shift_C, epsilon)
    call("norm_relu_pool_backward", map_NCHW, norm, mean_NC, rate_NC, gradient_NCHW, out, scale_NC, shift_NC, *size)
    return out, scale_NC.sum(0), shift_NC.sum(0)


@torch.library.register_fake("ray_ltdd::norm_relu_pool_gradient", lib=LIBRARY)
def _(
    map_NCHW: torch.Tensor,
    scale_C: torch.Tensor,
    shift_C: torch.Tensor,
    mean_NC: torch.Tensor,
    rate_NC: torch.Tensor,
    epsilon: float,
    gradient_NCHW: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(map_NCHW, memory_format=torch.channels_last), torch.empty_like(scale_C), torch.empty_like(shift_C)


def _keep_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    map_NCHW, scale_C, shift_C, ctx.epsilon = inputs
    ctx.save_for_backward(map_NCHW, scale_C, shift_C, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _norm_backward(ctx: Any, gradient_NCHW: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*torch.ops.ray_ltdd.norm_relu_pool_gradient(*ctx.saved_tensors, ctx.epsilon, gradient_NCHW), None)


torch.library.register_autograd("ray_ltdd::norm_relu_pool", _norm_backward, setup_context=_keep_norm, lib=LIBRARY)


def norm_relu_pool(map_NCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Instance norm with scale and shift, ReLU, then 2x2 average pooling (an odd last row or column is left out), reading the map once.

    Args:
        map_NCHW: float32, C a multiple of 16.
        scale_C, shift_C: float32.
        epsilon: added to the variance.

    Returns:
        float32 [N, C, H // 2, W // 2].
    """
    out_NCHW: torch.Tensor = torch.ops.ray_ltdd.norm_relu_pool(map_NCHW, scale_C, shift_C, epsilon)[0]
    return out_NCHW


@operator("first_block(Tensor map, Tensor weight, Tensor? bias, Tensor scale, Tensor shift, float epsilon, bool half) -> (Tensor, Tensor, Tensor)")
def _first_block(
    map_NIHW: torch.Tensor,
    weight_OIHW: torch.Tensor,
    bias_O: torch.Tensor | None,
    scale_O: torch.Tensor,
    shift_O: torch.Tensor,
    epsilon: float,
    half: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NIHW = channels_last(map_NIHW)
    (n, n_in, height, width), n_out = map_NIHW.shape, weight_OIHW.shape[0]
    out, mean_NO, rate_NO = _pooled(n, n_out, height, width, map_NIHW)
    size = (n, height, width, n_in, n_out, ctypes.c_int(torch.get_num_threads()))
    norm = norm_argument(scale_O, shift_O, epsilon)
    call("first_block", ctypes.c_int(half), map_NIHW, weight_OIHW, strides(weight_OIHW), bias_O, norm, out, mean_NO, rate_NO, *size)
    return out, mean_NO, rate_NO


@torch.library.register_fake("ray_ltdd::first_block", lib=LIBRARY)
def _(
    map_NIHW: torch.Tensor,
    weight_OIHW: torch.Tensor,
    bias_O: torch.Tensor | None,
    scale_O: torch.Tensor,
    shift_O: torch.Tensor,
    epsilon: float,
    half: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, _, height, width = map_NIHW.shape
    return _pooled(n, weight_OIHW.shape[0], height, width, map_NIHW)


@operator(
    "first_block_gradient(Tensor map, Tensor weight, Tensor? bias, Tensor scale, Tensor shift, Tensor mean, Tensor rate, float epsilon,"
    " bool half, Tensor gradient, bool for_map, bool for_weight) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _first_block_gradient(
    map_NIHW: torch.Tensor,
    weight_OIHW: torch.Tensor,
    bias_O: torch.Tensor | None,
    scale_O: torch.Tensor,
    shift_O: torch.Tensor,
    mean_NO: torch.Tensor,
    rate_NO: torch.Tensor,
    epsilon: float,
    half: bool,
    gradient_NOHW: torch.Tensor,
    for_map: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    map_NIHW, gradient_NOHW = channels_last(map_NIHW), channels_last(gradient_NOHW)
    (n, n_in, height, width), n_out = map_NIHW.shape, weight_OIHW.shape[0]
    of_map = torch.empty_like(map_NIHW) if for_map else map_NIHW.new_empty(0)
    of_weight = torch.empty_like(weight_OIHW) if for_weight else map_NIHW.new_empty(0)
    scale_NO, shift_NO = torch.empty_like(mean_NO), torch.empty_like(mean_NO)
    size = (n, height, width, n_in, n_out, ctypes.c_int(torch.get_num_threads()))
    given = (map_NIHW, weight_OIHW, strides(weight_OIHW), bias_O, norm_argument(scale_O, shift_O, epsilon), mean_NO, rate_NO, gradient_NOHW)
    call(
        "first_block_backward", ctypes.c_int(half), *given, of_map if for_map else None, of_weight if for_weight else None, scale_NO, shift_NO, *size
    )
    return of_map, of_weight, scale_NO.sum(0), shift_NO.sum(0)


@torch.library.register_fake("ray_ltdd::first_block_gradient", lib=LIBRARY)
def _(
    map_NIHW: torch.Tensor,
    weight_OIHW: torch.Tensor,
    bias_O: torch.Tensor | None,
    scale_O: torch.Tensor,
    shift_O: torch.Tensor,
    mean_NO: torch.Tensor,
    rate_NO: torch.Tensor,
    epsilon: float,
    half: bool,
    gradient_NOHW: torch.Tensor,
    for_map: bool,
    for_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    of_map = torch.empty_like(map_NIHW, memory_format=torch.channels_last) if for_map else map_NIHW.new_empty(0)
    of_weight = torch.empty_like(weight_OIHW) if for_weight else map_NIHW.new_empty(0)
    return of_map, of_weight, torch.empty_like(scale_O), torch.empty_like(shift_O)


def _keep_first_block(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, ctx.epsilon, ctx.half = inputs
    ctx.save_for_backward(*tensors, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _first_block_backward(ctx: Any, gradient_NOHW: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    saved, (for_map, for_weight) = ctx.saved_tensors, ctx.needs_input_grad[:2]
    of_map, of_weight, of_scale, of_shift = torch.ops.ray_ltdd.first_block_gradient(*saved, ctx.epsilon, ctx.half, gradient_NOHW, for_map, for_weight)
    of_bias = None if saved[2] is None else torch.zeros_like(saved[2])
    return of_map if for_map else None, of_weight if for_weight else None, of_bias, of_scale, of_shift, None, None


torch.library.register_autograd("ray_ltdd::first_block", _first_block_backward, setup_context=_keep_first_block, lib=LIBRARY)


def first_block(
    map_NIHW: torch.Tensor, weight_OIHW: torch.Tensor, bias_O: torch.Tensor | None, scale_O: torch.Tensor, shift_O: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """`conv3x3` and `norm_relu_pool` in one, for images of up to 4 channels: the convolved map is never stored but computed again for the gradient.

    Args:
        map_NIHW: float32, I at most 4.
        weight_OIHW, bias_O, scale_O, shift_O, epsilon: of the two. The bias changes nothing, and its gradient is zero.

    Returns:
        float32 [N, O, H // 2, W // 2].
    """
    out_NOHW: torch.Tensor = torch.ops.ray_ltdd.first_block(map_NIHW, weight_OIHW, bias_O, scale_O, shift_O, epsilon, products_are_bfloat16())[0]
    return out_NOHW


@operator("image_moments(Tensor map) -> (Tensor, Tensor)")
def _image_moments(map_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    map_NCHW = channels_last(map_NCHW)
    n, channels, height, width = map_NCHW.shape
    mean_NC, var_NC = map_NCHW.new_empty(n, channels), map_NCHW.new_empty(n, channels)
    call("image_moments", map_NCHW, mean_NC, var_NC, n, height * width, channels, ctypes.c_int(torch.get_num_threads()))
    return mean_NC, var_NC


@torch.library.register_fake("ray_ltdd::image_moments", lib=LIBRARY)
def _(map_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return map_NCHW.new_empty(map_NCHW.shape[:2]), map_NCHW.new_empty(map_NCHW.shape[:2])


@operator("image_moments_gradient(Tensor map, Tensor mean, Tensor mean_gradient, Tensor var_gradient) -> Tensor")
def _image_moments_gradient(
    map_NCHW: torch.Tensor, mean_NC: torch.Tensor, mean_gradient_NC: torch.Tensor, var_gradient_NC: torch.Tensor
) -> torch.Tensor:
    map_NCHW, mean_gradient_NC, var_gradient_NC = channels_last(map_NCHW), mean_gradient_NC.contiguous(), var_gradient_NC.contiguous()
    n, channels, height, width = map_NCHW.shape
    out = torch.empty_like(map_NCHW)
    size = (n, height * width, channels, ctypes.c_int(torch.get_num_threads()))
    call("image_moments_backward", map_NCHW, mean_NC, mean_gradient_NC, var_gradient_NC, out, *size)
    return out


@torch.library.register_fake("ray_ltdd::image_moments_gradient", lib=LIBRARY)
def _(map_NCHW: torch.Tensor, mean_NC: torch.Tensor, mean_gradient_NC: torch.Tensor, var_gradient_NC: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(map_NCHW, memory_format=torch.channels_last)


def _keep_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _moments_backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
    of_map: torch.Tensor = torch.ops.ray_ltdd.image_moments_gradient(*ctx.saved_tensors, *gradients)
    return of_map


torch.library.register_autograd("ray_ltdd::image_moments", _moments_backward, setup_context=_keep_moments, lib=LIBRARY)


def image_moments(map_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance of every image's channels over its pixels.

    Args:
        map_NCHW: float32, C a multiple of 16.

    Returns:
        mean_NC, var_NC: float32.
    """
    moments: tuple[torch.Tensor, torch.Tensor] = torch.ops.ray_ltdd.image_moments(map_NCHW)
    return moments
