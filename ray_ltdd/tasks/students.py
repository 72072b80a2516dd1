"""Stage 5: soft labels, students, scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.groups import shot_groups
from ray_ltdd.executor import Task
from ray_ltdd.models.expert import build_student
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages import evaluate, relabel
from ray_ltdd.stages.progress import Advance
from ray_ltdd.stages.scoring import Logits
from ray_ltdd.stages.views import n_batches, n_views
from ray_ltdd.tasks.keys import joint_digest, key
from ray_ltdd.workbench import Part, TrainedExpert, Workbench, bank_of

_STATE = "state/"

Source = Literal["distilled", "random", "whole"]


@dataclass(frozen=True)
class Labels:
    """Soft labels of a distilled set.

    Attributes:
        images: logits of the images as they are, `logit`.
        views: logits of the stored epochs of views, `view_logit`, one artifact a chunk of epochs; none where views are not stored.
    """

    images: Artifact
    views: tuple[Artifact, ...]


def labels_tasks(config: ExperimentConfig, bench: Workbench, teachers: Sequence[TrainedExpert], images: Artifact) -> list[Task]:
    """Stage 5, labels: one task for the images as they are, then one for each chunk of stored epochs."""
    upstream = {
        "teachers": joint_digest([t.artifact for t in teachers]),
        "images": images.digest,
        "split": bench.split.fingerprint,
    }
    n_images = config.distill.images_per_class * bench.n_classes
    inputs = {"settings": config.relabel, "teachers": tuple(teachers), "images": images}
    image_key = key(config, "relabel", relabel.VERSION, {"relabel": config.relabel.image_outcome()}, upstream)
    tasks = [Task(image_key, run_image_labels, inputs, n_images, "soft labels of the images")]
    for epochs in config.relabel.chunks():
        settings = {"relabel": config.relabel.outcome(), "epochs": [epochs.start, epochs.stop]}
        views_key = key(config, "relabel_views", relabel.VERSION, settings, upstream)
        own = {**inputs, "epochs": epochs, "seed": config.seed}
        label = f"soft labels of epochs {epochs.start} to {epochs[-1]} of views"
        tasks.append(Task(views_key, run_view_labels, own, n_views(config.relabel.views, n_images) * len(epochs), label))
    return tasks


def run_image_labels(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: relabel.RelabelConfig,
    teachers: tuple[TrainedExpert, ...],
    images: Artifact,
) -> Payload:
    """Ask the teachers about the images as they are."""
    bank = bench.stored_bank(images)
    return relabel.label_images(_teacher(bench, settings, teachers, len(bank)), bank, advance)


def run_view_labels(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: relabel.RelabelConfig,
    teachers: tuple[TrainedExpert, ...],
    images: Artifact,
    epochs: range,
    seed: int,
) -> Payload:
    """Ask the teachers about the views of some epochs."""
    bank = bench.stored_bank(images)
    # all stored epochs decide on compilation, which rounds differently: the chunks must not
    teacher = _teacher(bench, settings, teachers, len(bank) * settings.stored_epochs)
    return relabel.label_views(settings.views, teacher, bank, bench.backend, views_seed(seed), epochs, advance)


def views_seed(seed: int) -> int:
    """The seed of the stored epochs' views, which all students go through, from the experiment's."""
    return derive_seed(seed, "relabel")


def _teacher(bench: Workbench, settings: relabel.RelabelConfig, teachers: Sequence[TrainedExpert], n_passes: int) -> Logits:
    correction_K = relabel.prior_correction(bench.count_K, settings.tau).to(bench.backend.device)
    teacher = bench.teacher(teachers, n_passes * settings.n_passes)
    return relabel.calibrated(relabel.mirror_averaged(teacher) if settings.mirror_average else teacher, correction_K)


def student_task(
    config: ExperimentConfig,
    bench: Workbench,
    source: Source,
    number: int,
    teachers: Sequence[TrainedExpert],
    images: Artifact,
    labels: Labels,
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
        "student": config.evaluate.outcome(),
        "part": config.evaluate.part,
        "source": source,
        "number": number,
    }
    if source == "distilled":
        # labels of views follow from the settings and from all that the images' labels do: cutting them up differently is no reason to train again
        upstream |= {"images": images.digest, "labels": labels.images.digest}
        settings["relabel"] = config.relabel.outcome()
        if config.relabel.labels == "online":
            upstream["teachers"] = joint_digest([teacher.artifact for teacher in teachers])
    else:
        settings |= {"views": config.relabel.views.outcome(), "images_per_class": ipc}
    per_epoch = n_batches(config.relabel.views, ipc * bench.n_classes)
    n_before = int(before.record["epoch"]) if before else 0
    n_epochs = (last_epoch or config.evaluate.epochs) - n_before
    n_drawn_from = bench.n_images("train") if source == "whole" else None
    n_images = n_epochs * n_views(config.relabel.views, ipc * bench.n_classes, n_drawn_from)
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
    labels: Labels,
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
    bank, soft, seed_of_views, n_view_epochs = bench.stored_bank(images), None, derive_seed(student_seed, "views"), None
    if source == "whole":
        bank = bench.bank("train")
    elif source == "random":
        train = bench.bank("train")
        position = evaluate.random_real_images(train.label_N.cpu(), images_per_class, bench.n_classes, student_seed)
        bank = bank_of(train.pixels(position).cpu(), train.label_N[position].cpu(), bench.backend.device)
    elif relabel_settings.labels == "one":
        soft = evaluate.labels_per_image(labels.images.tensors()["logit"].to(bench.backend.device))
    elif relabel_settings.labels == "stored":
        soft = evaluate.labels_per_view(
            lambda number: labels.views[number].tensors()["view_logit"],
            relabel_settings.chunks(),
            n_batches(relabel_settings.views, len(bank)),
            bench.backend.device,
        )
        seed_of_views, n_view_epochs = views_seed(seed), relabel_settings.stored_epochs
    else:
        soft = evaluate.labels_online(_teacher(bench, relabel_settings, teachers, n_steps * relabel_settings.views.batch_size))
    trained = evaluate.train_student(
        student,
        relabel_settings.views,
        model,
        bank,
        soft,
        n_steps,
        seed_of_views,
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
