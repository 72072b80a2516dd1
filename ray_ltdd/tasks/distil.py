"""Stages 1 to 3: experts, class moments, initial images."""

from collections.abc import Sequence

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.executor import Task
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages import calibrate, experts, function_matching, select_crops
from ray_ltdd.stages.expert_config import ExpertConfig
from ray_ltdd.stages.progress import Advance
from ray_ltdd.stages.ranks import SOLO, Ranks
from ray_ltdd.tasks.keys import joint_digest, key, span
from ray_ltdd.workbench import TrainedExpert, Workbench


def expert_task(config: ExperimentConfig, bench: Workbench, expert: ExpertConfig, guide: TrainedExpert | None = None) -> Task:
    """Stage 1. Two roles with equal settings have equal keys: one expert serves both.

    Args:
        config, bench: of the run.
        expert: its settings.
        guide: the trained expert it is taught by, where it is.

    Raises:
        InputError: `cluster.expert_workers` cannot share a batch equally.
    """
    n_workers, n_train = expert.n_workers(config.cluster.expert_workers), len(bench.split.train_index_N)
    Ranks(0, n_workers).require_equal_shares(min(expert.training.batch_size, n_train))
    settings, upstream = expert.outcome(), {"split": bench.split.fingerprint}
    if n_workers > 1:
        settings["workers"] = n_workers
    if guide is not None:
        upstream["guide"] = guide.artifact.digest
    stage_key = key(config, "experts", experts.VERSION, settings, upstream)
    seed = derive_seed(config.seed, "experts", expert.member)
    inputs = {"settings": expert, "seed": seed, "guide": guide}
    return Task(stage_key, run_expert, inputs, expert.n_images(n_train), f"expert {expert.model.label}", n_workers)


def run_expert(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: ExpertConfig,
    seed: int,
    guide: TrainedExpert | None,
    ranks: Ranks = SOLO,
) -> Payload:
    """Train one expert, alone or as one of the processes `ranks`."""
    bench.backend.forget()
    expert, bank = bench.new_expert(settings.model, derive_seed(seed, "expert-weights")), bench.bank("train")
    training, matching = settings.training, settings.function_matching
    imitated = None if guide is None else bench.teacher([guide], settings.n_images(len(bank)))
    if imitated is not None and matching is not None:
        given = (expert, imitated, bank, bench.count_K, bench.backend, seed)
        return function_matching.match_function(matching, *given, slot, advance, training.accuracy_floor)
    return experts.train_expert(training, expert, bank, bench.count_K, bench.backend, seed, slot, advance, ranks, imitated)


def require_above_chance(artifact: Artifact, expert: ExpertConfig) -> None:
    """Refuse a trained expert below `accuracy_floor`, which its key leaves out.

    Raises:
        InputError: it is below.
    """
    accuracy_K = torch.tensor(artifact.record["training_accuracy_K"], dtype=torch.float64)
    experts.check_above_chance(accuracy_K, expert.training.accuracy_floor, expert.recipe)


def moments_task(config: ExperimentConfig, bench: Workbench, observer: TrainedExpert, classes: tuple[int, ...]) -> Task:
    """Stage 2, one work unit."""
    kind = calibrate.resolve_layers(config.calibrate, bench.blueprint(observer.model))
    settings = calibrate.MomentsConfig(layers=kind, momentum=config.calibrate.momentum.in_effect(), batch_size=config.calibrate.batch_size)
    upstream = {"split": bench.split.fingerprint, "observer": observer.artifact.digest}
    stage_key = key(config, "calibrate", calibrate.VERSION, {"moments": settings, "classes": list(classes)}, upstream)
    inputs = {"settings": settings, "observer": observer, "classes": classes, "seed": config.seed}
    return Task(
        stage_key,
        run_moments,
        inputs,
        int(bench.split.count_K[list(classes)].sum()),
        f"statistics of classes {span(classes)}",
    )


def run_moments(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: calibrate.MomentsConfig,
    observer: TrainedExpert,
    classes: tuple[int, ...],
    seed: int,
) -> Payload:
    """Measure the class moments of one unit."""
    bank = bench.bank("train")
    observe = bench.observation(observer, settings.layers, len(bank))
    return calibrate.class_moments(settings, observe, bank, classes, bench.backend, seed, advance)


def crops_task(config: ExperimentConfig, bench: Workbench, teachers: Sequence[TrainedExpert], classes: tuple[int, ...]) -> Task:
    """Stage 3, one work unit."""
    upstream = {"split": bench.split.fingerprint}
    if config.select_crops.method == "confidence":
        upstream["teachers"] = joint_digest([teacher.artifact for teacher in teachers])
    ipc = config.distill.images_per_class
    chosen_by = config.select_crops.in_effect()
    settings = {"select_crops": chosen_by, "images_per_class": ipc, "classes": list(classes)}
    stage_key = key(config, "select_crops", select_crops.VERSION, settings, upstream)
    n_images = int(bench.split.count_K[list(classes)].sum()) * config.select_crops.crops_per_image
    inputs = {
        "settings": chosen_by,
        "images_per_class": ipc,
        "teachers": tuple(teachers),
        "classes": classes,
        "seed": config.seed,
    }
    return Task(stage_key, run_crops, inputs, n_images, f"initial images of classes {span(classes)}")


def run_crops(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: select_crops.SelectCropsConfig,
    images_per_class: int,
    teachers: tuple[TrainedExpert, ...],
    classes: tuple[int, ...],
    seed: int,
) -> Payload:
    """Choose the initial images of one unit."""
    bank = bench.bank("train")
    teacher = bench.teacher(teachers, len(bank) * settings.crops_per_image)
    return select_crops.select_crops(settings, images_per_class, teacher, bank, classes, bench.backend, seed, advance)
