"""Stage 5: soft labels, students, scores."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.groups import shot_groups
from ray_ltdd.executor import Task
from ray_ltdd.models.expert import build_student
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages import evaluate, relabel, select_crops
from ray_ltdd.stages.progress import Advance
from ray_ltdd.stages.views import n_batches
from ray_ltdd.tasks.keys import joint_digest, key
from ray_ltdd.workbench import Part, TrainedExpert, Workbench, bank_of

_STATE = "state/"

Source = Literal["distilled", "random", "whole"]


def labels_task(config: ExperimentConfig, bench: Workbench, teachers: Sequence[TrainedExpert], images: Artifact) -> Task:
    """Stage 5, labels."""
    upstream = {
        "teachers": joint_digest([t.artifact for t in teachers]),
        "images": images.digest,
        "split": bench.split.fingerprint,
    }
    settings: dict[str, Any] = {"relabel": config.relabel if config.relabel.labels == "stored" else {"tau": config.relabel.tau}}
    stage_key = key(config, "relabel", relabel.VERSION, settings, upstream)
    n_images = config.distill.images_per_class * bench.n_classes
    n_views = n_images * config.relabel.stored_epochs if config.relabel.labels == "stored" else 0
    inputs = {"settings": config.relabel, "teachers": tuple(teachers), "images": images, "seed": config.seed}
    return Task(stage_key, run_labels, inputs, n_views, "soft labels")


def run_labels(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: relabel.RelabelConfig,
    teachers: tuple[TrainedExpert, ...],
    images: Artifact,
    seed: int,
) -> Payload:
    """Ask the teachers."""
    bank = bench.stored_bank(images)
    n_views = len(bank) * (1 + (settings.stored_epochs if settings.labels == "stored" else 0))
    teacher = _teacher(bench, settings, teachers, n_views)
    return relabel.relabel(settings, teacher, bank, bench.backend, derive_seed(seed, "relabel"), advance)


def _teacher(bench: Workbench, settings: relabel.RelabelConfig, teachers: Sequence[TrainedExpert], n_passes: int) -> select_crops.Logits:
    correction_K = relabel.prior_correction(bench.count_K, settings.tau).to(bench.backend.device)
    return relabel.calibrated(bench.teacher(teachers, n_passes), correction_K)


def student_task(
    config: ExperimentConfig,
    bench: Workbench,
    source: Source,
    number: int,
    teachers: Sequence[TrainedExpert],
    images: Artifact,
    labels: Artifact,
    last_epoch: int | None = None,
    before: Artifact | None = None,
) -> Task:
    """Stage 5, one student: number `number` trained on `source` and tested; or the part of its training that ends after `last_epoch`.

    A part is an artifact of its own, with the resumable state and the accuracy so far; `before` is the part to go on from. The last part's artifact,
    `last_epoch` None, has the key of the student trained in one go, since it has its bytes.
    """
    ipc = config.distill.images_per_class
    upstream = {"split": bench.split.fingerprint, "data": bench.prepared.fingerprint}
    settings: dict[str, Any] = {
        "student": config.evaluate.student(),
        "part": config.evaluate.part,
        "source": source,
        "number": number,
    }
    if source == "distilled":
        upstream |= {"images": images.digest, "labels": labels.digest}
        settings["relabel"] = config.relabel
        if config.relabel.labels == "online":
            upstream["teachers"] = joint_digest([teacher.artifact for teacher in teachers])
    else:
        settings |= {"views": config.relabel.views, "images_per_class": ipc}
    per_epoch = n_batches(config.relabel.views, ipc * bench.n_classes)
    n_before = int(before.record["epoch"]) if before else 0
    n_epochs = (last_epoch or config.evaluate.epochs) - n_before
    n_images = n_epochs * per_epoch * min(config.relabel.views.batch_size, ipc * bench.n_classes)
    inputs = {
        "student": config.evaluate.student(),
        "relabel_settings": config.relabel,
        "part": config.evaluate.part,
        "source": source,
        "number": number,
        "images_per_class": ipc,
        "n_steps": config.evaluate.epochs * per_epoch,
        "teachers": tuple(teachers),
        "images": images,
        "labels": labels,
        "seed": config.seed,
        "last_epoch": last_epoch,
        "before": before,
    }
    stage, own = ("students", {}) if last_epoch is None else ("student_parts", {"last_epoch": last_epoch})
    stage_key = key(config, stage, evaluate.VERSION, {**settings, **own}, upstream)
    return Task(stage_key, run_student, inputs, n_images, f"student {number} on {source} images")


def run_student(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    student: evaluate.StudentConfig,
    relabel_settings: relabel.RelabelConfig,
    part: Part,
    source: Source,
    number: int,
    images_per_class: int,
    n_steps: int,
    teachers: tuple[TrainedExpert, ...],
    images: Artifact,
    labels: Artifact,
    seed: int,
    last_epoch: int | None,
    before: Artifact | None,
) -> Payload:
    """Train and test one student, or a part of the way."""
    bench.backend.forget()
    student_seed = derive_seed(seed, "student", number)
    model = build_student(
        student.model,
        bench.prepared.image_size,
        bench.prepared.channels,
        bench.n_classes,
        torch.from_numpy(bench.split.mean_C),
        torch.from_numpy(bench.split.std_C),
        derive_seed(student_seed, "weights"),
    ).to(bench.backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bank, soft, views_seed, n_view_epochs = bench.stored_bank(images), None, derive_seed(student_seed, "views"), None
    if source == "whole":
        bank = bench.bank("train")
    elif source == "random":
        train = bench.bank("train")
        position = evaluate.random_real_images(train.label_N.cpu(), images_per_class, bench.n_classes, student_seed)
        bank = bank_of(
            (train.take(position) * 255).round().to(torch.uint8).cpu(),
            train.label_N[position].cpu(),
            bench.backend.device,
        )
    elif relabel_settings.labels == "one":
        soft = evaluate.labels_per_image(labels.tensors()["logit"].to(bench.backend.device))
    elif relabel_settings.labels == "stored":
        soft = evaluate.labels_per_view(labels.tensors()["view_logit"], bench.backend.device)
        views_seed, n_view_epochs = derive_seed(seed, "relabel"), relabel_settings.stored_epochs
    else:
        soft = evaluate.labels_online(_teacher(bench, relabel_settings, teachers, n_steps * relabel_settings.views.batch_size))
    trained = evaluate.train_student(
        student,
        relabel_settings.views,
        model,
        bank,
        soft,
        n_steps,
        views_seed,
        n_view_epochs,
        bench.backend,
        slot,
        advance,
        evaluate.TrainingPart(_state(before), last_epoch),
    )
    groups, _ = shot_groups(bench.split.count_K)
    payload = evaluate.score(trained.tested, bench.bank(part), bench.n_classes, groups.tolist(), bench.backend)
    if before is not None:
        # what it cost does not count the parts before
        payload.record["epochs_before"] = before.record["epoch"]
    if last_epoch is not None:
        payload.record["epoch"] = last_epoch
        payload.tensors |= {_STATE + name: tensor for name, tensor in trained.state().items()}
    return payload


def _state(before: Artifact | None) -> dict[str, torch.Tensor] | None:
    return {name.removeprefix(_STATE): tensor for name, tensor in before.tensors(_STATE).items()} if before else None


def score_task(config: ExperimentConfig, bench: Workbench, expert: TrainedExpert) -> Task:
    """An expert's own accuracy, the ceiling of its students'."""
    part = config.evaluate.part
    upstream = {"expert": expert.artifact.digest, "split": bench.split.fingerprint, "data": bench.prepared.fingerprint}
    stage_key = key(config, "scores", evaluate.VERSION, {"part": part}, upstream)
    return Task(stage_key, run_score, {"expert": expert, "part": part}, bench.n_images(part), "expert's accuracy")


def run_score(bench: Workbench, slot: CheckpointSlot, advance: Advance, expert: TrainedExpert, part: Part) -> Payload:
    """Test one expert."""
    groups, _ = shot_groups(bench.split.count_K)
    bank = bench.bank(part)
    payload = evaluate.score(bench.expert(expert), bank, bench.n_classes, groups.tolist(), bench.backend)
    advance(len(bank))
    return payload
