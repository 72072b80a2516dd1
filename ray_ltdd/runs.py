"""A run: its folder, the pipeline over its settings, and everything it leaves for people to read.

RUN/settings.yaml   all resolved settings
RUN/data.json       which data it is of
RUN/distilled/      the distilled dataset: Parquet, card
RUN/gallery.png     initial, distilled and real images
RUN/results/        result rows (Parquet)
RUN/summary.json    the outcome as printed
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ray_ltdd import pipeline
from ray_ltdd.artifacts import Artifact, ArtifactStore, Key
from ray_ltdd.config import ExperimentConfig, validate, write_yaml
from ray_ltdd.data.belonging import record_data, require_same_data
from ray_ltdd.data.groups import shot_groups
from ray_ltdd.data.prepare import prepare_dataset
from ray_ltdd.data.prepared import PreparedDataset
from ray_ltdd.data.split import SplitConfig, draw_split
from ray_ltdd.errors import InputError
from ray_ltdd.executor import Executor, InlineExecutor, Reporter, SilentReporter, StageRecord
from ray_ltdd.pipeline import Distilled, Scores
from ray_ltdd.results.distilled import CardFacts, png_bytes, write_card, write_distilled, write_labels
from ray_ltdd.results.distilled_views import write_view_logits
from ray_ltdd.results.rows import SCHEMA_VERSION, append_rows
from ray_ltdd.results.summary import SUMMARY, TITLES, Outcome, aggregate
from ray_ltdd.run_notes import notes, weak_experts
from ray_ltdd.stages.colours import require_colours
from ray_ltdd.stages.recover import round_pixels
from ray_ltdd.stages.views import epoch_shape
from ray_ltdd.storage import absolute, atomic_file, readable_os_error
from ray_ltdd.tasks.students import Source, views_seed
from ray_ltdd.workbench import TrainedExpert, Workbench, WorkbenchSpec, split_payload
from ray_ltdd.yaml_files import override, read_yaml

SPLIT_VERSION = 1
SETTINGS = "settings.yaml"


@dataclass(frozen=True)
class Run:
    """An opened run.

    Attributes:
        config, folder, bench: settings, folder, workbench.
        executor: what computes it.
        row_fields: columns of its result rows that whoever runs it knows: a sweep's.
        reporter: told what the user should know early.
    """

    config: ExperimentConfig
    folder: Path
    bench: Workbench
    executor: Executor
    row_fields: Mapping[str, Any] = field(default_factory=dict)
    reporter: Reporter = field(default_factory=SilentReporter)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """End what the executor started."""
        self.executor.close()


@dataclass(frozen=True)
class RunParts:
    """What an executor is made of: settings, the run's folder, its workbench, the store, the reporter."""

    config: ExperimentConfig
    folder: Path
    bench: Workbench
    store: ArtifactStore
    reporter: Reporter


def in_this_process(parts: RunParts) -> Executor:
    """The executor without Ray."""
    return InlineExecutor(parts.store, parts.bench, parts.reporter)


@dataclass(frozen=True)
class Report:
    """What a finished run says.

    Attributes:
        run: the run.
        outcomes: accuracies, aggregated over seeds.
        records: cost of each stage.
        notes: sentences the user should read (weak experts, crops below the threshold).
        image_bytes, label_bytes: what the distilled dataset takes.
        group_rule: how classes were grouped.
    """

    run: Run
    outcomes: list[Outcome]
    records: list[StageRecord]
    notes: list[str]
    image_bytes: int
    label_bytes: int
    group_rule: str

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "run": str(self.run.folder),
            "fingerprint": self.run.config.fingerprint,
            "split": self.run.bench.split.name,
            "split_fingerprint": self.run.bench.split.fingerprint,
            "outcomes": [outcome.describe() for outcome in self.outcomes],
            "stages": {record.title: record.describe() for record in self.records},
            "image_bytes": self.image_bytes,
            "label_bytes": self.label_bytes,
            "labels": self.run.config.relabel.labels,
            "notes": self.notes,
        }


def open_run(
    config: ExperimentConfig,
    reporter: Reporter,
    folder: Path | None = None,
    make_executor: Callable[[RunParts], Executor] = in_this_process,
    row_fields: Mapping[str, Any] = MappingProxyType({}),
) -> Run:
    """Prepare data, split and folder.

    Args:
        config: the settings.
        reporter: told the progress.
        folder: of an existing run; None: the one the settings name.
        make_executor: makes what computes the run; `ray_ltdd.cluster.executor.make_executor` makes the one the settings ask for.
        row_fields: see `Run`.

    Raises:
        InputError: data or folders cannot be used, or the folder has results of other data.
    """
    folder = (folder or config.run_folder).absolute()
    # a place that cannot be used is said before minutes go into decoding; the store may lie in it, and is then not what is wrong
    with readable_os_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    store = ArtifactStore(config.output.store_path, config.output.checkpoint_seconds)
    prepared = prepare(config, reporter)
    require_same_data(folder, {prepared.dataset: prepared})
    config.require_different_teachers(prepared.image_size)
    for place, changes in config.colour_changes():
        require_colours(changes, prepared.channels, place)
    split = stored_split(store, config.split, prepared)
    bench = WorkbenchSpec(prepared, split, config.compute).open()
    executor = make_executor(RunParts(config, folder, bench, store, reporter))
    # after all that refuses the settings: a run that never was leaves no folder
    with readable_os_error(folder):
        folder.mkdir(exist_ok=True)
        if not (folder / SETTINGS).exists():
            with atomic_file(folder / SETTINGS) as temporary:
                write_yaml(_with_absolute_paths(config, store), temporary)
    record_data(folder, {prepared.dataset: prepared})
    return Run(config, folder, bench, executor, dict(row_fields), reporter)


def _with_absolute_paths(config: ExperimentConfig, store: ArtifactStore) -> ExperimentConfig:
    """The settings as whoever opens the run from another folder needs them."""
    data, output = config.data, config.output
    places = {"root": absolute(data.root), "path": absolute(data.path) if data.path else None}
    own = {"root": absolute(output.root), "store": str(store.root)}
    return config.model_copy(update={"data": data.model_copy(update=places), "output": output.model_copy(update=own)})


def stored_split(store: ArtifactStore, config: SplitConfig, prepared: PreparedDataset) -> Artifact:
    """Return the split of `config`, drawn if nobody has.

    Raises:
        InputError: it cannot be drawn, or the store cannot be written.
    """
    # one tree can be read as two datasets: the name decides the head class's images, and stands in the split's own
    settings = {"split": config.model_dump(mode="json"), "dataset": prepared.dataset}
    key = Key("split", SPLIT_VERSION, settings, {"data": prepared.fingerprint}, config.seed)
    return store.get_or_compute(key, lambda slot: split_payload(draw_split(config, prepared)))[0]


def prepare(config: ExperimentConfig, reporter: Reporter) -> PreparedDataset:
    """Decode the dataset if nobody has."""
    with reporter.stage("Prepare data", 0) as advance:
        done = 0

        def on_progress(n: int, _: int) -> None:
            nonlocal done
            advance(n - done)
            done = n

        return prepare_dataset(config.data, on_progress)


def reopen_config(folder: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a run's settings and apply `key=value` overrides.

    Raises:
        InputError: the folder holds no run, or an override is malformed or out of range.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise InputError(f"{folder} is no run: it has no {SETTINGS}; give a folder that `ray-ltdd run` made, such as runs/quickstart-1a2b3c4d.")
    values = read_yaml(path)
    if not values:
        raise InputError(f"{folder} is no run: its {SETTINGS} is empty; give a folder that `ray-ltdd run` made.")
    validate(values, str(path))
    origins = {override(values, text)[0]: "command line" for text in overrides}
    return validate(values, str(path), origins)


def execute(run: Run) -> Report:
    """Run all stages, write everything a run leaves, and return what to say about it. What exists is not computed again."""

    def on_experts(experts: Sequence[TrainedExpert]) -> None:
        # the report says it too, but by then hours may have gone into weak experts
        for sentence in weak_experts(run.config, run.bench.prepared.class_names, experts):
            run.reporter.note(sentence)

    distilled = pipeline.distil(run.config, run.bench, run.executor, on_experts)
    report = evaluate(run, distilled)
    folder = run.folder / "distilled"
    tensors = distilled.images.tensors()
    card = write_card(_card_facts(run, report))
    write_distilled(folder, tensors["image"], tensors["label"], distilled.labels.images.tensors()["logit"], run.bench.prepared.class_names, card)
    write_labels(folder, _label_files(run, distilled))
    if distilled.labels.views:
        views, seed = run.config.relabel.views, views_seed(run.config.seed)
        # a chunk of epochs at a time
        chunks = (chunk.tensors()["view_logit"] for chunk in distilled.labels.views)
        write_view_logits(folder, chunks, _stored_shape(run), views, seed)
    with readable_os_error(run.folder), atomic_file(run.folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(report.describe(), indent=1))
    # at the very end: a picture that cannot be drawn costs no result
    draw_run_gallery(run, distilled)
    return report


def evaluate(run: Run, distilled: Distilled) -> Report:
    """Train and test the students, add their rows to RUN/results, and return what to say about them."""
    scores = pipeline.evaluate(run.config, run.bench, run.executor, distilled)
    image_bytes, label_bytes = sizes(run, distilled)
    rows = result_rows(run, scores, image_bytes, label_bytes)
    append_rows(run.folder / "results", rows)
    _, rule = shot_groups(run.bench.split.count_K)
    return Report(run, aggregate(rows), run.executor.records(), notes(run.config, run.bench, distilled), image_bytes, label_bytes, rule)


def sizes(run: Run, distilled: Distilled) -> tuple[int, int]:
    """Bytes of the distilled images as PNG, and of the labels a user must keep."""
    kept = (tensor for tensors, _ in _label_files(run, distilled).values() for tensor in tensors.values())
    view_bytes = torch.float16.itemsize * math.prod(_stored_shape(run)) if distilled.labels.views else 0
    return png_bytes(distilled.images.tensors()["image"]), view_bytes + sum(tensor.numel() * tensor.element_size() for tensor in kept)


def draw_run_gallery(run: Run, distilled: Distilled) -> Path:
    """Draw RUN/gallery.png."""
    # matplotlib takes half a second to import, at the end rather than before the first step
    from ray_ltdd.results.gallery import draw_gallery
    from ray_ltdd.results.image_sets import FINAL, INITIAL, REAL
    from ray_ltdd.results.real_images import first_of_each_class

    initial: dict[int, torch.Tensor] = {}
    for unit, artifact in zip(distilled.units, distilled.initial, strict=True):
        initial |= dict(zip(unit, round_pixels(artifact.tensors()["image"]).unflatten(0, (len(unit), -1)), strict=True))
    ipc, bench = run.config.distill.images_per_class, run.bench
    panels = {
        INITIAL: [initial[label] for label in sorted(initial)],
        FINAL: list(distilled.images.tensors()["image"].unflatten(0, (bench.n_classes, -1))),
        REAL: first_of_each_class(bench.prepared, bench.split.train_index_N, ipc),
    }
    path = run.folder / "gallery.png"
    title = f"{bench.split.name}, {ipc} image{'s' if ipc > 1 else ''} per class (training images of each class in brackets)"
    draw_gallery(path, panels, bench.prepared.class_names, bench.split.count_K.tolist(), title)
    return path


def result_rows(run: Run, scores: Scores, image_bytes: int, label_bytes: int) -> list[dict[str, Any]]:
    """One row per tested network."""
    config, size = run.config, run.bench.prepared.image_size
    rows = [row for source, artifacts in scores.students.items() for row in student_rows(run, source, artifacts, image_bytes, label_bytes)]
    named = [("observer", scores.observer, config.observer)]
    named += [("teacher", artifact, expert) for artifact, expert in zip(scores.teachers, config.teachers, strict=True)]
    rows += [_row(run, artifact, role, expert.model.label_at(size), expert.member) for role, artifact, expert in named]
    return rows


def student_rows(run: Run, source: Source, students: Sequence[Artifact], image_bytes: int, label_bytes: int) -> list[dict[str, Any]]:
    """One row per student, or per part of one, trained on `source`."""
    network = run.config.evaluate.model.label_at(run.bench.prepared.image_size)
    own = {"labels": run.config.relabel.labels, "image_bytes": image_bytes, "label_bytes": label_bytes} if source == "distilled" else {}
    return [{**_row(run, artifact, source, network, number), **own} for number, artifact in enumerate(students)]


def _row(run: Run, artifact: Artifact, method: str, network: str, number: int) -> dict[str, Any]:
    config, split = run.config, run.bench.split
    metrics = {name: artifact.record[name] for name in ("top1", "top5", "many", "medium", "few", "per_class")}
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.folder.name,
        "fingerprint": config.fingerprint,
        "artifact": artifact.digest,
        "created": artifact.manifest["created"],
        "benchmark": config.data.dataset,
        "split": split.name,
        "split_fingerprint": split.fingerprint,
        "imbalance_factor": float(split.count_K.max() / split.count_K.min()),
        "images_per_class": config.distill.images_per_class,
        "method": method,
        "network": network,
        "number": number,
        "labels": "one-hot",
        "part": config.evaluate.part,
        **metrics,
        "group_rule": shot_groups(split.count_K)[1],
        "count_per_class": split.count_K.tolist(),
        "seconds": artifact.seconds,
        "stage_seconds": {record.title: record.compute_seconds for record in run.executor.records()},
        "peak_memory_mb": artifact.manifest["peak_memory_mb"],
        "image_bytes": None,
        "label_bytes": None,
        "device": artifact.manifest["device"],
        "versions": json.dumps(artifact.manifest["versions"]),
        "settings": json.dumps(config.model_dump(mode="json")),
        "n_tested": run.bench.n_images(config.evaluate.part),
        "state": "complete",
        "epochs": artifact.record.get("epoch", config.evaluate.epochs) if method in ("distilled", "random", "whole") else None,
        **run.row_fields,
    }


def _label_files(run: Run, distilled: Distilled) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
    """What a user must keep to train a student with this run's kind of labels, less stored views: file name -> tensors and what they are."""
    if run.config.relabel.labels == "one":
        tensors = distilled.labels.images.tensors()
        return {"logits.safetensors": ({"logit": tensors["logit"]}, {"meaning": "logits of the images as they are, in their order"})}
    if run.config.relabel.labels == "stored":
        return {}
    teachers = {teacher.artifact.digest: teacher for teacher in distilled.teachers}
    return {
        f"teacher-{number}.safetensors": (teacher.artifact.tensors(), {"meaning": "weights of an expert", "model": teacher.model.model_dump_json()})
        for number, teacher in enumerate(teachers.values())
    }


def _stored_shape(run: Run) -> tuple[int, int, int, int]:
    config, n_classes = run.config.relabel, run.bench.n_classes
    return config.stored_epochs, *epoch_shape(config.views, run.config.distill.images_per_class * n_classes), n_classes


def _card_facts(run: Run, report: Report) -> CardFacts:
    config = run.config
    return CardFacts(
        title=f"{run.bench.prepared.dataset}, {config.distill.images_per_class} images per class",
        fingerprint=run.bench.prepared.fingerprint,
        split=run.bench.split.name,
        images_per_class=config.distill.images_per_class,
        n_classes=run.bench.n_classes,
        image_bytes=report.image_bytes,
        label_bytes=report.label_bytes,
        labels=config.relabel.labels,
        accuracies=[(f"{TITLES[o.method]} ({o.network})", o.top1) for o in report.outcomes],
        settings=config.model_dump(mode="json", exclude={"output": True, "data": {"root", "path"}}),
    )
