"""Stage 5, first half: soft labels of the distilled images from the teacher.

Three ways, which cost different bytes and must be reported apart:
- `one`: one logit vector per image (fp16), stored;
- `stored`: the logits of every view of K epochs (fp16), stored; the views themselves are drawn again from their seed;
- `online`: nothing stored, the teacher labels every view while the student trains.

Legend: N images, K classes, E epochs, S batches of an epoch, B batch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from ray_ltdd.artifacts import Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank, padded_batches
from ray_ltdd.settings import Settings
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.select_crops import BATCH_SIZE, Logits
from ray_ltdd.stages.views import ViewsConfig, draw_epoch_views, make_batch

VERSION = 1


class RelabelConfig(Settings):
    """Kind of soft labels, and the views they are for."""

    labels: Literal["one", "stored", "online"] = Field(
        "online",
        description="one: a logit vector per image; stored: for every view of stored_epochs; online: teacher in the loop",
    )
    stored_epochs: int = Field(50, ge=1, description="epochs of views labelled in advance; the student goes through them again and again")
    tau: float = Field(
        0.0,
        ge=0,
        le=5,
        description="post-hoc calibration: logits minus tau times the (centred) log class prior of the long-tailed set",
    )
    views: ViewsConfig = Field(default_factory=ViewsConfig, description="the student's training views")


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


def calibrated(teacher: Logits, correction_K: torch.Tensor) -> Logits:
    """Return the teacher with `correction_K` subtracted from its logits."""
    return lambda image_NCHW: teacher(image_NCHW) - correction_K


@torch.no_grad()
def relabel(config: RelabelConfig, teacher: Logits, bank: ImageBank, backend: Backend, seed: int, advance: Advance = silent) -> Payload:
    """Return the stored labels: `logit`, fp16 [N, K] of the images as they are (part of every distilled dataset), and for `stored` also
    `view_logit`, fp16 [E, S, B, K] of the views drawn from `seed`."""
    tensors = {"logit": _label_images(teacher, bank).half()}
    if config.labels == "stored":
        epochs = []
        for epoch in range(config.stored_epochs):
            views = draw_epoch_views(config.views, len(bank), seed, epoch, backend.device)
            batches = [teacher(make_batch(config.views, bank, views, step)[0]) for step in range(len(views.index_SB))]
            epochs.append(torch.stack(batches).half().cpu())
            advance(views.index_SB.numel())
        tensors["view_logit"] = torch.stack(epochs)
    return Payload(tensors, {"labels": config.labels})


def _label_images(teacher: Logits, bank: ImageBank) -> torch.Tensor:
    batches = padded_batches(len(bank), BATCH_SIZE, bank.device)
    return torch.cat([teacher(bank.take(position_B))[:n_real] for position_B, n_real in batches])
