"""Where and how tensors are computed: device, precision, compilation, threads.

bf16 is chosen only where the hardware multiplies in it: on a CPU without such instructions torch emulates them, measured 8 times slower than
float32 (ConvNet-3, 33 against 289 images/s on an AVX2 machine). On a CPU that has them this package's kernels keep maps and weights in float32 and
multiply in bf16, as a GPU does in TF32; that needs no compilation first.
"""

import logging
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field

from ray_ltdd.errors import InputError
from ray_ltdd.kernels.build import c_compiler, library
from ray_ltdd.kernels.serving import bfloat16_products, multiply_bfloat16, switched_off
from ray_ltdd.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILE_WORTH_FLOPS = {"cpu": 3e12, "cuda": 1e16}
"""Work from which compiling earns back its 5 to 15 seconds on 2 cores: 10,000 images forward and backward, or 30,000 forward, through a ConvNet-3.
On a GPU, which replays recorded steps without compiling them, an estimate: three minutes at 5e13 operations a second."""

MOST_NARROW_CHANNELS = 64
"""A network none of whose convolutions gives more is narrow: there our convolutions gain less."""


class ComputeConfig(Settings):
    """Device, precision, compilation."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where tensors live; auto takes a GPU when CUDA sees one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="type of forward and backward passes; auto takes float32 on a CPU with a C compiler, which has our own kernels (convolutions of "
        "bfloat16 products where the CPU has them), else bfloat16 where the hardware multiplies in it. Moments are always float64",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile; auto compiles stages with enough work to earn it back, but none in float32 on a CPU, which has our own kernels",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads torch uses; empty: as many as torch chooses")


@dataclass(frozen=True)
class Backend:
    """The resolved choice. Small and picklable.

    Attributes:
        dtype_without_kernels: what networks that our kernels serve badly are trained in, where the precision is left open; None: `dtype` as well.
        bfloat16_products: our kernels' convolutions multiply bfloat16 values; their maps, weights and sums are `dtype`, float32.
    """

    device: torch.device
    dtype: torch.dtype
    compiles: Literal["auto", "on", "off"] = "auto"
    dtype_without_kernels: torch.dtype | None = None
    bfloat16_products: bool = False

    def suited_to(self, network: torch.nn.Module) -> "Backend":
        """This backend as it is best for training `network`.

        Where the precision is left open, a narrow network with batch norm is trained in torch's bfloat16 if the CPU multiplies in it: our
        convolutions gain less where there are few channels. Images/s on 2 cores with AVX512-BF16, by our kernels and by torch's compiled bfloat16:
        ResNet-32 481 and 604; before batch norm had a kernel, which gains 3 to 8 % in ResNets of few channels and nothing in ResNet-18 and VGG-11,
        ResNet-9 of width 32 726 and 561; on one of the cores beside other work ResNet-18 77 and 56, ConvNet-3 with batch norm 688 and 570, VGG-11
        205 and 173.
        """
        has_batch_norm = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules())
        widest = max((module.out_channels for module in network.modules() if isinstance(module, torch.nn.Conv2d)), default=0)
        if self.dtype_without_kernels is None or not has_batch_norm or widest > MOST_NARROW_CHANNELS:
            return self
        return Backend(self.device, self.dtype_without_kernels, self.compiles)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context for forward passes; does nothing in plain float32."""
        if self.bfloat16_products:
            return bfloat16_products()
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)

    def worth_compiling(self, flops: float) -> bool:
        """Whether `flops` floating-point operations earn compilation back, or the settings force it.

        Where this package's kernels do the work there is little left to compile: on 2 cores with AVX2 training gains 2 % (ConvNet-3), loses 12 to
        15 % (VGG-11, AlexNet, a ConvNet with batch norm) or gains 14 % (ResNet-32) from what takes 10 to 60 seconds; that was before batch norm had a
        kernel.
        """
        if self.compiles != "auto" or self._own_kernels():
            return self.compiles == "on"
        return flops >= COMPILE_WORTH_FLOPS[self.device.type]

    def _own_kernels(self) -> bool:
        return self.dtype is torch.float32 and has_own_kernels(self.device)

    def compile(self, function: Function, flops: float) -> Function:
        """Return `function` compiled if that pays off for `flops` floating-point operations in all, else as it is.

        The rule looks at the settings only, never at a clock: compiled and eager code round differently, and a run must give the same bytes twice.

        Raises:
            InputError: it is to be compiled, and there is no C++ compiler (for a CPU) or C compiler (for a GPU).
        """
        if self.worth_compiling(flops):
            if self.device.type == "cpu":
                compiler = self._required(
                    "C++", cpp_compiler(), "CXX", "g++, clang++ or c++", "the package g++ on Debian and Ubuntu, gcc-c++ on Fedora"
                )
                # torch itself looks for one name only, g++ or on a Mac clang++
                os.environ["CXX"] = os.environ.get("CXX") or compiler
            else:
                # Triton builds the launchers of its kernels
                self._required("C", c_compiler(), "CC", "gcc, clang or cc", "the package gcc")
            # torch warns of CUDA tools without a CUDA device when it builds C++ for the CPU, which is what is wanted then
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            return torch.compile(function, dynamic=False)  # type: ignore[return-value]
        return function

    def _required(self, language: str, compiler: str | None, variable: str, names: str, remedy: str) -> str:
        if compiler is None:
            looked_for = f"{variable}={os.environ[variable]}" if os.environ.get(variable) else names
            device = "CPU" if self.device.type == "cpu" else "GPU"
            raise InputError(
                f"compute.compile={self.compiles} compiles this stage for the {device}, but there is no {language} compiler ({looked_for}) on PATH: "
                f"set compute.compile=off, or install one ({remedy})."
            )
        return compiler

    def forget(self) -> None:
        """Drop compiled graphs: torch gives up compiling a function after a few versions of it, and every task brings its own."""
        if "torch._dynamo" in sys.modules:
            # it would be imported to be reset, which takes seconds
            torch.compiler.reset()


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that `torch.compile` needs on a CPU: the one the environment variable CXX names, else g++, clang++ or c++; or None."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return next((path for name in named or ("g++", "clang++", "c++") if (path := shutil.which(name))), None)


@torch.no_grad()
def forward_flops(module: torch.nn.Module, channels: int, image_size: int) -> float:
    """Floating-point operations of one image's forward pass; a training step takes three times as many."""
    # imports triton, half a second
    from torch.utils.flop_counter import FlopCounterMode

    modes = {part: part.training for part in module.modules()}
    device = next(module.parameters()).device
    # torch does not know what the kernels' operators cost
    with switched_off(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, channels, image_size, image_size, device=device))
    for part, mode in modes.items():
        part.training = mode
    return float(counter.get_total_flops())


def resolve_backend(config: ComputeConfig) -> Backend:
    """Choose device and precision, and set torch's thread count.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device=cuda, but torch sees no CUDA device here: use compute.device=auto or cpu.")
    name = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        _be_deterministic()
    if config.precision != "auto":
        return Backend(device, getattr(torch, config.precision), config.compile)
    best = torch.bfloat16 if has_bfloat16(device) else torch.float32
    if has_own_kernels(device):
        return Backend(device, torch.float32, config.compile, None if best is torch.float32 else best, multiply_bfloat16())
    return Backend(device, best, config.compile)


def _be_deterministic() -> None:
    """Let a GPU give the same bytes twice: kernels that add up in a fixed order wherever torch has them, and says so where it has not."""
    # cuBLAS reads it when its first handle is made
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # would write every new tensor once before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def has_own_kernels(device: torch.device) -> bool:
    """Whether this package's kernels serve the device: a CPU, where they could be compiled."""
    return device.type == "cpu" and library() is not None


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (NVIDIA from Ampere; x86 with AVX512-BF16 or AMX; ARM with bf16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not info.exists():
        return False
    flags = next((line for line in info.read_text().splitlines() if line.lower().startswith(("flags", "features"))), "")
    return any(flag in flags.split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))
