"""The stored labels of a distilled dataset as one file, and the views they are for, drawn again from their seed.

Legend: N images, K classes, E stored epochs, S batches of an epoch, B batch, C H W.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.results.distilled import find_distilled, load_distilled
from ray_ltdd.stages.views import VERSION, ViewsConfig, draw_epoch_views, epoch_shape, make_batch
from ray_ltdd.storage import atomic_file, readable_os_error

VIEW_LOGITS = "view_logits.safetensors"
_TENSOR = "view_logit"
_CPU = torch.device("cpu")


def write_view_logits(folder: Path, chunks: Iterable[torch.Tensor], shape: Sequence[int], views: ViewsConfig, seed: int) -> None:
    """Write the logits of stored views as one safetensors file, `view_logit` [E, S, B, K], one chunk in memory at a time.

    Args:
        folder: of the distilled dataset, made when missing.
        chunks: fp16 [epochs of the chunk, S, B, K], in the order of epochs.
        shape: E, S, B, K.
        views, seed: what the views are drawn from.

    Raises:
        InputError: the folder cannot be written.
    """
    facts = {
        "meaning": "logits of views [epoch, batch, image, class]",
        "views": views.model_dump_json(),
        "views_seed": str(seed),
        "views_version": str(VERSION),
    }
    tensor = {"dtype": "F16", "shape": list(shape), "data_offsets": [0, 2 * math.prod(shape)]}
    header = json.dumps({"__metadata__": facts, _TENSOR: tensor}).encode()
    # safetensors' own writer wants the whole tensor; the format begins its data at a multiple of eight bytes
    header += b" " * (-len(header) % 8)
    with readable_os_error(folder), atomic_file(folder / VIEW_LOGITS) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for chunk in chunks:
            file.write(chunk.numpy().astype("<f2").tobytes())


class StoredBatch(NamedTuple):
    """One batch of views with what a student is trained on.

    Attributes:
        view_BCHW: float32 in [0, 1].
        label_B: int64 labels of the images.
        partner_label_B: int64 labels of the images mixed in.
        lambda_B: float32 share of each image itself, for CutMix of the pixels that are its own.
        logit_BK: float32 teacher's logits of the views.
    """

    view_BCHW: torch.Tensor
    label_B: torch.Tensor
    partner_label_B: torch.Tensor
    lambda_B: torch.Tensor
    logit_BK: torch.Tensor


@dataclass(frozen=True)
class StoredViews:
    """The stored epochs of views, drawn again while they are gone through, on the CPU; labels are read from disk batch by batch.

    Iterating gives all batches of all epochs, as `StoredBatch`; a student goes through them again and again.

    Attributes:
        n_epochs, n_batches: E, and S of each epoch.
        class_names: K names.
    """

    n_epochs: int
    n_batches: int
    class_names: tuple[str, ...]
    _file: Path
    _bank: ImageBank
    _views: ViewsConfig
    _seed: int

    def __len__(self) -> int:
        """Batches of all epochs."""
        return self.n_epochs * self.n_batches

    def __iter__(self) -> Iterator[StoredBatch]:
        """Yield all batches, epoch by epoch."""
        for epoch in range(self.n_epochs):
            yield from self.epoch(epoch)

    def epoch(self, epoch: int) -> Iterator[StoredBatch]:
        """Yield the batches of one epoch.

        Raises:
            InputError: there is no such epoch.
        """
        if not 0 <= epoch < self.n_epochs:
            raise InputError(f"epoch {epoch} of the views in {self._file} is not stored: give one of 0 to {self.n_epochs - 1}.")
        views = draw_epoch_views(self._views, len(self._bank), self._bank.image_size, self._seed, epoch, _CPU)
        with safe_open(self._file, framework="pt") as file:
            logit_SBK = file.get_slice(_TENSOR)[epoch]
        for step in range(self.n_batches):
            view_BCHW, partner_B, lambda_B = make_batch(self._views, self._bank, views, step)
            label_B = self._bank.label_N[views.index_SB[step]]
            yield StoredBatch(view_BCHW, label_B, label_B[partner_B], lambda_B, logit_SBK[step].float())


def load_stored_views(path: str | Path) -> StoredViews:
    """Load the views and labels of a run with `relabel.labels=stored`: exactly what its students are trained on.

    Args:
        path: `RUN/distilled`, a run's folder, or its distilled Parquet file.

    Raises:
        InputError: there is no distilled dataset, it has no stored labels, they are damaged, or their views are drawn differently today.
    """
    images, parquet = load_distilled(path), find_distilled(path)
    file = parquet.parent / VIEW_LOGITS
    if not file.is_file():
        raise InputError(f"the distilled dataset {parquet} has no stored labels of views ({VIEW_LOGITS}): run it with relabel.labels=stored.")
    try:
        with safe_open(file, framework="pt") as opened:
            facts, shape = opened.metadata(), opened.get_slice(_TENSOR).get_shape()
        views, seed, version = ViewsConfig.model_validate_json(facts["views"]), int(facts["views_seed"]), int(facts.get("views_version", 1))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, ValidationError) as error:
        raise InputError(f"{file} holds no labels of views or is damaged ({on_one_line(error)}): run again with relabel.labels=stored.") from error
    if version != VERSION:
        raise InputError(f"the views of {file} were drawn by version {version}, this is version {VERSION}: run again with relabel.labels=stored.")
    expected = [*epoch_shape(views, len(images)), len(images.class_names)]
    if shape[1:] != expected:
        raise InputError(f"{file} holds logits of shape {shape}, which do not fit the images beside it: run again with relabel.labels=stored.")
    bank = ImageBank(images.image_NCHW.numpy(), images.label_N.numpy(), np.arange(len(images)), _CPU)
    return StoredViews(shape[0], shape[1], images.class_names, file, bank, views, seed)
