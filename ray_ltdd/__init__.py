"""Distil long-tailed image datasets into tiny class-balanced ones."""

from typing import TYPE_CHECKING, Any

from ray_ltdd import allocator, openmp  # noqa: F401  stands before everything that imports torch
from ray_ltdd.errors import InputError

if TYPE_CHECKING:
    from ray_ltdd.results.distilled import DistilledDataset, load_distilled
    from ray_ltdd.results.distilled_views import StoredBatch, StoredViews, load_stored_views

__all__ = ["DistilledDataset", "InputError", "StoredBatch", "StoredViews", "load_distilled", "load_stored_views"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: a command that only prints help should not wait for it
    if name in ("DistilledDataset", "load_distilled"):
        from ray_ltdd.results import distilled

        return getattr(distilled, name)
    if name in ("StoredBatch", "StoredViews", "load_stored_views"):
        from ray_ltdd.results import distilled_views

        return getattr(distilled_views, name)
    raise AttributeError(f"module 'ray_ltdd' has no attribute {name!r}")
