"""When this package's kernels serve: which maps they take, whether they are switched off, what their convolutions multiply."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ray_ltdd.kernels.build import library

BLOCK = 16
"""Channels come in multiples of this."""

MOST_DIRECT_CHANNELS = 4
"""Images of up to this many channels are convolved directly."""

SMALLEST_MAP = 3

LARGEST_OUTWEIGHED_MAP, FEWEST_OUTWEIGHING_CHANNELS = 16, 256
"""Up to so many pixels, and from so many channels in and out, Winograd's way spends its time on transforming weights: measured with 512 channels,
4x4 pixels and batch 25, 50 ms against 29 for torch's direct bfloat16 products, but 19 against 27 with 256 channels and 8x8 pixels."""

_switched_off = False
_half = False


def _constant_in_compiled_code(function: Callable[[], bool]) -> Callable[[], bool]:
    """Mark a function whose answer torch.compile takes for constant.

    torch.compiler.assume_constant_result does no more, but imports torch's compiler: a second at every start.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function


@contextmanager
def switched_off() -> Iterator[None]:
    """Let torch's own operators do everything while the context lasts."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


@_constant_in_compiled_code
def multiply_bfloat16() -> bool:
    """Whether the kernels can multiply bfloat16 values here: they could be compiled, for an x86 processor with AVX512-BF16."""
    kernels = library()
    return kernels is not None and bool(kernels.multiplies_bfloat16())


@contextmanager
def bfloat16_products() -> Iterator[None]:
    """Let convolutions of 16 channels or more, and first blocks, multiply bfloat16 values while the context lasts; their gradients then do so, too,
    but for that of an image.

    Maps, weights and sums stay float32. A convolution by the kernels errs by about 1.2 % of its result's norm, 4 times as much as a direct one of
    bfloat16 operands, as the transforms of Winograd's way amplify rounding; it takes 0.6 of the time. What the kernels do not take (other filters and
    strides, maps that the weights outweigh) is left to torch's direct one.

    Raises:
        RuntimeError: the processor has no instruction for it, see `multiply_bfloat16`.
    """
    if not multiply_bfloat16():
        raise RuntimeError("this processor does not multiply bfloat16 values")
    global _half
    before, _half = _half, True
    try:
        yield
    finally:
        _half = before


def suit(map_NCHW: torch.Tensor, smallest: int = SMALLEST_MAP) -> bool:
    """Whether the kernels take this map: float32 on a CPU outside autocast, not below `smallest` pixels, and they could be compiled here."""
    if _switched_off or map_NCHW.device.type != "cpu" or map_NCHW.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    return min(map_NCHW.shape[2:]) >= smallest and map_NCHW.shape[0] > 0 and _available()


def suit_channels(n_in: int, n_out: int) -> bool:
    """Whether the convolution kernel takes this many input and output channels."""
    return n_out % BLOCK == 0 and (n_in % BLOCK == 0 or n_in <= MOST_DIRECT_CHANNELS)


def weights_outweigh(map_NCHW: torch.Tensor, n_in: int, n_out: int) -> bool:
    """Whether torch's direct convolution in bfloat16 products, which have to be in force, is faster than the kernel: many channels, few pixels.

    Not a matter of the batch: which way a map goes does not depend on what else is in it.
    """
    return _half and map_NCHW.shape[2:].numel() <= LARGEST_OUTWEIGHED_MAP and min(n_in, n_out) >= FEWEST_OUTWEIGHING_CHANNELS


@_constant_in_compiled_code
def _available() -> bool:
    return library() is not None


def products_are_bfloat16() -> bool:
    """Whether `bfloat16_products` is in force."""
    return _half
