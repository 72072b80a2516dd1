"""Stage 4: recovery. Optimise the pixels of the initial images until the frozen observer's statistics on them match the long-tailed set's (Eq. 2-4).

    L = alignment_weight * (global_weight * A/K * L_global + class_weight * L_class) + cross_entropy_weight * CE

L_global averages over all A classes, L_class and CE over the unit's K: A/K makes an image's share in the three the same however the classes are cut.

A work unit is a fixed group of classes. It goes through its images in waves of a fixed size, each optimised to its end from a fresh state, so memory
does not grow with the images per class. All units do the same part of the same wave, then exchange their class moments for the global term.

Legend: N images of a wave, K classes of the unit, A all classes, F channels, C H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.data.augment import crop, draw_crop_boxes, draw_flips
from ray_ltdd.errors import InputError
from ray_ltdd.seeding import generator
from ray_ltdd.settings import Settings
from ray_ltdd.stages.optimize import cosine_with_warmup, set_rate
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.statistics.alignment import ClassSums, LayerTarget, Moments, SmoothedMoments, class_alignment, global_alignment
from ray_ltdd.statistics.moments import pool_by_class
from ray_ltdd.statistics.observe import Observation
from ray_ltdd.statistics.targets import VarianceReading

VERSION = 3

Beta = Annotated[float, Field(ge=0, lt=1)]


class RecoverConfig(Settings):
    """How pixels are optimised."""

    steps: int = Field(300, ge=0, description="optimiser steps per image; 0 keeps the initial images")
    learning_rate: float = Field(0.05, gt=0, description="peak rate of Adam on pixels in [0, 1] divided by their standard deviation")
    betas: tuple[Beta, Beta] = Field((0.5, 0.9), description="Adam's betas")
    alignment_weight: float = Field(0.01, ge=0, description="weight of both alignment terms")
    global_weight: float = Field(1.0, ge=0, description="weight of the global term within alignment")
    class_weight: float = Field(1.0, ge=0, description="weight of the class-wise term within alignment")
    cross_entropy_weight: float = Field(1.0, ge=0, description="weight of the observer's cross-entropy on the synthetic labels")
    first_layer_weight: float = Field(10.0, ge=0, description="weight of the first monitored layer; the others weigh 1")
    layer_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="weights of single monitored layers by name (such as encoder.blocks.2.0), instead of the above"
    )
    statistics_momentum: float = Field(0.8, ge=0, lt=1, description="smoothing of the synthetic statistics over steps; starts anew with every wave")
    min_scale: float = Field(0.5, gt=0, le=1, description="smallest crop area of a step's random resized crop, image by image")
    flip: bool = Field(True, description="mirror half of the images at each step; false where left and right differ")
    batch_size: int = Field(100, ge=1, description="images of a wave, divided equally over the unit's classes (at least one each)")
    exchange_every: int = Field(250, ge=1, description="steps between exchanges of class moments for the global term")
    stop_patience: int | None = Field(None, ge=1, description="stop a wave when its loss has found no new minimum for so many steps; empty: never")

    def layer_weight(self, name: str, position: int) -> float:
        """Weight of the monitored layer `name`, the `position`-th in forward order."""
        return self.layer_weights.get(name, self.first_layer_weight if position == 0 else 1.0)

    def n_waves(self, n_classes: int, images_per_class: int) -> int:
        """Number of waves a unit of `n_classes` goes through."""
        return -(-images_per_class // max(self.batch_size // n_classes, 1))


@dataclass
class WaveState:
    """A wave of one unit between two exchanges: everything needed to go on.

    Attributes:
        image: float32 [N, C, H, W] in [0, 1].
        first, second: Adam's moments, as `image`.
        smoothed: the unit's class moments, one pair [K, F] a layer; None before the first step.
        step: steps done.
        best, waited: minimum of the loss and steps since, for the optional stop.
        loss: the loss at the last step.
    """

    image: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    smoothed: list[Moments] | None = None
    step: int = 0
    best: float = float("inf")
    waited: int = 0
    loss: float = float("nan")

    def tensors(self) -> dict[str, torch.Tensor]:
        """As named tensors, to be stored."""
        numbers = torch.tensor([self.step, self.best, self.waited, self.loss], dtype=torch.float64)
        return {"image": self.image, "first": self.first, "second": self.second, "numbers": numbers, **smoothed_tensors(self.smoothed or [])}


def start_wave(image_NCHW: torch.Tensor) -> WaveState:
    """Return the state before the first step."""
    return WaveState(image_NCHW, torch.zeros_like(image_NCHW), torch.zeros_like(image_NCHW))


def smoothed_tensors(smoothed: Sequence[Moments]) -> dict[str, torch.Tensor]:
    """Class moments as named tensors."""
    return {f"smoothed/{i}/{name}": value_KF for i, pair in enumerate(smoothed) for name, value_KF in zip(("mean", "var"), pair, strict=True)}


def load_smoothed(tensors: dict[str, torch.Tensor]) -> list[Moments]:
    """Return what `smoothed_tensors` named; other tensors are passed over."""
    n_layers = sum(name.startswith("smoothed/") for name in tensors) // 2
    return [(tensors[f"smoothed/{i}/mean"], tensors[f"smoothed/{i}/var"]) for i in range(n_layers)]


def load_wave(tensors: dict[str, torch.Tensor], device: torch.device) -> WaveState:
    """Return what `WaveState.tensors` stored."""
    step, best, waited, loss = tensors["numbers"].tolist()
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    smoothed = load_smoothed(on_device)
    return WaveState(
        on_device["image"],
        on_device["first"],
        on_device["second"],
        smoothed or None,
        int(step),
        best,
        int(waited),
        loss,
    )


@dataclass(frozen=True)
class UnitProblem:
    """What one wave of a work unit is optimised for.

    Attributes:
        observe: the frozen observer.
        class_K: the unit's classes, int64, on the device.
        label_N: int64, the class of every image of the wave.
        targets: one a layer.
        others: sums over the classes of all other units as last exchanged, one a layer.
        variance: reading of the global variance, as in the targets.
        pixel_scale: the images' standard deviation, which turns `learning_rate` into pixels.
        seed: of the crops, together with the step.
        name: for error messages.
    """

    observe: Observation
    class_K: torch.Tensor
    label_N: torch.Tensor
    targets: list[LayerTarget]
    others: list[ClassSums]
    variance: VarianceReading
    pixel_scale: float
    seed: int
    name: str


def synthetic_moments(
    observe: Observation, image_NCHW: torch.Tensor, label_N: torch.Tensor, class_K: torch.Tensor
) -> tuple[torch.Tensor, list[Moments]]:
    """Return the logits of a batch and its class moments, one pair [K, F] a layer. Gradients flow to the images."""
    logit_NK, layers = observe(image_NCHW)
    member_KN = (label_N[None, :] == class_K[:, None]).float()
    weight_KN = member_KN / member_KN.sum(1, keepdim=True)
    return logit_NK, [pool_by_class(mean_NF, var_NF, member_KN, weight_KN) for mean_NF, var_NF in layers]


def recovery_loss(config: RecoverConfig, problem: UnitProblem, image_NCHW: torch.Tensor, smoothing: SmoothedMoments) -> torch.Tensor:
    """The loss of one step on already augmented images; `smoothing` takes in their moments. A scalar."""
    logit_NK, batch = synthetic_moments(problem.observe, image_NCHW, problem.label_N, problem.class_K)
    synthetic = smoothing.update(batch)
    whole = global_alignment(synthetic, problem.others, problem.targets, problem.variance)
    n_own = len(problem.class_K)
    share = (n_own + problem.others[0].n_classes) / n_own
    alignment = config.global_weight * share * whole + config.class_weight * class_alignment(synthetic, problem.targets)
    return config.alignment_weight * alignment + config.cross_entropy_weight * F.cross_entropy(logit_NK, problem.label_N)


def recover_wave(
    config: RecoverConfig,
    problem: UnitProblem,
    state: WaveState,
    last_step: int,
    slot: CheckpointSlot | None = None,
    advance: Advance = silent,
) -> WaveState:
    """Optimise a wave's pixels up to (not including) step `last_step` and return its new state.

    Every step cuts another random resized crop of every image, computes the loss, takes one Adam step with a cosine rate and clips pixels to [0, 1].

    Raises:
        InputError: the loss became NaN or infinite; names the unit.
    """
    pixel = state.image.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([pixel], lr=config.learning_rate, betas=config.betas)
    if state.step:
        adam = {"step": torch.tensor(float(state.step)), "exp_avg": state.first, "exp_avg_sq": state.second}
        optimizer.load_state_dict({"state": {0: adam}, "param_groups": optimizer.state_dict()["param_groups"]})
    smoothing = SmoothedMoments(config.statistics_momentum, state.smoothed)
    n, size = len(pixel), pixel.shape[-1]
    best, waited = state.best, state.waited
    loss = torch.tensor(state.loss)
    step = state.step

    def current() -> WaveState:
        adam = optimizer.state[pixel]
        return WaveState(
            pixel.detach(),
            adam["exp_avg"],
            adam["exp_avg_sq"],
            smoothing.state,
            step,
            best,
            waited,
            float(loss.detach()),
        )

    while step < last_step and (config.stop_patience is None or waited < config.stop_patience):
        rng = generator(pixel.device, problem.seed, "recover-crops", step)
        box_N4 = draw_crop_boxes(n, (config.min_scale, 1.0), rng)
        flip_N = draw_flips(n, rng) & config.flip
        loss = recovery_loss(config, problem, crop(pixel, box_N4, flip_N, size), smoothing)
        (pixel.grad,) = torch.autograd.grad(loss, [pixel])
        set_rate(optimizer, config.learning_rate * problem.pixel_scale * cosine_with_warmup(step, config.steps, 0.0))
        optimizer.step()
        with torch.no_grad():
            pixel.clamp_(0, 1)
        step += 1
        if config.stop_patience is not None:
            waited = 0 if float(loss.detach()) < best else waited + 1
            best = min(best, float(loss.detach()))
        if slot is not None:
            slot.offer(lambda: current().tensors())
        advance(n)
    # also where nothing was left to do: what a former attempt saved last may be what it then refused
    if step and not bool(loss.isfinite() & pixel.isfinite().all()):
        raise InputError(
            f"recovery of {problem.name} ended in NaN or infinity: lower recover.learning_rate ({config.learning_rate}) or recover.alignment_weight."
        )
    return current() if step > state.step else state


def round_pixels(image_NCHW: torch.Tensor) -> torch.Tensor:
    """Round [0, 1] to the uint8 that is stored, labelled, and shown to students. The only place where pixels are rounded."""
    return (image_NCHW.clamp(0, 1) * 255).round().to(torch.uint8)
