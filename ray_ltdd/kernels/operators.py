"""How a C function becomes a torch operator: registration, and arguments as C takes them.

Shapes: N images, C channels, I input and O output channels, H height, W width.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from ray_ltdd.kernels.build import library

LIBRARY = torch.library.Library("ray_ltdd", "DEF")


class _Strides(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_long) for name in ("out", "input", "row", "column"))


class _Norm(ctypes.Structure):
    _fields_ = (("scale", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("epsilon", ctypes.c_float))


def norm_argument(scale_C: torch.Tensor, shift_C: torch.Tensor, epsilon: float) -> _Norm:
    """An instance norm's parameters as C takes them."""
    return _Norm(scale_C.data_ptr(), shift_C.data_ptr(), epsilon)


def strides(weight_OIHW: torch.Tensor, swapped: bool = False) -> _Strides:
    """A filter's strides as C takes them, input and output channels exchanged if `swapped`."""
    out, into, row, column = weight_OIHW.stride()
    return _Strides(into, out, row, column) if swapped else _Strides(out, into, row, column)


def call(name: str, *arguments: Any) -> None:
    """Call a C function that returns nothing; integers go as long."""
    kernels = library()
    assert kernels is not None  # `suit` has asked
    getattr(kernels, name)(*map(_as_c, arguments))


def _as_c(argument: Any) -> Any:
    if argument is None or isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as a CPU operator. torch.library.custom_op would do, but imports torch's compiler: seconds at every start."""
    LIBRARY.define(schema)
    name = schema.split("(")[0]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        LIBRARY.impl(name, function, "CPU")
        return function

    return register


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the memory order of the kernels, copied if it is in another."""
    return tensor.contiguous(memory_format=torch.channels_last)


def new_map(n: int, channels: int, height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """An empty map in the memory order of the kernels."""
    return torch.empty((n, channels, height, width), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
