"""What this machine has, and what would be slow on it and why."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from ray_ltdd.artifacts import device_name, free_space_gb
from ray_ltdd.compute import cpp_compiler, has_bfloat16, has_own_kernels
from ray_ltdd.kernels.build import c_compiler
from ray_ltdd.kernels.serving import multiply_bfloat16

LITTLE_MEMORY_GB = 4.0
LITTLE_DISK_GB = 5.0


def examine() -> tuple[dict[str, str], list[str]]:
    """Return facts by name, and sentences of advice; none when nothing would be slow."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = has_bfloat16(device)
    compiler, kernels = cpp_compiler(), has_own_kernels(device)
    memory_gb = psutil.virtual_memory().available / 1e9
    disk_gb = free_space_gb(Path.cwd())
    facts = {
        "ray_ltdd": version("ray_ltdd"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device_name(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "bfloat16": "in hardware" if bfloat16 else "not in hardware",
        "C compiler": c_compiler() or "none",
        "C++ compiler": compiler or "none",
        "own kernels": ("compiled, bfloat16 products" if multiply_bfloat16() else "compiled") if kernels else "none",
        "free memory": f"{memory_gb:.1f} GB",
        "free disk here": f"{disk_gb:.1f} GB",
    }
    advice = []
    if device.type == "cpu":
        advice.append("No GPU: the quick start takes half a minute to two, CIFAR-10-LT at 200 epochs hours, ImageNet-LT is out of reach.")
    if device.type == "cuda" and not bfloat16:
        advice.append("No bfloat16 arithmetic on this GPU: compute.precision=auto trains in float32, about half as fast.")
    if kernels and bfloat16:
        advice.append("compute.precision=auto takes our kernels, and trains narrow experts with batch norm in bfloat16 (compiled when that is long).")
    if device.type == "cpu" and not kernels:
        advice.append("Our kernels could not be compiled: ConvNets train about 2.5 times slower without; on Debian, apt-get install gcc.")
    if device.type == "cuda" and c_compiler() is None:
        advice.append(
            "No C compiler: set compute.compile=off (long trainings are compiled on a GPU, which takes one); on Debian, apt-get install gcc."
        )
    if device.type == "cpu" and compiler is None and (bfloat16 or not kernels):
        advice.append("No C++ compiler: set compute.compile=off (compiled training is about 1.5 times as fast); on Debian, apt-get install g++.")
    if memory_gb < LITTLE_MEMORY_GB:
        advice.append(f"Only {memory_gb:.1f} GB of memory free: a CIFAR run takes up to 2.5 GB.")
    if disk_gb < LITTLE_DISK_GB:
        advice.append(f"Only {disk_gb:.1f} GB of disk free here: runs and prepared data go to output.root and data.root, which can be elsewhere.")
    return facts, advice
