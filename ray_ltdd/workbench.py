"""What a process keeps at hand while it works on a run: images on the device, experts loaded once.

Legend: N images, K classes.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ray_ltdd.artifacts import Artifact, Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.data.prepared import PreparedDataset
from ray_ltdd.data.split import LongTailedSplit
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import Expert, build_expert

Part = Literal["train", "validation", "test"]


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


@dataclass
class Workbench:
    """The dataset, its split and the device; banks and experts are loaded at first use and kept.

    Attributes:
        prepared: the decoded dataset.
        split: the long-tailed split all stages use.
        backend: device, precision, compilation.
    """

    prepared: PreparedDataset
    split: LongTailedSplit
    backend: Backend
    _banks: dict[str, ImageBank] = field(default_factory=dict)
    _experts: dict[str, Expert] = field(default_factory=dict)

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
            images = self.prepared.test if part == "test" else self.prepared.train
            index_N = {
                "train": self.split.train_index_N,
                "validation": self.split.validation_index_N,
                "test": np.arange(len(self.prepared.test.label_N)),
            }[part]
            if not len(index_N):
                raise InputError("evaluate.part=validation, but the split sets no images aside: give split.validation_per_class, such as 50.")
            self._banks[part] = ImageBank(images.image_NCHW, images.label_N, index_N, self.backend.device)
        return self._banks[part]

    def stored_bank(self, artifact: Artifact) -> ImageBank:
        """The images of an artifact with `image` (uint8 [N, C, H, W]) and `label` (int64 [N])."""
        if artifact.digest not in self._banks:
            tensors = artifact.tensors()
            self._banks[artifact.digest] = bank_of(tensors["image"], tensors["label"], self.backend.device)
        return self._banks[artifact.digest]

    def new_expert(self, config: ModelConfig, seed: int) -> Expert:
        """An expert with fresh weights, on the device."""
        shape = (self.prepared.image_size, self.prepared.channels, self.n_classes)
        expert = build_expert(config, *shape, torch.from_numpy(self.split.mean_C), torch.from_numpy(self.split.std_C), seed)
        return expert.to(self.backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def expert(self, artifact: Artifact, config: ModelConfig) -> Expert:
        """The trained expert of an artifact: frozen, in evaluation mode, on the device."""
        if artifact.digest not in self._experts:
            expert = self.new_expert(config, seed=0)
            expert.load_state_dict(artifact.tensors())
            self._experts[artifact.digest] = expert.eval().requires_grad_(False)
        return self._experts[artifact.digest]


def bank_of(image_NCHW: torch.Tensor, label_N: torch.Tensor, device: torch.device) -> ImageBank:
    """A bank of uint8 images held in memory."""
    return ImageBank(image_NCHW.numpy(), label_N.numpy(), np.arange(len(label_N)), device)
