"""Logits of a frozen model over a set of images, in batches of one shape.

Legend: N images, B batch, K classes.
"""

from collections.abc import Callable

import torch

from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank, padded_batches
from ray_ltdd.stages.progress import Advance, silent

Logits = Callable[[torch.Tensor], torch.Tensor]
"""A frozen network, or several, as a function from images in [0, 1] to float32 logits."""

BATCH_SIZE = 250
"""Images per forward pass: enough to fill 2 cores or a GPU, small enough for 224 pixels."""


@torch.no_grad()
def predict(
    model: torch.nn.Module,
    bank: ImageBank,
    backend: Backend,
    position_N: torch.Tensor | None = None,
    advance: Advance = silent,
) -> torch.Tensor:
    """Return the logits of the bank's images, float32 [N, K] on the device.

    Args:
        model: in evaluation mode; takes float images in [0, 1].
        bank: the images.
        backend: device, precision.
        position_N: positions in the bank; all when None.
        advance: told the images done.
    """
    position_N = torch.arange(len(bank)) if position_N is None else position_N
    chunks = []
    for row_B, n_real in padded_batches(len(position_N), BATCH_SIZE, position_N.device):
        with backend.autocast():
            chunks.append(model(bank.take(position_N[row_B])).float()[:n_real])
        advance(n_real)
    return torch.cat(chunks)
