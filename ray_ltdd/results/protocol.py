"""How a row of ours was made otherwise than the published number it stands beside, in sentences for a footnote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import pandas as pd

from ray_ltdd.data.catalogue import BENCHMARKS
from ray_ltdd.models.config import ARCHITECTURES
from ray_ltdd.results.fair_runs import PLAIN
from ray_ltdd.results.load import parsed_settings

STANDING = (
    "Published students (and experts) are the best of the checks made on the test set while they were trained; ours are those of the last epoch.",
)
"""What differs in every row."""

PAPER_STUDENTS = 5

_EXPERT_EPOCHS = 200
_STUDENT_EPOCHS = 1000


@dataclass(frozen=True)
class _Authors:
    """The authors' settings for one benchmark.

    Attributes:
        observer: architecture, and width where it is not the usual one.
        observer_name: what it is called.
        recovery_steps: optimiser steps an image.
        optimizer, learning_rate, batch_size: the students'.
        schedule: of the students' rate; None: not stated.
        min_scale: smallest area of the students' crops; None: not stated.
        tested_per_class: test images a class.
    """

    observer: tuple[str, int | None]
    observer_name: str
    recovery_steps: int
    optimizer: str
    learning_rate: float
    batch_size: int
    schedule: str | None
    min_scale: float | None
    tested_per_class: int


_AUTHORS = {
    "cifar10_lt": _Authors(
        ("resnet32", 64), "ResNet-32, 4 times wide", 75, "adamw", 1e-3, 25, "rate halved after epochs 800, 900 and 950", 0.08, 1000
    ),
    "cifar100_lt": _Authors(("resnet32", None), "ResNet-32", 2000, "sgd", 0.1, 100, "cosine rate", 0.5, 100),
    "tiny_imagenet_lt": _Authors(("resnet18", None), "ResNet-18", 2000, "sgd", 0.1, 100, "cosine rate", 0.5, 50),
    "imagenet_lt": _Authors(("resnext50", None), "ResNeXt-50 32x4d", 1000, "adamw", 1e-3, 100, None, None, 50),
}
_OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD", "muon": "Muon"}
_LABELS = {"one": "one stored logit vector per image", "stored": "stored logits of {stored_epochs} epochs of views"}
_FINEST = 10_000


def differences(rows: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Return, for every recipe of distilled or random images, how its protocol differs from the paper's; nothing for benchmarks it has not.

    Args:
        rows: of `load_results`.
    """
    own = rows[rows["method"].isin(["distilled", "random"]) & rows["benchmark"].isin(list(_AUTHORS))]
    return {str(key): tuple(_sentences(group)) for key, group in own.groupby("recipe", sort=False)}


def variants(rows: pd.DataFrame) -> dict[str, str]:
    """Return what every recipe of distilled images leaves out; see `variant`."""
    own = rows[rows["method"] == "distilled"].drop_duplicates("recipe")
    return {key: variant(settings) for key, settings in zip(own["recipe"], parsed_settings(own), strict=True)}


def variant(settings: Mapping[str, Any]) -> str:
    """Return which parts of the method the settings leave out, joined by commas; empty when none. The first two are the paper's Table 8.

    Random initial crops are none: students of our best settings start from them, so they are a difference in protocol (see `differences`).
    """
    left_out = {
        "w/o model debiasing": not any(_get(settings, f"{role}.training.debias", True) for role in ("observer", "teacher")),
        "w/o statistics recalibration": _get(settings, "calibrate.class_weights", "uniform") == "sample",
        "w/o initial crops": _get(settings, "select_crops.method", "confidence") == "noise",
        "w/o recovery": _get(settings, "recover.steps", 1) == 0,
        "w/o soft labels": _get(settings, "evaluate.soft_weight", 1.0) == 0,
        "w/o augmentation": all(_get(settings, name, None) == value for name, value in PLAIN.items()),
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
        yield from _recovery(settings, _AUTHORS[benchmark])
        yield from _training(settings, _AUTHORS[benchmark])
        yield _views(settings, _AUTHORS[benchmark])
    students = _get(settings, "evaluate.epochs", _STUDENT_EPOCHS)
    if students != _STUDENT_EPOCHS:
        yield f"students of {students} epochs (paper: {_STUDENT_EPOCHS})"
    if row["part"] != "test":
        yield f"tested on the {row['part']} part of the training source, not on the test set"
    else:
        n, paper = n_tested_per_class(rows["per_class"]), _AUTHORS[benchmark].tested_per_class
        if n < paper and paper % n == 0:
            yield f"tested on {n} images per class (paper: {paper})"
    if row["labels"] in _LABELS and _get(settings, "evaluate.soft_weight", 1.0) > 0:
        stored = _get(settings, "relabel.stored_epochs", "some")
        yield f"labels: {_LABELS[str(row['labels'])].format(stored_epochs=stored)} (paper: the teacher labels every view)"
    if _get(settings, "relabel.mirror_average", False) and row["method"] == "distilled":
        yield "logits averaged over each view and its mirror image (paper: of the view alone)"
    head, paper_head = max(row["count_per_class"]), BENCHMARKS[benchmark].head_count
    if head != paper_head:
        yield f"the largest class has {head} training images (paper: {paper_head})"


def _recovery(settings: Mapping[str, Any], authors: _Authors) -> Iterable[str]:
    teachers = [_get(settings, "teacher", {}), *(_get(settings, "more_teachers", None) or ())]
    matched = [teacher for teacher in teachers if _get(teacher, "function_matching", None)]
    trained = [_get(settings, "observer", {}), *(teacher for teacher in teachers if teacher not in matched)]
    epochs = {_get(expert, "training.epochs", _EXPERT_EPOCHS) for expert in trained}
    if epochs != {_EXPERT_EPOCHS}:
        yield f"experts of {_listed(sorted(epochs))} epochs (paper: {_EXPERT_EPOCHS})"
    if matched:
        epochs = {_get(teacher, "function_matching.epochs", None) for teacher in matched}
        yield f"a teacher that matched the observer's function for {_listed(sorted(epochs))} epochs (paper: trained from labels)"
    n_teachers = _get(settings, "teacher_seeds", 1) - 1 + len(teachers)
    if n_teachers > 1:
        yield f"labels averaged over {n_teachers} teachers (paper: one)"
    architecture, width = (
        _get(settings, f"observer.model.{name}", own) for name, own in zip(("architecture", "width"), authors.observer, strict=True)
    )
    facts = ARCHITECTURES.get(architecture)
    usual = facts.default_width if facts else None
    if (architecture, width or usual) != (authors.observer[0], authors.observer[1] or usual):
        name = facts.label if facts else architecture
        yield f"observer {name}{f', width {width}' if width else ''} (paper: {authors.observer_name})"
    schedule = _get(settings, "calibrate.momentum.schedule", "cumulative")
    # with the paper's ablation, too, "w/o statistics recalibration", which is named and compared as such
    if schedule != "cumulative" and _get(settings, "calibrate.class_weights", "uniform") != "sample":
        yield f"class moments under the {schedule} schedule (paper: every image weighs the same)"
    if _get(settings, "select_crops.method", "confidence") == "random":
        yield "random initial crops (paper: the most confident)"
    steps = _get(settings, "recover.steps", authors.recovery_steps)
    if steps not in (0, authors.recovery_steps):
        yield f"{steps} steps of recovery (paper: {authors.recovery_steps})"


def _training(settings: Mapping[str, Any], authors: _Authors) -> Iterable[str]:
    optimizer = _get(settings, "evaluate.optimizer", authors.optimizer)
    everywhere = optimizer == "muon" and _get(settings, "evaluate.linear_step", 0.0) > 0
    rate = _get(settings, "evaluate.learning_rate", authors.learning_rate)
    batch = _get(settings, "relabel.views.batch_size", authors.batch_size)
    schedule = _schedule(settings)
    pairs = [
        (
            f"{_OPTIMIZERS.get(optimizer, optimizer)}{' in all layers' if everywhere else ''} at {rate:g}",
            f"{_OPTIMIZERS[authors.optimizer]} at {authors.learning_rate:g}",
        ),
        (schedule, authors.schedule or schedule),
        (f"batches of {batch}", f"batches of {authors.batch_size}"),
    ]
    if any(ours != theirs for ours, theirs in pairs):
        yield _compared("students with", pairs)


def _schedule(settings: Mapping[str, Any]) -> str:
    epochs = _get(settings, "evaluate.epochs", _STUDENT_EPOCHS)
    halved = [f"{share * epochs:g}" for share in _get(settings, "evaluate.halve_at", ())]
    if not halved:
        return "cosine rate"
    return f"rate halved after epoch{'s' if halved[1:] else ''} {_listed(halved)}"


def _views(settings: Mapping[str, Any], authors: _Authors) -> str:
    """Never nothing: there is no RandAugment here."""
    scale, flip, mix = (
        _get(settings, f"relabel.views.{name}", own) for name, own in (("min_scale", authors.min_scale), ("flip", True), ("mix", "cutmix"))
    )
    pairs = [
        ("changed colours, no RandAugment" if _changes_colours(settings) else "no RandAugment", "RandAugment"),
        ("flips" if flip else "no flips", "flips"),
        ({"cutmix": "CutMix", "none": "no CutMix"}.get(mix, mix), "CutMix"),
    ]
    if authors.min_scale is not None:
        pairs.append((f"crops from {scale:g}", f"crops from {authors.min_scale:g}"))
    return _compared("student views:", pairs)


def _changes_colours(settings: Mapping[str, Any]) -> bool:
    return any(_get(settings, f"relabel.views.{name}", 0.0) for name in ("hue", "saturation"))


def _compared(what: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Ours and theirs, where they differ."""
    different = [pair for pair in pairs if pair[0] != pair[1]]
    ours, theirs = (", ".join(side) for side in zip(*different, strict=True))
    return f"{what} {ours} (paper: {theirs})"


def _listed(values: Iterable[Any]) -> str:
    """Such as `20`, `20 and 45`, `15, 20 and 45`."""
    *most, last = map(str, values)
    return " and ".join(filter(None, (", ".join(most), last)))


def _get(settings: Mapping[str, Any], name: str, default: Any) -> Any:
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return default
        found = found[part]
    return found
