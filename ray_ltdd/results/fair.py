"""The label-robust and the augmentation-robust score of DD-Ranking: how much of an accuracy is the images', not the labels' or the augmentation's.

Definitions: Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", arXiv 2505.13300, and the documentation of its package
`ddranking` 0.2.0 (https://github.com/NUS-HPC-AI-Lab/DD-Ranking). With accuracies as shares in [0, 1]:

    recovery    = real_hard - distilled_hard                      how far one-hot labels are from the whole set's accuracy (HLR)
    improvement = distilled - random                              over random real images under one recipe (IOR)
    a           = w * improvement - (1 - w) * recovery
    b           = w * (distilled - random) + (1 - w) * (distilled_plain - random_plain)
    score       = (e^x - e^-1) / (e - e^-1)                       with x = a: label-robust, x = b: augmentation-robust; 0 at x = -1, 1 at x = 1

What differs here, and must be said beside a score: their package 0.2.0 puts percents into the exponentials, against its own definition; it searches
a learning rate for every set and takes the best epoch on the test set, where here one recipe serves all and the last epoch counts; and `real` is
the whole long-tailed training set (baseline `whole`, trained for as many steps as a student), not a balanced one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ray_ltdd.errors import InputError
from ray_ltdd.results.load import parsed_settings, recipe

HARD: Mapping[str, Any] = MappingProxyType({"evaluate.soft_weight": 0.0, "evaluate.hard_weight": 1.0})
"""Settings of students that see one-hot labels alone."""

PLAIN: Mapping[str, Any] = MappingProxyType({"relabel.views.min_scale": 1.0, "relabel.views.flip": False, "relabel.views.mix": "none"})
"""Settings of students without augmentation. A crop of scale 1 may still change the aspect ratio, up to 4:3."""

RANDOM_IMAGES: Mapping[str, Any] = MappingProxyType(
    {
        "select_crops.method": "random",
        "select_crops.crops_per_image": 1,
        "select_crops.min_scale": 1.0,
        "select_crops.max_scale": 1.0,
        "select_crops.flip": False,
        "recover.steps": 0,
    }
)
"""Settings that put random real images in the distilled ones' place, under the same labels and recipe."""


@dataclass(frozen=True)
class Need:
    """An accuracy a score needs: that of students of `method`, under a run's own settings but for `changes` (dotted name -> value)."""

    method: str
    changes: Mapping[str, Any]
    meaning: str


NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "distilled": Need("distilled", {}, "distilled images under the run's own labels and views: every run has them"),
        "random": Need("distilled", RANDOM_IMAGES, "random real images with the teacher's labels, same views"),
        "real_hard": Need("whole", {}, "the whole training set with one-hot labels: the baseline `whole` (evaluate.baselines)"),
        "distilled_hard": Need("distilled", HARD, "distilled images with one-hot labels"),
        "distilled_plain": Need("distilled", PLAIN, "distilled images without augmentation"),
        "random_plain": Need("distilled", {**RANDOM_IMAGES, **PLAIN}, "random real images without augmentation, with the teacher's labels"),
    }
)
"""Every accuracy the two scores need. All but `distilled` and `real_hard` are one more run each, which reuses the experts (and, where the images
are the distilled ones, the images) from the store and trains its students alone."""

LABEL_ROBUST = ("real_hard", "distilled_hard", "distilled", "random")
AUGMENTATION_ROBUST = ("distilled", "random", "distilled_plain", "random_plain")


@dataclass(frozen=True)
class LabelRobust:
    """Attributes: `recovery` (HLR), `improvement` (IOR), `score`; float64 arrays of the accuracies' shape."""

    recovery: NDArray[np.float64]
    improvement: NDArray[np.float64]
    score: NDArray[np.float64]


@dataclass(frozen=True)
class AugmentationRobust:
    """Attributes: gain over random images with and without augmentation, `score`; float64 arrays of the accuracies' shape."""

    with_augmentation: NDArray[np.float64]
    without_augmentation: NDArray[np.float64]
    score: NDArray[np.float64]


def label_robust_score(real_hard: ArrayLike, distilled_hard: ArrayLike, distilled: ArrayLike, random: ArrayLike, weight: float = 0.5) -> LabelRobust:
    """Return the label-robust score; see the definitions above.

    Args:
        real_hard, distilled_hard, distilled, random: top-1 as shares in [0, 1], see `NEEDS`; numbers, or arrays over seeds (the score's mean is
            then over the seeds' scores).
        weight: w, of the improvement over random images; 1 - w is that of the recovery.

    Raises:
        InputError: an accuracy or the weight is outside [0, 1].
    """
    accuracies = _shares(real_hard=real_hard, distilled_hard=distilled_hard, distilled=distilled, random=random)
    _require_weight(weight)
    recovery = accuracies["real_hard"] - accuracies["distilled_hard"]
    improvement = accuracies["distilled"] - accuracies["random"]
    return LabelRobust(recovery, improvement, _normalised(weight * improvement - (1 - weight) * recovery))


def augmentation_robust_score(
    distilled: ArrayLike, random: ArrayLike, distilled_plain: ArrayLike, random_plain: ArrayLike, weight: float = 0.5
) -> AugmentationRobust:
    """Return the augmentation-robust score; see the definitions above.

    Args:
        distilled, random, distilled_plain, random_plain: top-1 as shares in [0, 1], see `NEEDS`; numbers, or arrays over seeds.
        weight: of the gain under augmentation; 1 - weight is that of the gain without.

    Raises:
        InputError: an accuracy or the weight is outside [0, 1].
    """
    accuracies = _shares(distilled=distilled, random=random, distilled_plain=distilled_plain, random_plain=random_plain)
    _require_weight(weight)
    augmented = accuracies["distilled"] - accuracies["random"]
    plain = accuracies["distilled_plain"] - accuracies["random_plain"]
    return AugmentationRobust(augmented, plain, _normalised(weight * augmented + (1 - weight) * plain))


def fair_accuracies(rows: pd.DataFrame, recipe_key: str, metric: str = "top1") -> tuple[pd.DataFrame, dict[str, str]]:
    """Find the accuracies both scores need among result rows, seed by seed.

    Args:
        rows: of `load_results`, with the runs that `NEEDS` asks for as far as they exist.
        recipe_key: the recipe of distilled images to be scored, from the column `recipe`.
        metric: the accuracy.

    Returns:
        a table indexed by (`seed`, `number`) with one column for each entry of `NEEDS` that was found, and for each that was not, the
        overrides of `ray-ltdd run` that would make it.

    Raises:
        InputError: no row of distilled images has this recipe.
    """
    base = rows[(rows["recipe"] == recipe_key) & (rows["method"] == "distilled")]
    if base.empty:
        raise InputError(f"no row of distilled images has the recipe {recipe_key!r}: take one from the column `recipe`.")
    (settings,) = parsed_settings(base.iloc[:1])
    found, missing = {}, {}
    for name, need in NEEDS.items():
        wanted = recipe(changed(settings, need.changes), need.method)
        own = rows[(rows["recipe"] == wanted) & (rows["method"] == need.method)].drop_duplicates("artifact")
        if own.empty:
            missing[name] = overrides(need)
        else:
            found[name] = own.set_index(["seed", "number"])[metric]
    return pd.DataFrame(found), missing


def overrides(need: Need) -> str:
    """Return a need's changes as `ray-ltdd run` takes them: `name=value` separated by blanks."""
    if need.method == "whole":
        return "evaluate.baselines=[whole]"
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in need.changes.items()}
    return " ".join(f"{name}={value}" for name, value in values.items())


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with some values, by dotted name, replaced; what was given stays as it is."""
    copy: dict[str, Any] = dict(settings)
    for name, value in changes.items():
        section, _, rest = name.partition(".")
        copy[section] = changed(copy.get(section) or {}, {rest: value}) if rest else value
    return copy


def _shares(**accuracies: ArrayLike) -> dict[str, NDArray[np.float64]]:
    arrays = {name: np.asarray(value, np.float64) for name, value in accuracies.items()}
    for name, array in arrays.items():
        if ((array < 0) | (array > 1)).any():
            raise InputError(f"{name}={array[(array < 0) | (array > 1)].flat[0]:g} is no share in [0, 1]: divide percents by 100.")
    return arrays


def _require_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise InputError(f"weight={weight} must be between 0 and 1, such as 0.5.")


def _normalised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((np.exp(x) - np.exp(-1)) / (np.e - np.exp(-1)))
