"""Stage 4: recovery, in parts of waves of work units, and the distilled images they end in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Key, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.executor import Task
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages import calibrate, recover
from ray_ltdd.stages.progress import Advance
from ray_ltdd.statistics.observe import Observation
from ray_ltdd.tasks.keys import joint_digest, key, span
from ray_ltdd.workbench import TrainedExpert, Workbench


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
    return Task(stage_key, run_initial_moments, inputs, 0, f"classes {span(place.classes)}")


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
        f"recovery of classes {span(place.classes)}",
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
        name=f"classes {span(place.classes)}",
    )
    state = recover.recover_wave(shared.settings, problem, state, place.last_step, slot, advance)
    return Payload(state.tensors(), {"classes": list(place.classes), "step": state.step, "loss": state.loss if state.step else None})


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
