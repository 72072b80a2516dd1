"""Distil long-tailed image datasets into tiny class-balanced ones."""

from ray_ltdd import openmp  # noqa: F401  stands before everything that imports torch
from ray_ltdd.errors import InputError
from ray_ltdd.results.distilled import DistilledDataset, load_distilled

__all__ = ["DistilledDataset", "InputError", "load_distilled"]
