"""The one long-tailed split of a run: drawn once, named, fingerprinted, used by every stage.

Shapes: N images, K classes, C channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.prepared import ImageSet, PreparedDataset
from ray_ltdd.errors import InputError
from ray_ltdd.seeding import generator
from ray_ltdd.settings import Settings

_CHUNK_BYTES = 1 << 25


class SplitConfig(Settings):
    """How many training images each class keeps, and which."""

    name: str = Field("main", description="Name of the draw, part of its seed and of the printed name.", pattern=r"^[A-Za-z0-9_.-]+$")
    profile: Literal["exponential", "step", "counts", "natural"] = Field(
        "exponential",
        description="Images per class: exponential decay in class order, a step, the given counts, or all there are.",
    )
    imbalance_factor: float = Field(100.0, description="Largest class over smallest (exponential and step).", ge=1)
    head_count: int | None = Field(
        None,
        description="Images of the largest class (exponential, step); the benchmark's own or, if none has them, all.",
        ge=1,
    )
    step_fraction: float = Field(0.5, description="Share of the classes that keep head_count images (step).", gt=0, lt=1)
    counts: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, description="Images of each class in class order (counts).")
    allow_fewer: bool = Field(False, description="Take what there is where a class has fewer images than the profile asks for.")
    validation_per_class: int = Field(
        0,
        description="Images per class set aside from the training source before the split, for searches.",
        ge=0,
    )
    seed: int = Field(0, description="Seed of the draw.", ge=0)

    @model_validator(mode="after")
    def _counts_go_with_their_profile(self) -> Self:
        if (self.profile == "counts") != (self.counts is not None):
            raise ValueError("split.counts and split.profile=counts go together: give both or neither")
        return self


@dataclass(frozen=True, eq=False)
class LongTailedSplit:
    """Which images are trained on.

    Attributes:
        name: dataset, profile, draw and seed, such as `cifar10_lt-exponential-if100-main-s0`.
        fingerprint: SHA-256 (hex) of the dataset's fingerprint and the indices.
        train_index_N: positions in `prepared.train`, int64, sorted by class, then ascending.
        validation_index_N: likewise for the validation part (maybe empty); disjoint from `train_index_N`.
        count_K: training images of each class, int64.
        mean_C: mean of the drawn training images' pixels in [0, 1], float64.
        std_C: their standard deviation over images and positions, float64, above zero.
    """

    name: str
    fingerprint: str
    train_index_N: np.ndarray
    validation_index_N: np.ndarray
    count_K: np.ndarray
    mean_C: np.ndarray
    std_C: np.ndarray


def class_counts(config: SplitConfig, available_K: np.ndarray, class_names: Sequence[str], benchmark_head_count: int | None = None) -> np.ndarray:
    """Return the training images of each class, int64 `[K]`, each at least 1 and at most `available_K`.

    The exponential profile is n_c = floor(n_0 * IF^(-c / (K - 1))) for class c = 0..K-1.

    Args:
        config: the profile.
        available_K: images of each class the source offers, the validation part taken off.
        class_names: K names, for messages.
        benchmark_head_count: n_0 where `config.head_count` is None and a class has that many.

    Raises:
        InputError: a class has too few images (and `config.allow_fewer` is off) or would get none; `config.counts` has
            another length.
    """
    wanted_K = _wanted_counts(config, available_K, benchmark_head_count)
    short_K = np.flatnonzero(wanted_K > available_K)
    if len(short_K) and not config.allow_fewer:
        k = int(short_K[0])
        aside = f" beside the {config.validation_per_class} for validation" if config.validation_per_class else ""
        raise InputError(
            f"class {class_names[k]!r} needs {wanted_K[k]} training images for split.profile={config.profile} but the "
            f"source offers {available_K[k]}{aside}: set {_remedies(config, wanted_K, available_K, benchmark_head_count)}"
        )
    count_K = np.minimum(wanted_K, available_K)
    if (count_K < 1).any():
        k = int(np.argmin(count_K))
        remedy = "add images" if available_K[k] < 1 else f"set {_remedies(config, wanted_K, available_K, benchmark_head_count)}"
        raise InputError(f"class {class_names[k]!r} is left with no training image (the source offers {available_K[k]}): {remedy}")
    return count_K


def draw_split(config: SplitConfig, prepared: PreparedDataset) -> LongTailedSplit:
    """Draw the split of `config` from the training source.

    Each class has one random order of its images, which depends on seed, draw name and class alone. Training takes from
    its front, validation from its end: so a split with a larger imbalance factor is part of one with a smaller, and the
    validation part depends on neither profile nor factor.

    Raises:
        InputError: a class has too few images; all pixels of a channel are equal.
    """
    class_count = len(prepared.class_names)
    orders = [_class_order(config, prepared.train.label_N, k) for k in range(class_count)]
    available_K = np.array([len(order_N) for order_N in orders], np.int64) - config.validation_per_class
    if (available_K < 1).any():
        k = int(np.argmin(available_K))
        raise InputError(
            f"class {prepared.class_names[k]!r} has {len(orders[k])} images, so "
            f"split.validation_per_class={config.validation_per_class} leaves none to train on: lower it"
        )
    count_K = class_counts(config, available_K, prepared.class_names, find_benchmark(prepared.dataset).head_count)
    train_index_N = np.concatenate([np.sort(order_N[:count]) for order_N, count in zip(orders, count_K, strict=True)])
    validation_index_N = np.concatenate([np.sort(order_N[len(order_N) - config.validation_per_class :]) for order_N in orders])
    mean_C, std_C = _pixel_moments(prepared.train, train_index_N)
    return LongTailedSplit(
        name=_split_name(config, prepared.dataset),
        fingerprint=_fingerprint(prepared.fingerprint, train_index_N, validation_index_N),
        train_index_N=train_index_N,
        validation_index_N=validation_index_N,
        count_K=count_K,
        mean_C=mean_C,
        std_C=std_C,
    )


def _wanted_counts(config: SplitConfig, available_K: np.ndarray, benchmark_head_count: int | None) -> np.ndarray:
    if config.profile == "natural":
        return available_K
    if config.counts is not None:
        if len(config.counts) != len(available_K):
            raise InputError(f"split.counts has {len(config.counts)} entries but the dataset has {len(available_K)} classes: give one each")
        return np.array(config.counts, np.int64)
    return _floor(_head_count(config, available_K, benchmark_head_count) * _shares(config, len(available_K)))


def _head_count(config: SplitConfig, available_K: np.ndarray, benchmark_head_count: int | None) -> int:
    largest = int(available_K.max())
    if config.head_count is not None:
        return config.head_count
    return largest if benchmark_head_count is None else min(benchmark_head_count, largest)


def _shares(config: SplitConfig, class_count: int) -> np.ndarray:
    """Return each class's share of the head class's images, float64 `[K]`."""
    if class_count == 1:
        return np.ones(1)
    if config.profile == "exponential":
        return config.imbalance_factor ** (-np.arange(class_count) / (class_count - 1))
    heads = min(max(round(config.step_fraction * class_count), 1), class_count - 1)
    return np.where(np.arange(class_count) < heads, 1.0, 1.0 / config.imbalance_factor)


def _floor(value_K: np.ndarray) -> np.ndarray:
    # 49 * (1 / 49) comes out as 0.999...: what lies within rounding error below an integer is that integer.
    return np.floor(value_K * (1 + 1e-12)).astype(np.int64)


def _remedies(config: SplitConfig, wanted_K: np.ndarray, available_K: np.ndarray, benchmark_head_count: int | None) -> str:
    """Return the settings each of which gives every class an image: a remedy never leads to the next error."""
    if config.profile == "counts":
        return "split.allow_fewer=true or a smaller count"
    remedies = []
    if benchmark_head_count is None:
        remedies.append("split.profile=natural to take all there are (if the dataset is long-tailed already)")
    if wanted_K.min() >= 1:
        remedies.append("split.allow_fewer=true")
    else:
        fewer = "" if config.allow_fewer else " with split.allow_fewer=true"
        remedies.append(f"split.imbalance_factor of at most {wanted_K.max()}{fewer}")
    share_K = _shares(config, len(available_K))
    lowest, highest = int(np.ceil(1 / share_K.min())), int(_floor((available_K / share_K).min(keepdims=True))[0])
    if lowest <= highest:
        remedies.append(f"split.head_count of {lowest} to {highest}")
    return " or ".join(remedies)


def _class_order(config: SplitConfig, label_N: np.ndarray, k: int) -> np.ndarray:
    index_N = np.flatnonzero(label_N == k)
    return index_N[torch.randperm(len(index_N), generator=generator("cpu", config.seed, "split", config.name, k)).numpy()]


def _pixel_moments(images: ImageSet, index_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation `[C]` of pixels in [0, 1] from exact integer sums: chunks do not matter."""
    channels, pixels = images.image_NCHW.shape[1], int(np.prod(images.image_NCHW.shape[2:]))
    step = max(1, _CHUNK_BYTES // (channels * pixels))
    sum_C, square_C = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    for start in range(0, len(index_N), step):
        value_NCP = images.image_NCHW[index_N[start : start + step]].reshape(-1, channels, pixels).astype(np.uint16)
        sum_C += value_NCP.sum(axis=(0, 2), dtype=np.uint64)
        square_C += np.square(value_NCP).sum(axis=(0, 2), dtype=np.uint64)  # 255^2 fits 16 bits
    total = len(index_N) * pixels
    mean_C = sum_C / total
    variance_C = np.array([(int(q) * total - int(s) ** 2) / total**2 for s, q in zip(sum_C, square_C, strict=True)])
    if (variance_C == 0).any():
        raise InputError(f"all pixels of channel {int(np.argmin(variance_C))} of the training images are equal: the images are blank")
    return mean_C / 255, np.sqrt(variance_C) / 255


def _split_name(config: SplitConfig, dataset: str) -> str:
    factor = f"-if{config.imbalance_factor:g}" if config.profile in ("exponential", "step") else ""
    return f"{dataset}-{config.profile}{factor}-{config.name}-s{config.seed}"


def _fingerprint(dataset_fingerprint: str, train_index_N: np.ndarray, validation_index_N: np.ndarray) -> str:
    digest = hashlib.sha256(dataset_fingerprint.encode())
    for index_N in (train_index_N, validation_index_N):
        digest.update(f"/{len(index_N)}/".encode() + index_N.astype("<i8").tobytes())
    return digest.hexdigest()
