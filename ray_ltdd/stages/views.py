"""The augmented and mixed views students are trained on, as a pure function of (settings, number and size of images, seed, epoch).

Because views can be drawn again from their seed, storing soft labels for K epochs of views needs the labels and the seed, nothing else. They are
drawn on the CPU wherever they are rendered: a GPU's generator gives other numbers for the same seed, and labels stored there must fit the views
drawn anywhere else.

A view is a random resized crop, mirrored or not, in other colours (Eq. V of `colours`), then mixed with another one.

Legend: N images, B batch, S batches of an epoch, C channels, H W rows and columns, K classes.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ray_ltdd.data.augment import crop, cutmix_spans, draw_crop_boxes, draw_flips, mixup
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.seeding import derive_seed, generator
from ray_ltdd.settings import Settings
from ray_ltdd.stages.colours import Hue, Saturation, draw_colours, recoloured, unchanged_colours
from ray_ltdd.stages.epoch_rows import EpochRows

VERSION = 2
"""Raised when the same seed draws other views, which labels stored before do not fit."""


class ViewsConfig(Settings):
    """Batches, crops, flips, colours and mixing of the student's training images; the same for every kind of label."""

    batch_size: int = Field(25, ge=2, description="images per step")
    min_scale: float = Field(0.2, gt=0, le=1, description="smallest area of the random resized crop")
    flip: bool = Field(True, description="mirror half of the images; false where left and right differ")
    hue: Hue = Field(
        0.0,
        description="largest turn of a view's colours about the grey axis, in half turns (t of Eq. V is uniform); for images of three channels. A "
        "teacher that labels views (relabel.labels stored or online) shows students more of what it knows",
    )
    saturation: Saturation = 0.0
    mix: Literal["cutmix", "mixup", "none"] = Field("cutmix", description="how an image is mixed with its partner from the same batch")
    mix_probability: float = Field(1.0, ge=0, le=1, description="probability that an image is mixed")
    mix_alpha: float = Field(1.0, gt=0, description="both parameters of the Beta distribution of lambda")

    def outcome(self) -> dict[str, Any]:
        """The settings views depend on, as plain data; colours go unnamed where they stay, so that what was computed before is found."""
        return self.model_dump(mode="json", exclude=unchanged_colours(self))


@dataclass(frozen=True)
class EpochViews(EpochRows):
    """All draws of one epoch, on the device, S rows of B.

    Attributes:
        index_SB: int64 positions of images.
        partner_SB: int64 rows of the same batch whose image is mixed in.
        box_SB4, flip_SB: crop and flip.
        lambda_SB: float32 share of the image itself, for CutMix corrected for the clipped box; 1 where it is not mixed.
        colour_SBCC: float32 matrices of Eq. V; C is 0 where colours stay.
        patch_row_SBH, patch_column_SBW: bool, the rows and columns of CutMix's box, where they cross the partner shows; H and W are 0 without CutMix.
    """

    index_SB: torch.Tensor
    partner_SB: torch.Tensor
    box_SB4: torch.Tensor
    flip_SB: torch.Tensor
    lambda_SB: torch.Tensor
    colour_SBCC: torch.Tensor
    patch_row_SBH: torch.Tensor
    patch_column_SBW: torch.Tensor


def epoch_shape(config: ViewsConfig, n_images: int) -> tuple[int, int]:
    """Return S and B: batches of an epoch, and images of each. Every image is seen at least once."""
    batch = min(config.batch_size, n_images)
    return -(-n_images // batch), batch


def n_batches(config: ViewsConfig, n_images: int) -> int:
    """Batches of an epoch."""
    return epoch_shape(config, n_images)[0]


def n_views(config: ViewsConfig, n_images: int, n_drawn_from: int | None = None) -> int:
    """Views of an epoch, the last batch filled up.

    Args:
        config: the batches.
        n_images: that decide the number of steps.
        n_drawn_from: images the batches are drawn from, where those are others: a baseline takes as many steps as distilled images do.
    """
    return n_batches(config, n_images) * epoch_shape(config, n_drawn_from or n_images)[1]


def draw_epoch_views(config: ViewsConfig, n_images: int, image_size: int, seed: int, epoch: int, device: torch.device) -> EpochViews:
    """Draw an epoch's views. The last batch is filled up with images of another permutation, so that all have one shape.

    Args:
        config: batches, crops, mixing.
        n_images: N.
        image_size: rows and columns, in pixels.
        seed, epoch: the same ones give the same views.
        device: where the views go after they are drawn, all at once; the numbers do not depend on it.
    """
    shape = epoch_shape(config, n_images)
    n = math.prod(shape)
    rng = generator("cpu", seed, "views", epoch)
    order = torch.cat([torch.randperm(n_images, generator=rng) for _ in range(2)])[:n]
    partner_SB = torch.rand(shape, generator=rng).argsort(dim=1)
    box_SB4 = draw_crop_boxes(n, (config.min_scale, 1.0), rng).view(*shape, 4)
    flip_SB = (draw_flips(n, rng) & config.flip).view(shape)
    lambda_SB = _draw_lambda(config, shape, derive_seed(seed, "views-lambda", epoch))
    colour_SBCC = draw_colours(config, shape, generator("cpu", seed, "views-colour", epoch))
    patch_row_SBH = patch_column_SBW = torch.zeros(*shape, 0, dtype=torch.bool)
    if config.mix == "cutmix":
        patch_row_SBH, patch_column_SBW, lambda_SB = _draw_patches(lambda_SB, image_size, derive_seed(seed, "views-centre", epoch))
    drawn = (order.view(shape), partner_SB, box_SB4, flip_SB, lambda_SB, colour_SBCC, patch_row_SBH, patch_column_SBW)
    return EpochViews(*(tensor.to(device) for tensor in drawn))


def _draw_lambda(config: ViewsConfig, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Shares before CutMix clips its boxes, float32; 1 where images are not mixed."""
    draw = np.random.default_rng(seed)
    lam = draw.beta(config.mix_alpha, config.mix_alpha, shape)
    mixed = draw.random(shape) < (config.mix_probability if config.mix != "none" else 0.0)
    return torch.as_tensor(np.where(mixed, lam, 1.0), dtype=torch.float32)


def _draw_patches(lambda_SB: torch.Tensor, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw CutMix's boxes; return their rows and columns, bool [S, B, size] each, and the shares they leave, float32 [S, B]."""
    # rows and columns instead of masks: an epoch of 10,000 images at 224 px takes 4 MB, not 500
    n_batch = lambda_SB.shape[1]
    centres = [torch.rand(2, n_batch, generator=generator("cpu", seed, "cutmix", step)) for step in range(len(lambda_SB))]
    row_SBH, column_SBW = cutmix_spans(lambda_SB, torch.stack(centres, dim=1), size)
    return row_SBH, column_SBW, 1 - (row_SBH.sum(2) * column_SBW.sum(2)).float() / size**2


def make_batch(config: ViewsConfig, bank: ImageBank, views: EpochViews, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Render one batch; nothing is drawn, and nothing goes to or from the device.

    Returns:
        view_BCHW: float32 in [0, 1].
        partner_B: int64 rows of the batch that were mixed in.
        lambda_B: float32 share of each image itself, for CutMix corrected for the clipped box.
    """
    image_BCHW = crop(bank.take(views.index_SB[step]), views.box_SB4[step], views.flip_SB[step], bank.image_size)
    image_BCHW = recoloured(image_BCHW, views.colour_SBCC[step])
    partner_B, lambda_B = views.partner_SB[step], views.lambda_SB[step]
    if config.mix == "none":
        return image_BCHW, partner_B, lambda_B
    if config.mix == "mixup":
        return mixup(image_BCHW, image_BCHW[partner_B], lambda_B), partner_B, lambda_B
    mask_BHW = views.patch_row_SBH[step][:, :, None] & views.patch_column_SBW[step][:, None, :]
    return torch.where(mask_BHW[:, None], image_BCHW[partner_B], image_BCHW), partner_B, lambda_B


def mix_labels(label_BK: torch.Tensor, partner_B: torch.Tensor, lambda_B: torch.Tensor) -> torch.Tensor:
    """lambda * label + (1 - lambda) * partner's label, float [B, K]; for one-hot labels and for logits alike."""
    return lambda_B[:, None] * label_BK + (1 - lambda_B)[:, None] * label_BK[partner_B]
