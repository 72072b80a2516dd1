"""Stage 5, first half: soft labels of the distilled images from the teacher.

Three ways, which cost different bytes and must be reported apart:
- `one`: one logit vector per image (fp16), stored;
- `stored`: the logits of every view of K epochs (fp16), stored; the views themselves are drawn again from their seed;
- `online`: nothing stored, the teacher labels every view while the student trains.

A label is (Eq. T), with f the mean of the teachers' logits, M a mirroring of the image, p the class prior and m its logs' mean over classes:

    y(x) = f(x) - tau (log p - m)    or, with mirror_average,    y(x) = (f(x) + f(M x)) / 2 - tau (log p - m)

The second asks the teachers twice and errs less, as the mean of two teachers does.

Legend: N images, K classes, E epochs, S batches of an epoch, B batch.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from ray_ltdd.artifacts import Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank, padded_batches
from ray_ltdd.settings import Settings
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.scoring import Logits
from ray_ltdd.stages.select_crops import BATCH_SIZE
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch

VERSION = 2


class RelabelConfig(Settings):
    """Kind of soft labels, and the views they are for."""

    labels: Literal["one", "stored", "online"] = Field(
        "online",
        description="one: a logit vector per image; stored: for every view of stored_epochs; online: teacher in the loop",
    )
    stored_epochs: int = Field(50, ge=1, description="epochs of views labelled in advance; the student goes through them again and again")
    epochs_per_task: int = Field(
        10,
        ge=1,
        description="stored epochs labelled by one task, kept in one artifact and held in memory by a student at one time; changes no label "
        "(an epoch of 10,000 images of 1000 classes takes 20 MB)",
    )
    tau: float = Field(
        0.0,
        ge=-5,
        le=5,
        description="post-hoc calibration: logits minus tau times the (centred) log class prior of the long-tailed set. Below 0 it favours many-shot "
        "classes, which students miss more often than their teacher does",
    )
    mirror_average: bool = Field(
        False,
        description="label by the mean of the teachers' logits for an image and for its mirror image (Eq. T), which takes labelling twice the time; "
        "not where left and right differ, as in digits",
    )
    views: ViewsConfig = Field(default_factory=ViewsConfig, description="the student's training views")

    @model_validator(mode="after")
    def _sides_are_alike(self) -> Self:
        if self.mirror_average and not self.views.flip:
            raise ValueError(
                "mirror_average=true beside views.flip=false, which says that left and right differ: set one of them to the other's value"
            )
        return self

    def outcome(self) -> dict[str, Any]:
        """The settings labels depend on, as plain data."""
        plain = self if self.labels == "stored" else self.with_defaults({"stored_epochs"})
        return plain.model_dump(mode="json", exclude={"epochs_per_task", "views", *self._unused()}) | {"views": self.views.outcome()}

    def image_outcome(self) -> dict[str, Any]:
        """The settings that labels of the images as they are depend on, as plain data."""
        return self.model_dump(mode="json", include={"tau", "mirror_average"} - self._unused())

    def _unused(self) -> set[str]:
        # unnamed where there is none, so that what was computed before there was a choice is found
        return set() if self.mirror_average else {"mirror_average"}

    @property
    def n_passes(self) -> int:
        """How often the teachers are asked for one label."""
        return 2 if self.mirror_average else 1

    def chunks(self) -> list[range]:
        """The stored epochs, split into those of each task; none where views are not stored."""
        n, size = self.stored_epochs if self.labels == "stored" else 0, self.epochs_per_task
        return [range(first, min(first + size, n)) for first in range(0, n, size)]


def prior_correction(count_K: torch.Tensor, tau: float) -> torch.Tensor:
    """Return tau * (log prior - its mean over classes), float32 [K], to be subtracted from logits.

    Centred, since a squared error on logits (unlike a softmax) feels a common shift.
    """
    log_prior_K = (count_K.double() / count_K.sum()).log()
    return (tau * (log_prior_K - log_prior_K.mean())).float()


def mean_logits(teachers: Sequence[torch.nn.Module], backend: Backend, flops: float = 0.0) -> Logits:
    """Return the function from images to the mean of the teachers' logits, float32 [N, K], never differentiated.

    Args:
        teachers: frozen, in evaluation mode.
        backend: device, precision; compiles where `flops` earn it back.
        flops: floating-point operations expected in all.
    """

    def mean(image_NCHW: torch.Tensor) -> torch.Tensor:
        with backend.autocast():
            return torch.stack([teacher(image_NCHW).float() for teacher in teachers]).mean(0)

    function = backend.compile(mean, flops)

    @torch.no_grad()
    def logits(image_NCHW: torch.Tensor) -> torch.Tensor:
        return function(image_NCHW)

    return logits


def mirror_averaged(teacher: Logits) -> Logits:
    """Return the mean of the teacher's logits for images [N, C, H, W] and for their mirror images, float32 [N, K]."""
    return lambda image_NCHW: (teacher(image_NCHW) + teacher(image_NCHW.flip(3))) / 2


def calibrated(teacher: Logits, correction_K: torch.Tensor) -> Logits:
    """Return the teacher with `correction_K` subtracted from its logits."""
    return lambda image_NCHW: teacher(image_NCHW) - correction_K


@torch.no_grad()
def label_images(teacher: Logits, bank: ImageBank, advance: Advance = silent) -> Payload:
    """Return `logit`, fp16 [N, K]: the teacher's logits of the images as they are, part of every distilled dataset."""
    labelled = []
    for position_B, n_real in padded_batches(len(bank), BATCH_SIZE, bank.device):
        labelled.append(teacher(bank.take(position_B))[:n_real])
        advance(n_real)
    return Payload({"logit": torch.cat(labelled).half()})


@torch.no_grad()
def label_views(
    views_config: ViewsConfig, teacher: Logits, bank: ImageBank, backend: Backend, seed: int, epochs: range, advance: Advance = silent
) -> Payload:
    """Return `view_logit`, fp16 [E, S, B, K]: the teacher's logits of the views drawn from `seed` for these epochs.

    An epoch's labels do not depend on which others are labelled with it.
    """
    labelled = []
    for epoch in epochs:
        views = draw_epoch_views(views_config, len(bank), bank.image_size, seed, epoch, backend.device)
        batches = [teacher(make_batch(views_config, bank, views, step)[0]) for step in range(len(views.index_SB))]
        labelled.append(torch.stack(batches).half().cpu())
        advance(views.index_SB.numel())
    return Payload({"view_logit": torch.stack(labelled)})
