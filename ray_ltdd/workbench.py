"""What a process keeps at hand while it works on a run: images on the device, experts loaded once.

Legend: N images, K classes.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from ray_ltdd.artifacts import Artifact, Payload
from ray_ltdd.compute import Backend, ComputeConfig, forward_flops, resolve_backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.data.prepared import PreparedDataset
from ray_ltdd.data.split import LongTailedSplit
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import Expert, build_expert
from ray_ltdd.models.monitor import MonitorKind
from ray_ltdd.stages.relabel import mean_logits
from ray_ltdd.stages.scoring import Logits
from ray_ltdd.statistics.observe import Observation, observing

Part = Literal["train", "validation", "test", "balanced_train"]
MOST_TRAINING_IMAGES_SCORED = 100
"""Of each class, in the part `balanced_train`."""

N_STORED_BANKS = 4
N_EXPERTS = 16
N_FUNCTIONS = 12
"""Kept at a time: a process that serves a sweep meets other distilled sets, and maybe other experts, in every trial."""

T = TypeVar("T")


class Recent(Generic[T]):
    """The things used last, by name; what was used longest ago is let go."""

    def __init__(self, n: int, let_go: Callable[[T], object] = lambda thing: None) -> None:
        """Args: how many are kept; called with each that is let go."""
        self._n = n
        self._let_go = let_go
        self._things: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], T]) -> T:
        """Return the thing of that name, made where it is not kept."""
        if name not in self._things:
            self._things[name] = make()
        self._things.move_to_end(name)
        while len(self._things) > self._n:
            self._let_go(self._things.popitem(last=False)[1])
        return self._things[name]

    def clear(self) -> None:
        """Let go of all."""
        while self._things:
            self._let_go(self._things.popitem()[1])

    def __len__(self) -> int:
        """How many are kept now."""
        return len(self._things)


@dataclass(frozen=True)
class _Function:
    """Something that is called, and what ends with it."""

    called: Any
    context: ExitStack = field(default_factory=ExitStack)


def split_payload(split: LongTailedSplit) -> Payload:
    """The split as an artifact: `train_index`, `validation_index`, `count`, `mean`, `std`; name and fingerprint in the record."""
    tensors = {
        "train_index": torch.from_numpy(split.train_index_N),
        "validation_index": torch.from_numpy(split.validation_index_N),
        "count": torch.from_numpy(split.count_K),
        "mean": torch.from_numpy(split.mean_C),
        "std": torch.from_numpy(split.std_C),
    }
    return Payload(tensors, {"name": split.name, "fingerprint": split.fingerprint})


def load_split(artifact: Artifact) -> LongTailedSplit:
    """Read back what `split_payload` stored."""
    arrays = {name: tensor.numpy() for name, tensor in artifact.tensors().items()}
    return LongTailedSplit(
        name=artifact.record["name"],
        fingerprint=artifact.record["fingerprint"],
        train_index_N=arrays["train_index"],
        validation_index_N=arrays["validation_index"],
        count_K=arrays["count"],
        mean_C=arrays["mean"],
        std_C=arrays["std"],
    )


@dataclass(frozen=True)
class TrainedExpert:
    """A trained expert's artifact and what is needed to load it."""

    artifact: Artifact
    model: ModelConfig


@dataclass(frozen=True)
class WorkbenchSpec:
    """What another process needs to set up the same workbench. Small and picklable: paths, no pixels.

    Attributes:
        prepared: the decoded dataset.
        split: artifact of the split.
        compute: device, precision, compilation; "auto" is resolved where the workbench stands.
    """

    prepared: PreparedDataset
    split: Artifact
    compute: ComputeConfig

    def open(self) -> "Workbench":
        """Set it up."""
        return Workbench(self.prepared, load_split(self.split), self)


@dataclass
class Workbench:
    """The dataset, its split and the device; banks and experts are loaded at first use and kept.

    Attributes:
        prepared: the decoded dataset.
        split: the long-tailed split all stages use.
        spec: how another process sets up the same one.
    """

    prepared: PreparedDataset
    split: LongTailedSplit
    spec: WorkbenchSpec
    _banks: dict[str, ImageBank] = field(default_factory=dict)
    _stored_banks: Recent[ImageBank] = field(default_factory=lambda: Recent(N_STORED_BANKS))
    _experts: Recent[Expert] = field(default_factory=lambda: Recent(N_EXPERTS))
    _blueprints: dict[str, Expert] = field(default_factory=dict)
    _functions: Recent[_Function] = field(default_factory=lambda: Recent(N_FUNCTIONS, lambda function: function.context.close()))

    @cached_property
    def backend(self) -> Backend:
        """Device, precision, compilation, resolved where something is computed: a driver may stand on a machine without the workers' GPU.

        Raises:
            InputError: CUDA is asked for and not there.
        """
        return resolve_backend(self.spec.compute)

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.prepared.class_names)

    @property
    def count_K(self) -> torch.Tensor:
        """Training images of each class, int64 [K]."""
        return torch.from_numpy(self.split.count_K)

    def bank(self, part: Part) -> ImageBank:
        """The images of a part of the data.

        Raises:
            InputError: the validation part is asked for and the split has none.
        """
        if part not in self._banks:
            self.require(part)
            images = self.prepared.test if part == "test" else self.prepared.train
            self._banks[part] = ImageBank(images.image_NCHW, images.label_N, self._index(part), self.backend.device)
        return self._banks[part]

    def require(self, part: Part) -> None:
        """Refuse a part that has no images.

        Raises:
            InputError: the validation part is asked for and the split has none.
        """
        if not len(self._index(part)):
            raise InputError(f"evaluate.part={part}, but the split sets no images aside: give split.validation_per_class, such as 50.")

    def _index(self, part: Part) -> np.ndarray:
        if part == "test":
            return np.arange(len(self.prepared.test.label_N))
        if part == "balanced_train":
            return self._balanced_index_N
        return self.split.train_index_N if part == "train" else self.split.validation_index_N

    @cached_property
    def _balanced_index_N(self) -> np.ndarray:
        """As many training images of every class as the smallest has, at most `MOST_TRAINING_IMAGES_SCORED`: the first in the split's order."""
        label_N = self.prepared.train.label_N[self.split.train_index_N]
        n = min(int(self.split.count_K.min()), MOST_TRAINING_IMAGES_SCORED)
        return np.concatenate([self.split.train_index_N[label_N == label][:n] for label in range(self.n_classes)])

    def stored_bank(self, artifact: Artifact) -> ImageBank:
        """The images of an artifact with `image` (uint8 [N, C, H, W]) and `label` (int64 [N])."""

        def read() -> ImageBank:
            tensors = artifact.tensors()
            return bank_of(tensors["image"], tensors["label"], self.backend.device)

        return self._stored_banks.get(artifact.digest, read)

    def release(self) -> None:
        """Drop everything that is loaded, on the device too; it is loaded again when it is used."""
        for kept in (self._banks, self._stored_banks, self._experts, self._functions):
            kept.clear()
        self.backend.forget()
        if self.backend.device.type == "cuda":
            torch.cuda.empty_cache()

    def new_expert(self, config: ModelConfig, seed: int) -> Expert:
        """An expert with fresh weights, on the device."""
        shape = (self.prepared.image_size, self.prepared.channels, self.n_classes)
        expert = build_expert(config, *shape, torch.from_numpy(self.split.mean_C), torch.from_numpy(self.split.std_C), seed)
        return expert.to(self.backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def n_images(self, part: Part) -> int:
        """Images of a part of the data, without loading them."""
        return len(self._index(part))

    def blueprint(self, config: ModelConfig) -> Expert:
        """An expert of these settings without weights or memory, to ask for its layers."""
        name = config.model_dump_json()
        if name not in self._blueprints:
            shape = (self.prepared.image_size, self.prepared.channels, self.n_classes)
            neutral_C = torch.ones(self.prepared.channels)
            self._blueprints[name] = build_expert(config, *shape, neutral_C, neutral_C, 0).to("meta")
        return self._blueprints[name]

    def expert(self, trained: TrainedExpert) -> Expert:
        """A trained expert: frozen, in evaluation mode, on the device."""
        return self._experts.get(trained.artifact.digest, lambda: self._load(trained))

    def observation(self, observer: TrainedExpert, kind: MonitorKind, n_passes: int) -> Observation:
        """The observer with its layers watched; compiled where `n_passes` forward passes earn it back, once for all tasks."""
        flops = n_passes * self._flops(observer)
        name = ("observation", observer.artifact.digest, kind, str(self.backend.worth_compiling(flops)))

        def watch() -> _Function:
            context = ExitStack()
            # a copy of its own: the hooks must not slow the same expert down where it serves as teacher
            return _Function(context.enter_context(observing(self._load(observer), kind, self.backend, flops)), context)

        observation: Observation = self._functions.get(name, watch).called
        return observation

    def teacher(self, teachers: Sequence[TrainedExpert], n_passes: int) -> Logits:
        """The mean of the teachers' logits; compiled where `n_passes` forward passes earn it back, once for all tasks."""
        flops = n_passes * sum(self._flops(teacher) for teacher in teachers)
        name = ("teacher", *(t.artifact.digest for t in teachers), str(self.backend.worth_compiling(flops)))

        def average() -> _Function:
            return _Function(mean_logits([self.expert(teacher) for teacher in teachers], self.backend, flops))

        logits: Logits = self._functions.get(name, average).called
        return logits

    def _flops(self, trained: TrainedExpert) -> float:
        return forward_flops(self.expert(trained), self.prepared.channels, self.prepared.image_size)

    def _load(self, trained: TrainedExpert) -> Expert:
        expert = self.new_expert(trained.model, seed=0)
        expert.load_state_dict(trained.artifact.tensors())
        return expert.eval().requires_grad_(False)


def bank_of(image_NCHW: torch.Tensor, label_N: torch.Tensor, device: torch.device) -> ImageBank:
    """A bank of uint8 images held in memory."""
    return ImageBank(image_NCHW.numpy(), label_N.numpy(), np.arange(len(label_N)), device)
