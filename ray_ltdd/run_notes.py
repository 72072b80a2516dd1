"""What the user of a run should know besides its figures: one sentence each, where there is something to say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.pipeline import Distilled
from ray_ltdd.stages.calibrate import CalibrateConfig
from ray_ltdd.stages.select_crops import SelectCropsConfig
from ray_ltdd.workbench import TrainedExpert, Workbench


def weak_experts(config: ExperimentConfig, class_names: Sequence[str], experts: Sequence[TrainedExpert]) -> list[str]:
    """A sentence for each expert, the observer and then the teachers, that is at or below chance on some classes of its own training images."""
    found: dict[str, str] = {}
    roles = ("observer", *("teacher" for _ in experts[1:]))
    for role, settings, expert in zip(roles, (config.observer, *config.teachers), experts, strict=True):
        accuracy_K = expert.artifact.record["training_accuracy_K"]
        weak = [class_names[k] for k, value in enumerate(accuracy_K) if value <= 1 / len(class_names)]
        if weak:
            shown = ", ".join(weak[:8]) + (f" and {len(weak) - 8} more classes" if len(weak) > 8 else "")
            sentence = f"the {role} is at or below chance on its own training images of {shown}: train it longer ({settings.recipe}.epochs)."
            found.setdefault(expert.artifact.digest, sentence)
    return list(found.values())


def notes(config: ExperimentConfig, bench: Workbench, distilled: Distilled) -> list[str]:
    """Sentences about this run that its user should read."""
    found = weak_experts(config, bench.prepared.class_names, [distilled.observer, *distilled.teachers])
    total = config.distill.images_per_class * bench.n_classes
    found += short_of_crops(config.select_crops, [artifact.record for artifact in distilled.initial], total)
    return found + inert_schedule(config.calibrate, bench.split.count_K)


def short_of_crops(config: SelectCropsConfig, records: Sequence[Mapping[str, Any]], total: int) -> list[str]:
    """Sentences where the rounds ran out of crops, from the records of all units' initial images, `total` of them."""
    found = []
    below, late = (sum(sum(record.get(name, [])) for record in records) for name in ("n_below_threshold", "n_after_rounds"))
    if below and config.method == "confidence" and config.confidence_threshold > 0:
        threshold = config.confidence_threshold
        found.append(f"{below} of {total} initial images are below select_crops.confidence_threshold={threshold}: nothing else was left.")
    if late:
        most = config.max_rounds
        found.append(f"{late} of {total} initial images were chosen after select_crops.max_rounds={most} rounds, whichever image they are of.")
    return found


def inert_schedule(config: CalibrateConfig, count_K: np.ndarray) -> list[str]:
    """A sentence where a momentum schedule cannot show: a class of one batch has nothing to forget."""
    n_small = int((count_K <= config.batch_size).sum())
    if config.momentum.schedule == "cumulative" or not n_small:
        return []
    return [
        f"calibrate.momentum.schedule={config.momentum.schedule} changes nothing for {n_small} of {len(count_K)} classes, whose images fit one "
        f"batch: lower calibrate.batch_size (now {config.batch_size})."
    ]
