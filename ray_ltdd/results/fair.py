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

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ray_ltdd.errors import InputError

CAVEAT = (
    "Label-robust and augmentation-robust scores are DD-Ranking's (arXiv 2505.13300): 0 to 1, and 0.27 where the images are no better than random "
    "ones and one-hot labels no worse than the whole set. Unlike there, one recipe serves all, the last epoch counts, the whole set is long-tailed."
)
"""What must be said beside a score."""

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
        real_hard, distilled_hard, distilled, random: top-1 as shares in [0, 1], see `ray_ltdd.results.fair_runs.NEEDS`; numbers, or arrays over
            seeds (the score's mean is then over the seeds' scores). NaN gives NaN.
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
        distilled, random, distilled_plain, random_plain: top-1 as shares in [0, 1], see `ray_ltdd.results.fair_runs.NEEDS`; numbers, or arrays.
        weight: of the gain under augmentation; 1 - weight is that of the gain without.

    Raises:
        InputError: an accuracy or the weight is outside [0, 1].
    """
    accuracies = _shares(distilled=distilled, random=random, distilled_plain=distilled_plain, random_plain=random_plain)
    _require_weight(weight)
    augmented = accuracies["distilled"] - accuracies["random"]
    plain = accuracies["distilled_plain"] - accuracies["random_plain"]
    return AugmentationRobust(augmented, plain, _normalised(weight * augmented + (1 - weight) * plain))


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
