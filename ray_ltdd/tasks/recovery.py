"""Stage 4: recovery, in parts of waves of work units, and the distilled images they end in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from ray_ltdd.artifacts import Artifact, CheckpointSlot, Key, Payload
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.executor import Task
from ray_ltdd.seeding import derive_seed
from ray_ltdd.stages import calibrate, recover
from ray_ltdd.stages.progress import Advance
from ray_ltdd.statistics.alignment import ClassSums
from ray_ltdd.statistics.observe import Observation
from ray_ltdd.statistics.targets import ClassPart, class_weights, mixture_moments
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
    """What every part of recovery reads. As large for a thousand units as for one.

    Attributes:
        settings, calibrate: the two stages' settings.
        observer: whose statistics are matched.
        target: the global target.
        n_images: of the whole distilled set.
        images_per_class: IPC.
        seed: the run's.
    """

    settings: recover.RecoverConfig
    calibrate: calibrate.CalibrateConfig
    observer: TrainedExpert
    target: Artifact
    n_images: int
    images_per_class: int
    seed: int

    def key(self, config: ExperimentConfig, stage: str, place: WavePlace, upstream: Mapping[str, str]) -> Key:
        """The key of one part."""
        where = {
            "classes": list(place.classes),
            "wave": place.wave,
            "n_waves": place.n_waves,
            "last_step": place.last_step,
        }
        settings = {"recover": self.settings, "images_per_class": self.images_per_class, **where}
        known = {"observer": self.observer.artifact.digest, "target": self.target.digest}
        return key(config, stage, recover.VERSION, settings, {**known, **upstream})


@dataclass(frozen=True)
class UnitInputs:
    """What one unit's recovery reads.

    Attributes:
        initial: its initial images.
        moments: the real set's moments of its classes.
        previous: the wave's state after the part before; None at its start.
        own: where the unit's own moments stand as last exchanged; None with a single unit.
        exchanged: sums over all classes' moments; None with a single unit.
    """

    initial: Artifact
    moments: Artifact
    previous: Artifact | None = None
    own: Artifact | None = None
    exchanged: Artifact | None = None

    def upstream(self) -> dict[str, str]:
        """Digests by role."""
        named = {"initial": self.initial, "moments": self.moments, "previous": self.previous, "exchanged": self.exchanged}
        return {role: artifact.digest if artifact else "" for role, artifact in named.items()}


def target_task(config: ExperimentConfig, units: Sequence[tuple[int, ...]], moments: Sequence[Artifact]) -> Task:
    """The global target from all units' class moments."""
    stage_key = key(config, "target", calibrate.VERSION, config.calibrate.target(), {"moments": joint_digest(moments)})
    inputs = {"settings": config.calibrate, "units": tuple(units), "moments": tuple(moments)}
    return Task(stage_key, run_target, inputs, 0, "global target")


def run_target(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    settings: calibrate.CalibrateConfig,
    units: tuple[tuple[int, ...], ...],
    moments: tuple[Artifact, ...],
) -> Payload:
    """Mix the classes, unit after unit."""

    def parts() -> Iterator[ClassPart]:
        for unit, artifact in zip(units, moments, strict=True):
            yield unit, {name: value for name, value in artifact.tensors().items() if name != "count"}

    weight_A = class_weights(settings.class_weights, bench.count_K, settings.beta)
    return Payload(mixture_moments(parts, weight_A, settings.variance), {"layers": moments[0].record["layers"]})


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
        _, moments = recover.synthetic_moments(_observation(bench, shared), image_NCHW, label_N, torch.tensor(place.classes, device=label_N.device))
    return Payload(recover.smoothed_tensors(moments), {"classes": list(place.classes)})


def exchange_task(config: ExperimentConfig, target: Artifact, states: Sequence[Artifact]) -> Task:
    """Sums over all units' class moments as they stand now, for the global term of the next part."""
    stage_key = key(config, "exchange", recover.VERSION, {}, {"target": target.digest, "states": joint_digest(states)})
    return Task(stage_key, run_exchange, {"target": target, "states": tuple(states)}, 0, "exchange of class moments")


def run_exchange(bench: Workbench, slot: CheckpointSlot, advance: Advance, target: Artifact, states: tuple[Artifact, ...]) -> Payload:
    """Add up, unit after unit, in float64."""
    total = reduce(lambda whole, unit: [a.plus(b) for a, b in zip(whole, unit, strict=True)], (_own_sums(target, state) for state in states))
    sums = {f"{i}/{name}": getattr(layer, f"{name}_F") for i, layer in enumerate(total) for name in ("shift", "square", "var")}
    return Payload(sums, {"n_classes": total[0].n_classes})


def recover_task(config: ExperimentConfig, shared: RecoveryInputs, place: WavePlace, unit: UnitInputs) -> Task:
    """Stage 4, one part of one wave of one work unit."""
    first_step = int(unit.previous.record["step"]) if unit.previous else 0
    n_images = len(place.rows(shared.images_per_class)) * (place.last_step - first_step)
    inputs = {"shared": shared, "place": place, "unit": unit}
    return Task(shared.key(config, "recover", place, unit.upstream()), run_recover, inputs, n_images, f"recovery of classes {span(place.classes)}")


def run_recover(
    bench: Workbench,
    slot: CheckpointSlot,
    advance: Advance,
    shared: RecoveryInputs,
    place: WavePlace,
    unit: UnitInputs,
) -> Payload:
    """Optimise the pixels of one part."""
    device = bench.backend.device
    image_NCHW, label_N = _wave_images(bench, shared, place, unit.initial)
    state = recover.load_wave(unit.previous.tensors(), device) if unit.previous else recover.start_wave(image_NCHW)
    n_before = state.step
    saved = slot.load()
    if saved is not None:
        state = recover.load_wave(saved, device)
        advance((state.step - n_before) * len(label_N))
    layers = shared.target.record["layers"]
    weight_L = [shared.settings.layer_weight(name, position) for position, name in enumerate(layers)]
    targets = calibrate.alignment_targets(unit.moments.tensors(), shared.target.tensors(), layers, weight_L, device)
    problem = recover.UnitProblem(
        observe=_observation(bench, shared),
        class_K=torch.tensor(place.classes, device=device),
        label_N=label_N,
        targets=targets,
        others=[layer.to(device) for layer in _other_units(shared, unit, targets)],
        variance=shared.calibrate.variance,
        pixel_scale=float(bench.split.std_C.mean()),
        seed=derive_seed(shared.seed, "recover", place.classes[0], place.wave),
        name=f"classes {span(place.classes)}",
    )
    state = recover.recover_wave(shared.settings, problem, state, place.last_step, slot, advance)
    return Payload(state.tensors(), {"classes": list(place.classes), "step": state.step, "loss": state.loss if state.step else None})


def _observation(bench: Workbench, shared: RecoveryInputs) -> Observation:
    kind = calibrate.resolve_layers(shared.calibrate, bench.expert(shared.observer))
    return bench.observation(shared.observer, kind, 3 * shared.settings.steps * shared.n_images)


def _wave_images(bench: Workbench, shared: RecoveryInputs, place: WavePlace, initial: Artifact) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = initial.tensors()
    rows = torch.tensor(place.rows(shared.images_per_class))
    return tensors["image"][rows].to(bench.backend.device), tensors["label"][rows].to(bench.backend.device)


def _own_sums(target: Artifact, state: Artifact) -> list[ClassSums]:
    origins = target.tensors()
    smoothed = recover.load_smoothed(state.tensors("smoothed/"))
    layers = target.record["layers"]
    return [ClassSums.of(m.double(), v.double(), origins[f"{name}/mean"]) for name, (m, v) in zip(layers, smoothed, strict=True)]


def _other_units(shared: RecoveryInputs, unit: UnitInputs, targets: Sequence[recover.LayerTarget]) -> list[ClassSums]:
    if unit.exchanged is None or unit.own is None:
        nothing = [torch.zeros_like(target.global_moments[0]) for target in targets]
        return [ClassSums(zero_F, zero_F, zero_F, 0) for zero_F in nothing]
    sums, n_classes = unit.exchanged.tensors(), unit.exchanged.record["n_classes"]
    whole = [ClassSums(sums[f"{i}/shift"], sums[f"{i}/square"], sums[f"{i}/var"], n_classes) for i in range(len(targets))]
    return [layer.plus(own, -1) for layer, own in zip(whole, _own_sums(shared.target, unit.own), strict=True)]


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
            image_KNCHW = recover.round_pixels(artifact.tensors("image")["image"]).unflatten(0, (len(unit), -1))
            for label, image_NCHW in zip(unit, image_KNCHW, strict=True):
                by_class.setdefault(label, []).append(image_NCHW)
    image = torch.cat([part for k in sorted(by_class) for part in by_class[k]])
    label_N = torch.tensor([k for k in sorted(by_class) for part in by_class[k] for _ in part])
    return Payload({"image": image, "label": label_N})
