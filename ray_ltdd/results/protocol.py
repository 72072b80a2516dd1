"""How a row of ours was made otherwise than the published number it stands beside, in sentences for a footnote."""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Any

import pandas as pd

from ray_ltdd.data.catalogue import BENCHMARKS
from ray_ltdd.results.load import parsed_settings

STANDING = (
    "Published students (and experts) are the best of the checks made on the test set while they were trained; ours are those of the last epoch.",
)
"""What differs in every row."""

PAPER_STUDENTS = 5

_EXPERT_EPOCHS = 200
_STUDENT_EPOCHS = 1000
_RECOVERY_STEPS = {"cifar10_lt": 75, "cifar100_lt": 2000, "tiny_imagenet_lt": 2000, "imagenet_lt": 1000}
_TESTED_PER_CLASS = {"cifar10_lt": 1000, "cifar100_lt": 100, "tiny_imagenet_lt": 50, "imagenet_lt": 50}
_LABELS = {"one": "one stored logit vector per image", "stored": "stored logits of {stored_epochs} epochs of views"}
_FINEST = 10_000


def differences(rows: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return, for every recipe of distilled or random images, how its protocol differs from the paper's; nothing for benchmarks it has not.

    Args:
        rows: of `load_results`.
    """
    own = rows[rows["method"].isin(["distilled", "random"]) & rows["benchmark"].isin(list(_RECOVERY_STEPS))]
    return {str(key): tuple(_sentences(group)) for key, group in own.groupby("recipe", sort=False)}


def variants(rows: pd.DataFrame) -> dict[str, str]:
    """Return what every recipe of distilled images leaves out; see `variant`."""
    own = rows[rows["method"] == "distilled"].drop_duplicates("recipe")
    return {key: variant(settings) for key, settings in zip(own["recipe"], parsed_settings(own), strict=True)}


def variant(settings: Mapping[str, Any]) -> str:
    """Return which parts of the method the settings leave out, joined by commas; empty when none. The first three are the paper's Table 8."""
    views = ("relabel.views.min_scale", 1.0), ("relabel.views.flip", False), ("relabel.views.mix", "none")
    left_out = {
        "w/o model debiasing": not any(_get(settings, f"{role}.training.debias", True) for role in ("observer", "teacher")),
        "w/o statistics recalibration": _get(settings, "calibrate.class_weights", "uniform") == "sample",
        "w/o adapted initialization": _get(settings, "select_crops.method", "confidence") != "confidence",
        "w/o recovery": _get(settings, "recover.steps", 1) == 0,
        "w/o soft labels": _get(settings, "evaluate.soft_weight", 1.0) == 0,
        "w/o augmentation": all(_get(settings, name, None) == value for name, value in views),
    }
    return ", ".join(name for name, is_so in left_out.items() if is_so)


def n_tested_per_class(per_class: Iterable[Sequence[float]]) -> int:
    """Return the test images of each class that the accuracies of a balanced test set show: the smallest number of which all are whole shares.

    It divides the true number, and is smaller only where all accuracies happen to be multiples of a coarser share.

    Args:
        per_class: one list of shares in [0, 1] a row; missing ones are NaN or None.
    """
    shares = {share for row in per_class if row is not None for share in row if share is not None and share == share}
    return lcm(*(Fraction(share).limit_denominator(_FINEST).denominator for share in shares))


def _sentences(rows: pd.DataFrame) -> Iterable[str]:
    row = rows.iloc[0]
    settings, benchmark = parsed_settings(rows.iloc[:1])[0], str(row["benchmark"])
    if row["method"] == "distilled":
        yield from _budget(settings, benchmark)
    students = _get(settings, "evaluate.epochs", _STUDENT_EPOCHS)
    if students != _STUDENT_EPOCHS:
        yield f"students of {students} epochs (paper: {_STUDENT_EPOCHS})"
    if row["part"] != "test":
        yield f"tested on the {row['part']} part of the training source, not on the test set"
    else:
        n, paper = n_tested_per_class(rows["per_class"]), _TESTED_PER_CLASS[benchmark]
        if n < paper and paper % n == 0:
            yield f"tested on {n} images per class (paper: {paper})"
    if row["labels"] in _LABELS and _get(settings, "evaluate.soft_weight", 1.0) > 0:
        stored = _get(settings, "relabel.stored_epochs", "some")
        yield f"labels: {_LABELS[str(row['labels'])].format(stored_epochs=stored)} (paper: the teacher labels every view)"
    head, paper_head = max(row["count_per_class"]), BENCHMARKS[benchmark].head_count
    if head != paper_head:
        yield f"the largest class has {head} training images (paper: {paper_head})"


def _budget(settings: Mapping[str, Any], benchmark: str) -> Iterable[str]:
    epochs = {_get(settings, f"{role}.training.epochs", _EXPERT_EPOCHS) for role in ("observer", "teacher")}
    if epochs != {_EXPERT_EPOCHS}:
        yield f"experts of {' and '.join(map(str, sorted(epochs)))} epochs (paper: {_EXPERT_EPOCHS})"
    steps = _get(settings, "recover.steps", _RECOVERY_STEPS[benchmark])
    if steps not in (0, _RECOVERY_STEPS[benchmark]):
        yield f"{steps} steps of recovery (paper: {_RECOVERY_STEPS[benchmark]})"


def _get(settings: Mapping[str, Any], name: str, default: Any) -> Any:
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return default
        found = found[part]
    return found
