"""What one experiment asks of its stages, from settings and class sizes alone: how much work, and which runs are one and the same.

It mirrors the keys of ray_ltdd.tasks without data at hand: two runs of a stage with equal identities have equal artifacts, computed once.
A test holds both against each other on a real run.

Legend: K classes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.search.sizes import label_of
from ray_ltdd.settings import Settings
from ray_ltdd.sharding import work_units
from ray_ltdd.stages.expert_config import ExpertConfig
from ray_ltdd.stages.views import n_views

STAGES = {
    "experts": "Experts",
    "calibrate": "Calibrate",
    "target": "Calibrate",
    "select_crops": "Select crops",
    "initial_moments": "Recover",
    "exchange": "Recover",
    "recover": "Recover",
    "images": "Recover",
    "relabel": "Relabel",
    "relabel_views": "Relabel",
    "students": "Students",
    "student_parts": "Students",
    "scores": "Experts' accuracy",
}
"""Folders of the store and the stages, as a run prints them, that they belong to, in the paper's order."""


class CostKind(NamedTuple):
    """Runs whose cost is comparable, up to their amount of work: one stage on one dataset with one kind of networks ("" where it does not matter)."""

    stage: str
    dataset: str = ""
    network: str = ""


@dataclass(frozen=True)
class StageRun:
    """One run of a stage, all its work units together.

    Attributes:
        kind: of its cost.
        identity: hash of all it depends on.
        work: images passed, or artifacts where the time hardly depends on images.
        size: distilled images or labelled views kept (of the stage `images`: pixel values), or artifacts where bytes do not depend on them.
        signature: of an expert, as `expert_signature` gives it; "" for other stages.
    """

    kind: CostKind
    identity: str
    work: int
    size: int
    signature: str = ""


def network_name(*models: ModelConfig | Mapping[str, Any]) -> str:
    """Return a text that is equal for equal networks, whether given as settings or as a manifest's plain data."""
    return " + ".join(json.dumps(model.model_dump() if isinstance(model, ModelConfig) else dict(model), sort_keys=True) for model in models)


def expert_signature(dataset: str, split: Mapping[str, Any], settings: Mapping[str, Any], seed: int, guide: Mapping[str, Any] | None = None) -> str:
    """Return a text that is equal for equal experts, planned or stored: dataset and size, the split's settings, its own and its guide's, seed."""
    return json.dumps([dataset, split, settings, seed, guide], sort_keys=True)


def stage_runs(config: ExperimentConfig, count_K: np.ndarray, rungs: Sequence[int] = ()) -> list[StageRun]:
    """Return what a run of `config` computes, in the paper's order; equal experts once.

    Args:
        config: the experiment.
        count_K: training images of each class, int64.
        rungs: epochs after which its first student may be stopped, in rising order: it is trained in parts.
    """
    return [*_Asked(config, count_K, rungs).all()]


class _Asked:
    """The stages of one experiment, each naming its work and its identity."""

    def __init__(self, config: ExperimentConfig, count_K: np.ndarray, rungs: Sequence[int]) -> None:
        self._config = config
        self._rungs = rungs
        self._n_train = int(count_K.sum())
        self._units = work_units(len(count_K), config.distill.classes_per_unit)
        self._n_images = len(count_K) * config.distill.images_per_class
        self._data = label_of(config)
        benchmark = find_benchmark(config.data.dataset)
        self._n_pixels = benchmark.channels * benchmark.resolve_image_size(config.data.image_size) ** 2
        self._numerics = config.compute.model_dump(include={"precision", "compile"})
        source = config.data.model_dump(exclude={"root"})
        self._split = self._identity("split", source, config.split, seed=config.split.seed)

    def all(self) -> Sequence[StageRun]:
        config = self._config
        observer = self._expert(config.observer)
        teachers = [self._expert(teacher, observer if teacher.taught_by else None) for teacher in config.teachers]
        experts = list({run.identity: run for run in (observer, *teachers)}.values())
        taught = [run.identity for run in teachers]
        crops = self._crops(taught)
        calibrated = self._calibrated(observer)
        recovered = self._recovered(observer, [run.identity for run in calibrated], crops)
        images = self._run("images", 1, self._n_images * self._n_pixels, [recovered[-1].identity])
        labels = self._labels([images.identity, *taught])
        scored = {run.identity: expert.model for run, expert in zip((observer, *teachers), (config.observer, *config.teachers), strict=True)}
        scores = [self._run("scores", 1, 1, [expert], config.evaluate.part, networks=[model]) for expert, model in scored.items()]
        students = self._students([images.identity, labels[0].identity], taught)
        return [*experts, *calibrated, crops, *recovered, images, *labels, *students, *scores]

    @property
    def _n_views(self) -> int:
        """Of an epoch, the last batch filled up."""
        return n_views(self._config.relabel.views, self._n_images)

    @property
    def _teachers(self) -> list[ModelConfig]:
        return [teacher.model for teacher in self._config.teachers]

    def _expert(self, expert: ExpertConfig, guide: StageRun | None = None) -> StageRun:
        n_images = expert.n_images(self._n_train)
        settings = {**expert.outcome(), **self._alike(expert)}
        networks, upstream, of_guide = [expert.model], [self._split], None
        if guide is not None:
            networks, upstream = [*networks, self._config.observer.model], [*upstream, guide.identity]
            of_guide = {**self._config.observer.outcome(), **self._alike(self._config.observer)}
        split = self._config.split.model_dump(mode="json")
        signature = expert_signature(self._data, split, settings, self._config.seed, of_guide)
        return replace(self._run("experts", n_images, 1, upstream, settings, networks=networks), signature=signature)

    def _alike(self, expert: ExpertConfig) -> dict[str, Any]:
        n_workers = expert.n_workers(self._config.cluster.expert_workers)
        return {"compute": self._numerics, **({"workers": n_workers} if n_workers > 1 else {})}

    def _calibrated(self, observer: StageRun) -> list[StageRun]:
        config = self._config.calibrate
        how = (config.layers, config.momentum, config.batch_size, self._units)
        moments = self._run("calibrate", self._n_train, len(self._units), [observer.identity], *how, networks=[self._config.observer.model])
        target = self._run("target", 1, 1, [moments.identity], config.class_weights, config.beta, config.variance)
        return [moments, target]

    def _crops(self, taught: list[str]) -> StageRun:
        config = self._config.select_crops
        guided = config.method == "confidence"
        upstream = [self._split, *(taught if guided else [])]
        work = self._n_train * config.crops_per_image
        how = (config, self._config.distill.images_per_class, self._units)
        return self._run("select_crops", work, self._n_images, upstream, *how, networks=self._teachers if guided else [])

    def _recovered(self, observer: StageRun, calibrated: list[str], crops: StageRun) -> list[StageRun]:
        config, units = self._config.recover, len(self._units)
        n_waves = config.n_waves(len(self._units[0]), self._config.distill.images_per_class)
        n_exchanges = len(range(config.exchange_every, config.steps, config.exchange_every)) if units > 1 else 0
        upstream = [observer.identity, *calibrated, crops.identity]
        networks = [self._config.observer.model]
        runs = []
        if units > 1:
            runs.append(self._run("initial_moments", self._n_images, units * n_waves, upstream, config, networks=networks))
            runs.append(self._run("exchange", n_waves * (1 + n_exchanges), n_waves * (1 + n_exchanges), upstream, config))
        work, size = self._n_images * config.steps, self._n_images * (1 + n_exchanges)
        return [*runs, self._run("recover", work, size, upstream, config, networks=networks)]

    def _labels(self, upstream: list[str]) -> list[StageRun]:
        config = self._config.relabel
        runs = [self._run("relabel", self._n_images * config.n_passes, self._n_images, upstream, config.image_outcome(), networks=self._teachers)]
        for epochs in config.chunks():
            work = len(epochs) * self._n_views
            how = (config.outcome(), epochs.start, epochs.stop)
            runs.append(self._run("relabel_views", work * config.n_passes, work, upstream, *how, networks=self._teachers))
        return runs

    def _students(self, distilled: list[str], taught: list[str]) -> list[StageRun]:
        config, last, views = self._config, self._config.evaluate.epochs, self._config.relabel.views
        runs = []
        for source in ("distilled", *config.evaluate.baselines):
            own = source == "distilled"
            asks = own and config.relabel.labels == "online"
            networks = [config.evaluate.model, *(self._teachers * config.relabel.n_passes if asks else [])]
            upstream = [*distilled, *(taught if asks else [])] if own else [self._split]
            how = [config.relabel.outcome()] if own else [config.relabel.views, self._n_images]
            per_epoch = n_views(views, self._n_images, self._n_train if source == "whole" else None)
            for number in range(config.evaluate.seeds):
                which = (config.evaluate.outcome(), config.evaluate.part, source, number, *how)
                ends = [0, *(self._rungs if own and number == 0 else [])]
                for begin, end in pairwise(ends):
                    runs.append(self._run("student_parts", (end - begin) * per_epoch, 1, upstream, *which, end, networks=networks))
                runs.append(self._run("students", (last - ends[-1]) * per_epoch, 1, upstream, *which, networks=networks))
        return runs

    def _run(self, stage: str, work: int, size: int, upstream: list[str], *depends_on: Any, networks: Sequence[ModelConfig] = ()) -> StageRun:
        kind = CostKind(stage, self._data, network_name(*networks)) if networks else CostKind(stage)
        return StageRun(kind, self._identity(stage, upstream, *depends_on, seed=self._config.seed), work, size)

    def _identity(self, *parts: Any, seed: int) -> str:
        plain = [part.model_dump(mode="json") if isinstance(part, Settings) else part for part in parts]
        return hashlib.sha256(json.dumps([plain, self._numerics, seed], sort_keys=True).encode()).hexdigest()[:24]
