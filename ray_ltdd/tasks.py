"""Every stage as a task: what it reads, what its key depends on, which stage function it calls. No maths here.

The functions called `run_...` are what an executor calls, in whatever process: (workbench, checkpoint slot, advance, inputs) -> payload.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Key, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.groups import shot_groups
from ray_ltdd.executor import Task
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_student
from ray_ltdd.seeding import derive_seed
from ray_ltdd.settings import Settings
from ray_ltdd.stages import calibrate, evaluate, experts, recover, relabel, select_crops
from ray_ltdd.stages.progress import Advance
from ray_ltdd.stages.views import n_batches
from ray_ltdd.statistics.observe import Observation
from ray_ltdd.workbench import Part, TrainedExpert, Workbench, bank_of

Source = Literal["distilled", "random", "whole"]


def key(config: ExperimentConfig, stage: str, version: int, settings: Mapping[str, Any], upstream: Mapping[str, str]) -> Key:
    """The key of a stage's artifact: the precision and compilation *asked for* belong to it, the machine does not."""
    numerics = config.compute.model_dump(include={"precision", "compile"})
    plain = {name: value.model_dump(mode="json") if isinstance(value, Settings) else value for name, value in settings.items()}
    return Key(stage, version, {**plain, "compute": numerics}, upstream, config.seed)


def joint_digest(artifacts: Sequence[Artifact]) -> str:
    """One digest for a list of artifacts."""
    return hashlib.sha256(" ".join(artifact.digest for artifact in artifacts).encode()).hexdigest()[:24]


def expert_task(config: ExperimentConfig, bench: Workbench, expert: experts.ExpertConfig) -> Task:
    """Stage 1. Two roles with equal settings have equal keys: one expert serves both."""
    settings = {"model": expert.model, "training": expert.training, "member": expert.member}
    stage_key = key(config, "experts", experts.VERSION, settings, {"split": bench.split.fingerprint})
    n_steps = max(len(bench.split.train_index_N) // expert.training.batch_size, 1)
    n_images = 2 * expert.training.batch_size * n_steps * expert.training.epochs
    seed = derive_seed(config.seed, "experts", expert.member)
    inputs = {"model": expert.model, "training": expert.training, "seed": seed}
    return Task(stage_key, run_expert, inputs, n_images, f"expert {expert.model.label}")


def run_expert(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    model: ModelConfig,
    training: experts.ExpertTraining,
    seed: int,
) -> Payload:
    """Train one expert."""
    bench.backend.forget()
    expert = bench.new_expert(model, derive_seed(seed, "expert-weights"))
    return experts.train_expert(training, expert, bench.bank("train"), bench.count_K, bench.backend, seed, slot, advance)


def moments_task(config: ExperimentConfig, bench: Workbench, observer: TrainedExpert, classes: tuple[int, ...]) -> Task:
    """Stage 2, one work unit."""
    kind = calibrate.resolve_layers(config.calibrate, bench.expert(observer))
    settings = calibrate.MomentsConfig(layers=kind, momentum=config.calibrate.momentum, batch_size=config.calibrate.batch_size)
    upstream = {"split": bench.split.fingerprint, "observer": observer.artifact.digest}
    stage_key = key(config, "calibrate", calibrate.VERSION, {"moments": settings, "classes": list(classes)}, upstream)
    inputs = {"settings": settings, "observer": observer, "classes": classes, "seed": config.seed}
    return Task(
        stage_key,
        run_moments,
        inputs,
        int(bench.split.count_K[list(classes)].sum()),
        f"statistics of classes {_span(classes)}",
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
    settings = {"select_crops": config.select_crops, "images_per_class": ipc, "classes": list(classes)}
    stage_key = key(config, "select_crops", select_crops.VERSION, settings, upstream)
    n_images = int(bench.split.count_K[list(classes)].sum()) * config.select_crops.crops_per_image
    inputs = {
        "settings": config.select_crops,
        "images_per_class": ipc,
        "teachers": tuple(teachers),
        "classes": classes,
        "seed": config.seed,
    }
    return Task(stage_key, run_crops, inputs, n_images, f"initial images of classes {_span(classes)}")


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


@dataclass(frozen=True)
class WavePlace:
    """Which part of which wave of which unit of recovery: steps up to `last_step` of wave `wave` of the unit `classes`."""

    classes: tuple[int, ...]
    wave: int
    n_waves: int
    last_step: int

    def rows(self, images_per_class: int) -> list[int]:
        """Rows of the wave's images among the unit's, which lie class by class."""
        first, last = (images_per_class * i // self.n_waves for i in (self.wave, self.wave + 1))
        return [row * images_per_class + i for row in range(len(self.classes)) for i in range(first, last)]


@dataclass(frozen=True)
class RecoveryInputs:
    """What every part of recovery reads.

    Attributes:
        settings, calibrate: the two stages' settings.
        observer: whose statistics are matched.
        moments: the real set's class moments, one artifact a unit.
        units: the classes of each, in the same order.
        images_per_class: IPC.
        seed: the run's.
    """

    settings: recover.RecoverConfig
    calibrate: calibrate.CalibrateConfig
    observer: TrainedExpert
    moments: tuple[Artifact, ...]
    units: tuple[tuple[int, ...], ...]
    images_per_class: int
    seed: int

    def key(self, config: ExperimentConfig, stage: str, place: WavePlace, upstream: Mapping[str, str]) -> Key:
        """The key of one part."""
        targets = self.calibrate.model_dump(mode="json", include={"class_weights", "beta", "variance"})
        where = {
            "classes": list(place.classes),
            "wave": place.wave,
            "n_waves": place.n_waves,
            "last_step": place.last_step,
        }
        settings = {"recover": self.settings, "targets": targets, "images_per_class": self.images_per_class, **where}
        known = {"observer": self.observer.artifact.digest, "moments": joint_digest(self.moments)}
        return key(config, stage, recover.VERSION, settings, {**known, **upstream})


def initial_moments_task(config: ExperimentConfig, shared: RecoveryInputs, place: WavePlace, initial: Artifact) -> Task:
    """The synthetic class moments of a wave before its first step, for the first exchange."""
    stage_key = shared.key(config, "initial_moments", place, {"initial": initial.digest})
    inputs = {"shared": shared, "place": place, "initial": initial}
    return Task(stage_key, run_initial_moments, inputs, 0, f"classes {_span(place.classes)}")


def run_initial_moments(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    shared: RecoveryInputs,
    place: WavePlace,
    initial: Artifact,
) -> Payload:
    """Measure them."""
    image_NCHW, label_N = _wave_images(bench, shared, place, initial)
    with torch.no_grad():
        _, moments = recover.synthetic_moments(_observation(bench, shared), image_NCHW, label_N, place.classes)
    state = recover.start_wave(image_NCHW)
    state.smoothed = moments
    return Payload(state.tensors(), {"classes": list(place.classes)})


def recover_task(
    config: ExperimentConfig,
    shared: RecoveryInputs,
    place: WavePlace,
    initial: Artifact,
    previous: Artifact | None,
    exchanged: Sequence[Artifact],
) -> Task:
    """Stage 4, one part of one wave of one work unit.

    Args:
        config: the experiment.
        shared: what all parts read.
        place: which part.
        initial: the unit's initial images.
        previous: the wave's state after the part before; None at its start.
        exchanged: all units' last states, whose class moments enter the global term; empty with a single unit.
    """
    upstream = {
        "initial": initial.digest,
        "previous": previous.digest if previous else "",
        "exchanged": joint_digest(exchanged),
    }
    first_step = int(previous.record["step"]) if previous else 0
    n_images = len(place.rows(shared.images_per_class)) * (place.last_step - first_step)
    inputs = {"shared": shared, "place": place, "initial": initial, "previous": previous, "exchanged": tuple(exchanged)}
    return Task(
        shared.key(config, "recover", place, upstream),
        run_recover,
        inputs,
        n_images,
        f"recovery of classes {_span(place.classes)}",
    )


def run_recover(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    shared: RecoveryInputs,
    place: WavePlace,
    initial: Artifact,
    previous: Artifact | None,
    exchanged: tuple[Artifact, ...],
) -> Payload:
    """Optimise the pixels of one part."""
    image_NCHW, label_N = _wave_images(bench, shared, place, initial)
    state = recover.load_wave(previous.tensors(), bench.backend.device) if previous else recover.start_wave(image_NCHW)
    n_before = state.step
    saved = slot.load()
    if saved is not None:
        state = recover.load_wave(saved, bench.backend.device)
        advance((state.step - n_before) * len(label_N))
    moments = calibrate.join_classes([_moments(unit, part) for unit, part in zip(shared.units, shared.moments, strict=True)])
    layers = shared.moments[0].record["layers"]
    targets = calibrate.alignment_targets(shared.calibrate, moments, layers, place.classes, shared.settings.first_layer_weight, bench.backend.device)
    problem = recover.UnitProblem(
        observe=_observation(bench, shared),
        classes=place.classes,
        label_N=label_N,
        targets=targets,
        others=_exchanged_moments(bench, shared, exchanged, targets),
        variance=shared.calibrate.variance,
        pixel_scale=float(bench.split.std_C.mean()),
        seed=derive_seed(shared.seed, "recover", place.classes[0], place.wave),
        name=f"classes {_span(place.classes)}",
    )
    state = recover.recover_wave(shared.settings, problem, state, place.last_step, slot, advance)
    return Payload(state.tensors(), {"classes": list(place.classes), "step": state.step, "loss": state.loss})


def _observation(bench: Workbench, shared: RecoveryInputs) -> Observation:
    kind = calibrate.resolve_layers(shared.calibrate, bench.expert(shared.observer))
    n_images = sum(len(unit) for unit in shared.units) * shared.images_per_class
    return bench.observation(shared.observer, kind, 3 * shared.settings.steps * n_images)


def _wave_images(bench: Workbench, shared: RecoveryInputs, place: WavePlace, initial: Artifact) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = initial.tensors()
    rows = torch.tensor(place.rows(shared.images_per_class))
    return tensors["image"][rows].to(bench.backend.device), tensors["label"][rows].to(bench.backend.device)


def _moments(unit: tuple[int, ...], artifact: Artifact) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
    return unit, artifact.tensors()


def _exchanged_moments(
    bench: Workbench, shared: RecoveryInputs, exchanged: tuple[Artifact, ...], targets: Sequence[recover.LayerTarget]
) -> list[recover.Moments]:
    device = bench.backend.device
    if not exchanged:
        return [tuple(torch.zeros(bench.n_classes, m.shape[1], device=device) for m in target.class_moments) for target in targets]  # type: ignore[misc]
    states = [recover.load_wave(artifact.tensors(), device).smoothed or [] for artifact in exchanged]
    order = torch.tensor([label for unit in shared.units for label in unit], device=device).argsort()
    return [tuple(torch.cat([state[layer][i] for state in states])[order] for i in (0, 1)) for layer in range(len(targets))]  # type: ignore[misc]


def images_task(config: ExperimentConfig, units: Sequence[tuple[int, ...]], waves: Sequence[Sequence[Artifact]]) -> Task:
    """The distilled images: all units and waves joined in class order and rounded to uint8, once."""
    upstream = {"recovered": joint_digest([artifact for wave in waves for artifact in wave])}
    stage_key = key(config, "images", recover.VERSION, {"units": [list(unit) for unit in units]}, upstream)
    inputs = {"units": tuple(units), "waves": tuple(tuple(wave) for wave in waves)}
    return Task(stage_key, run_images, inputs, 0, "distilled images")


def run_images(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    units: tuple[tuple[int, ...], ...],
    waves: tuple[tuple[Artifact, ...], ...],
) -> Payload:
    """Join and round."""
    by_class: dict[int, list[torch.Tensor]] = {}
    for wave in waves:
        for unit, artifact in zip(units, wave, strict=True):
            image_KNCHW = artifact.tensors()["image"].unflatten(0, (len(unit), -1))
            for label, image_NCHW in zip(unit, image_KNCHW, strict=True):
                by_class.setdefault(label, []).append(image_NCHW)
    image = torch.cat([part for k in sorted(by_class) for part in by_class[k]])
    label_N = torch.tensor([k for k in sorted(by_class) for part in by_class[k] for _ in part])
    return Payload({"image": recover.round_pixels(image), "label": label_N})


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
) -> Task:
    """Stage 5, one student: number `number` trained on `source` and tested."""
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
    n_steps = config.evaluate.epochs * n_batches(config.relabel.views, ipc * bench.n_classes)
    n_images = n_steps * min(config.relabel.views.batch_size, ipc * bench.n_classes)
    inputs = {
        "student": config.evaluate.student(),
        "relabel_settings": config.relabel,
        "part": config.evaluate.part,
        "source": source,
        "number": number,
        "images_per_class": ipc,
        "n_steps": n_steps,
        "teachers": tuple(teachers),
        "images": images,
        "labels": labels,
        "seed": config.seed,
    }
    stage_key = key(config, "students", evaluate.VERSION, settings, upstream)
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
) -> Payload:
    """Train and test one student."""
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
    )
    groups, _ = shot_groups(bench.split.count_K)
    return evaluate.score(trained, bench.bank(part), bench.n_classes, groups.tolist(), bench.backend)


def score_task(config: ExperimentConfig, bench: Workbench, expert: TrainedExpert) -> Task:
    """An expert's own accuracy, the ceiling of its students'."""
    part = config.evaluate.part
    upstream = {"expert": expert.artifact.digest, "split": bench.split.fingerprint, "data": bench.prepared.fingerprint}
    stage_key = key(config, "scores", evaluate.VERSION, {"part": part}, upstream)
    return Task(stage_key, run_score, {"expert": expert, "part": part}, len(bench.bank(part)), "expert's accuracy")


def run_score(bench: Workbench, slot: CheckpointSlot, advance: Advance, expert: TrainedExpert, part: Part) -> Payload:
    """Test one expert."""
    groups, _ = shot_groups(bench.split.count_K)
    bank = bench.bank(part)
    payload = evaluate.score(bench.expert(expert), bank, bench.n_classes, groups.tolist(), bench.backend)
    advance(len(bank))
    return payload


def _span(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes)) if len(classes) <= 10 else f"{classes[0]}, {classes[1]}, ... {classes[-1]}"
