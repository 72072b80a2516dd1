"""Stage 3: confidence-guided, multi-round choice of real crops as initial images.

Every real image offers several random resized crops, scored by the teacher with the log-probability of the true class (negative
cross-entropy). Per class, in rounds, every image offers its best unused crop; if the offers exceed the open slots the best-scoring ones fill
them, else all are taken. So no image appears twice before every image has appeared once.

Legend: N images of a class, M crops of each, K classes, C H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from ray_ltdd.artifacts import Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.augment import crop, draw_crop_boxes, draw_flips
from ray_ltdd.data.bank import ImageBank, padded_batches
from ray_ltdd.seeding import generator
from ray_ltdd.settings import Settings
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.scoring import Logits

VERSION = 1
BATCH_SIZE = 256


class SelectCropsConfig(Settings):
    """How initial images are chosen."""

    method: Literal["confidence", "random", "noise"] = Field(
        "confidence",
        description="confidence: by the teacher's score, in rounds; random: random crops of random images; noise: no real image at all",
    )
    crops_per_image: int = Field(
        5,
        ge=1,
        le=1000,
        description="M, random resized crops scored per real image; more are drawn where M x images < images per class",
    )
    min_scale: float = Field(0.5, gt=0, le=1, description="smallest crop area as a share of the image")
    max_scale: float = Field(1.0, gt=0, le=1, description="largest crop area as a share of the image")
    flip: bool = Field(True, description="mirror half of the crops; false where left and right differ, as in digits")
    confidence_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a crop to which the teacher gives the true class less probability is not offered unless nothing else is left",
    )
    max_rounds: int | None = Field(
        None,
        ge=1,
        description="rounds with one offer per image; what is still open after them goes to the best unused crops of any image. Empty: no limit",
    )

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> Self:
        if self.min_scale > self.max_scale:
            raise ValueError(f"select_crops.min_scale={self.min_scale} is above max_scale={self.max_scale}: lower it")
        return self

    def in_effect(self) -> Self:
        """These settings, with the default of whatever the method does not use."""
        idle = {"confidence": set(), "random": {"confidence_threshold", "max_rounds"}, "noise": set(type(self).model_fields) - {"method"}}
        return self.with_defaults(idle[self.method])


@dataclass(frozen=True)
class Choice:
    """The outcome of the rounds for one class.

    Attributes:
        image: int64 [IPC], positions among the class's images, in the order chosen.
        crop: int64 [IPC], which crop of each.
        n_rounds: rounds it took.
        n_below_threshold: chosen crops under the confidence threshold.
        n_after_rounds: slots filled after the last round allowed.
    """

    image: torch.Tensor
    crop: torch.Tensor
    n_rounds: int
    n_below_threshold: int
    n_after_rounds: int


def choose_in_rounds(score_NM: torch.Tensor, n_slots: int, threshold: float = 0.0, max_rounds: int | None = None) -> Choice:
    """Choose `n_slots` of the N x M crops in rounds.

    In a round every image offers its best unused crop at or above the threshold. When no image has one left, crops below it are offered
    in the same way.
    Equal scores go to the earlier image and crop.

    Args:
        score_NM: log-probabilities of the true class.
        n_slots: images wanted.
        threshold: probability below which a crop is held back.
        max_rounds: after so many rounds the remaining slots go to the best unused crops, whatever their image.

    Raises:
        ValueError: there are fewer than `n_slots` crops.
    """
    n, m = score_NM.shape
    if n * m < n_slots:
        raise ValueError(f"{n} images x {m} crops cannot fill {n_slots} slots: draw more crops")
    rank_NM = score_NM.argsort(dim=1, descending=True, stable=True)
    ranked_NM = score_NM.gather(1, rank_NM)
    good_NM = ranked_NM.exp() >= threshold
    next_N = torch.zeros(n, dtype=torch.int64)
    chosen: list[tuple[int, int]] = []
    n_rounds = n_below = 0
    while len(chosen) < n_slots and (max_rounds is None or n_rounds < max_rounds):
        n_rounds += 1
        has_left_N = next_N < m
        at_N = next_N.clamp(max=m - 1)[:, None]
        good_N = has_left_N & good_NM.gather(1, at_N)[:, 0]
        offers_N = good_N if bool(good_N.any()) else has_left_N
        offer = offers_N.nonzero()[:, 0]
        score = ranked_NM.gather(1, at_N)[offer, 0]
        taken = offer[score.argsort(descending=True, stable=True)][: n_slots - len(chosen)]
        chosen += [(int(i), int(rank_NM[i, next_N[i]])) for i in taken]
        n_below += int((~good_N[taken]).sum())
        next_N[taken] += 1
    n_after = n_slots - len(chosen)
    if n_after:
        unused = (torch.arange(m)[None, :] >= next_N[:, None]).flatten().nonzero()[:, 0]
        best = unused[ranked_NM.flatten()[unused].argsort(descending=True, stable=True)][:n_after]
        chosen += [(int(i) // m, int(rank_NM.flatten()[i])) for i in best]
        n_below += int((~good_NM.flatten()[best]).sum())
    image, which = torch.tensor(chosen).T
    return Choice(image, which, n_rounds, n_below, n_after)


@torch.no_grad()
def select_crops(
    config: SelectCropsConfig,
    images_per_class: int,
    teacher: Logits,
    bank: ImageBank,
    classes: Sequence[int],
    backend: Backend,
    seed: int,
    advance: Advance = silent,
) -> Payload:
    """Return the initial images of some classes: `image`, float32 [K * IPC, C, H, W] in [0, 1], class by class, and `label`, int64 [K * IPC].

    All draws derive from (seed, class), so a class's outcome depends on no other class. The record says, per class, how many rounds it took and how
    many crops below the threshold had to be used.
    """
    label_N = torch.tensor(list(classes)).repeat_interleave(images_per_class)
    offers = [_draw_offers(config, images_per_class, bank, label, backend, seed) for label in classes]
    if config.method == "noise":
        noise = [torch.rand((images_per_class, *bank.take(o.position_N[:1]).shape[1:]), generator=o.rng, device=backend.device) for o in offers]
        return Payload({"image": torch.cat(noise), "label": label_N}, {"classes": list(classes)})
    if config.method == "random":
        score_list = [torch.rand(o.flip_NM.shape, generator=o.rng, device=backend.device).log() for o in offers]
    else:
        score_list = score_offers(teacher, bank, offers, backend, advance)
    limits = (config.confidence_threshold, config.max_rounds) if config.method == "confidence" else (0.0, None)
    choices = [choose_in_rounds(score_NM.cpu(), images_per_class, *limits) for score_NM in score_list]
    images = [o.cut(bank, choice.image, choice.crop) for o, choice in zip(offers, choices, strict=True)]
    record = {
        "classes": list(classes),
        "n_rounds": [choice.n_rounds for choice in choices],
        "n_below_threshold": [choice.n_below_threshold for choice in choices],
        "n_after_rounds": [choice.n_after_rounds for choice in choices],
    }
    return Payload({"image": torch.cat(images), "label": label_N}, record)


@dataclass(frozen=True)
class Offers:
    """All crops one class offers.

    Attributes:
        label: the class.
        position_N: int64, its images' positions in the bank.
        box_NM4: float32 boxes.
        flip_NM: bool.
        rng: the class's generator, for what is drawn after the boxes.
    """

    label: int
    position_N: torch.Tensor
    box_NM4: torch.Tensor
    flip_NM: torch.Tensor
    rng: torch.Generator

    def cut(self, bank: ImageBank, image_R: torch.Tensor, crop_R: torch.Tensor) -> torch.Tensor:
        """Return the crops (image_R[i], crop_R[i]), float32 [R, C, H, W]."""
        return crop(
            bank.take(self.position_N[image_R]),
            self.box_NM4[image_R, crop_R],
            self.flip_NM[image_R, crop_R],
            bank.image_size,
        )


def _draw_offers(config: SelectCropsConfig, images_per_class: int, bank: ImageBank, label: int, backend: Backend, seed: int) -> Offers:
    position_N = (bank.label_N.cpu() == label).nonzero()[:, 0]
    rng = generator(backend.device, seed, "select_crops", label)
    n = len(position_N)
    m = max(config.crops_per_image, -(-images_per_class // n))
    box_NM4 = draw_crop_boxes(n * m, (config.min_scale, config.max_scale), rng).view(n, m, 4)
    flip_NM = draw_flips(n * m, rng).view(n, m) & config.flip
    return Offers(label, position_N, box_NM4, flip_NM, rng)


@torch.no_grad()
def score_offers(teacher: Logits, bank: ImageBank, offers: Sequence[Offers], backend: Backend, advance: Advance = silent) -> list[torch.Tensor]:
    """Score every crop with the teacher's log-probability of its class.

    All classes go through one sequence of passes of one shape.

    Returns:
        float32 [N, M] for each of `offers`.
    """
    position_R = torch.cat([o.position_N.repeat_interleave(o.flip_NM.shape[1]) for o in offers])
    box_R4 = torch.cat([o.box_NM4.flatten(0, 1) for o in offers])
    flip_R = torch.cat([o.flip_NM.flatten() for o in offers])
    label_R = torch.cat([torch.full((o.flip_NM.numel(),), o.label) for o in offers]).to(backend.device)
    scores = []
    for row_B, n_real in padded_batches(len(position_R), BATCH_SIZE, torch.device("cpu")):
        image_BCHW = crop(bank.take(position_R[row_B]), box_R4[row_B], flip_R[row_B], bank.image_size)
        log_p_BK = teacher(image_BCHW).log_softmax(1)
        scores.append(log_p_BK.gather(1, label_R[row_B][:, None])[:n_real, 0])
        advance(n_real)
    shapes = [o.flip_NM.shape for o in offers]
    return [part.view(shape) for part, shape in zip(torch.cat(scores).split([n * m for n, m in shapes]), shapes, strict=True)]
