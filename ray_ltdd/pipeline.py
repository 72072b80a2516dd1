"""The method on one screen: the stages in the paper's order, given an executor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ray_ltdd.artifacts import Artifact
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.executor import Executor
from ray_ltdd.sharding import work_units
from ray_ltdd.stages.calibrate import check_layers
from ray_ltdd.stages.expert_config import ExpertConfig
from ray_ltdd.tasks import distil as distilling
from ray_ltdd.tasks import recovery
from ray_ltdd.tasks import students as testing
from ray_ltdd.tasks.recovery import RecoveryInputs, UnitInputs, WavePlace
from ray_ltdd.tasks.students import Labels, Source
from ray_ltdd.workbench import TrainedExpert, Workbench


@dataclass(frozen=True)
class Distilled:
    """What distillation leaves: experts, and the small dataset with its labels.

    Attributes:
        observer, teachers: trained experts.
        moments: the real set's class moments, one artifact a unit.
        initial: initial images, one artifact a unit.
        units: the classes of each work unit.
        images: uint8 images and labels, class by class.
        labels: soft labels.
    """

    observer: TrainedExpert
    teachers: tuple[TrainedExpert, ...]
    moments: list[Artifact]
    initial: list[Artifact]
    units: list[tuple[int, ...]]
    images: Artifact
    labels: Labels


@dataclass(frozen=True)
class Scores:
    """Tested students and experts: artifacts of `evaluate.score`, by what they were trained on."""

    students: dict[Source, list[Artifact]]
    observer: Artifact
    teachers: list[Artifact]


def distil(
    config: ExperimentConfig, bench: Workbench, executor: Executor, on_experts: Callable[[list[TrainedExpert]], None] | None = None
) -> Distilled:
    """Run stages 1 to 5 up to the soft labels; `on_experts` is called with the observer and the teachers once they are trained."""
    check_layers(config.calibrate, config.recover.layer_weights, bench.blueprint(config.observer.model))
    for model in (*(teacher.model for teacher in config.teachers), config.evaluate.model):
        # a network that these images are too small for is refused before anything is trained
        bench.blueprint(model)
    bench.require(config.evaluate.part)
    units = work_units(bench.n_classes, config.distill.classes_per_unit)
    observer, *teachers = train_experts(config, bench, executor)
    if on_experts is not None:
        on_experts([observer, *teachers])
    moments = executor.compute("Calibrate", [distilling.moments_task(config, bench, observer, unit) for unit in units])
    initial = executor.compute("Select crops", [distilling.crops_task(config, bench, teachers, unit) for unit in units])
    waves = recover_waves(config, executor, observer, units, moments, initial)
    (images,) = executor.compute("Recover", [recovery.images_task(config, units, waves)])
    image_labels, *view_labels = executor.compute("Relabel", testing.labels_tasks(config, bench, teachers, images))
    labels = Labels(image_labels, tuple(view_labels))
    return Distilled(observer, tuple(teachers), moments, initial, units, images, labels)


def train_experts(config: ExperimentConfig, bench: Workbench, executor: Executor) -> list[TrainedExpert]:
    """Stage 1: the observer, then the teachers. Experts with equal settings are one; those the observer teaches come after it.

    Raises:
        InputError: an expert has learnt next to nothing of its training images.
    """

    def train(wanted: Sequence[ExpertConfig], guide: TrainedExpert | None) -> list[TrainedExpert]:
        tasks = [distilling.expert_task(config, bench, expert, guide) for expert in wanted]
        by_digest = {task.key.digest: task for task in tasks}
        trained = dict(zip(by_digest, executor.compute("Experts", list(by_digest.values())), strict=True))
        for task, expert in zip(tasks, wanted, strict=True):
            # one that was trained earlier, under a lower floor
            distilling.require_above_chance(trained[task.key.digest], expert)
        return [TrainedExpert(trained[task.key.digest], expert.model) for task, expert in zip(tasks, wanted, strict=True)]

    taught = [expert for expert in config.teachers if expert.taught_by]
    observer, *others = train([config.observer, *(expert for expert in config.teachers if not expert.taught_by)], None)
    assistants = iter(train(taught, observer) if taught else ())
    remaining = iter(others)
    return [observer, *(next(assistants if expert.taught_by else remaining) for expert in config.teachers)]


def recover_waves(
    config: ExperimentConfig,
    executor: Executor,
    observer: TrainedExpert,
    units: list[tuple[int, ...]],
    moments: list[Artifact],
    initial: list[Artifact],
) -> list[list[Artifact]]:
    """Stage 4: all units do the same part of the same wave, then exchange their class moments. Returns each wave's final states, unit by unit."""
    ipc, settings = config.distill.images_per_class, config.recover
    (target,) = executor.compute("Calibrate", [recovery.target_task(config, units, moments)])
    shared = RecoveryInputs(settings, config.calibrate, observer, target, ipc * sum(map(len, units)), ipc, config.seed)
    n_waves = settings.n_waves(len(units[0]), ipc)
    exchanges = range(settings.exchange_every, settings.steps, settings.exchange_every) if len(units) > 1 else ()
    ends = (*exchanges, settings.steps)
    waves = []
    for wave in range(n_waves):
        inputs = [UnitInputs(*artifacts) for artifacts in zip(initial, moments, strict=True)]
        if len(units) > 1:
            starts = [
                recovery.initial_moments_task(config, shared, WavePlace(unit, wave, n_waves, 0), images)
                for unit, images in zip(units, initial, strict=True)
            ]
            inputs = exchange(config, executor, target, inputs, executor.compute("Recover", starts))
        for number, end in enumerate(ends, 1 + wave * len(ends)):
            parts = [recovery.recover_task(config, shared, WavePlace(unit, wave, n_waves, end), own) for unit, own in zip(units, inputs, strict=True)]
            states = executor.compute("Recover", parts, f"{number} of {n_waves * len(ends)}" if n_waves * len(ends) > 1 else "")
            if end < settings.steps:
                inputs = [replace(own, previous=state) for own, state in zip(inputs, states, strict=True)]
                inputs = exchange(config, executor, target, inputs, states)
        waves.append(states)
    return waves


def exchange(
    config: ExperimentConfig, executor: Executor, target: Artifact, inputs: Sequence[UnitInputs], states: Sequence[Artifact]
) -> list[UnitInputs]:
    """Tell every unit where all classes stand."""
    (exchanged,) = executor.compute("Recover", [recovery.exchange_task(config, target, states)])
    return [replace(own, own=state, exchanged=exchanged) for own, state in zip(inputs, states, strict=True)]


def train_in_parts(config: ExperimentConfig, bench: Workbench, executor: Executor, distilled: Distilled, epochs: Sequence[int]) -> Iterator[Artifact]:
    """Stage 5, the first student up to each of `epochs`, one artifact each. Whoever does not ask for the next one leaves the rest undone."""
    part: Artifact | None = None
    for epoch in epochs:
        task = testing.student_task(config, bench, "distilled", 0, distilled.teachers, distilled.images, distilled.labels, epoch, part)
        (part,) = executor.compute("Students", [task])
        yield part


def evaluate(config: ExperimentConfig, bench: Workbench, executor: Executor, distilled: Distilled, last_part: Artifact | None = None) -> Scores:
    """Stage 5, students and baselines; and the experts' own accuracy.

    Args:
        config, bench, executor: of the run.
        distilled: its images and labels.
        last_part: of `train_in_parts`; the first student goes on from it.
    """
    sources: list[Source] = ["distilled", *config.evaluate.baselines]
    numbers = range(config.evaluate.seeds)
    # all in one go: three students at a time would leave workers idle after each source
    begun: dict[tuple[Source, int], Artifact | None] = {("distilled", 0): last_part}
    tasks = [
        testing.student_task(config, bench, source, n, distilled.teachers, distilled.images, distilled.labels, before=begun.get((source, n)))
        for source in sources
        for n in numbers
    ]
    tested = executor.compute("Students", tasks)
    students = {source: tested[i * len(numbers) : (i + 1) * len(numbers)] for i, source in enumerate(sources)}
    experts = [distilled.observer, *distilled.teachers]
    by_digest = {expert.artifact.digest: testing.score_task(config, bench, expert) for expert in experts}
    scored = dict(zip(by_digest, executor.compute("Experts' accuracy", list(by_digest.values())), strict=True))
    return Scores(students, scored[distilled.observer.artifact.digest], [scored[t.artifact.digest] for t in distilled.teachers])
