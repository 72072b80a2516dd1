"""Stage 1: train an expert (observer or teacher) on the long-tailed set without its bias (Eq. 5-7).

    L = robust_weight * L_robust + debias_weight * (alpha * CE_weighted(debiased head) + (1 - alpha) * CE(plain head))
        + imitation_weight * |logits - logits of the expert it is taught by|^2, for a teacher that is taught by the observer

on two mixed views of two batches, one drawn uniformly over images, one by a class-weighted sampler: view 1 their mixup, view 2 their CutMix.

Legend: N images, B batch of each stream, K classes, S steps of an epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
import torch
from pydantic import Field

from ray_ltdd.artifacts import CheckpointSlot, Payload
from ray_ltdd.compute import Backend, forward_flops
from ray_ltdd.data.augment import crop, cutmix_masks, draw_crop_boxes, draw_flips, draw_shift_boxes, mixup
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.models.expert import Expert
from ray_ltdd.seeding import derive_seed, generator, seed_dropout
from ray_ltdd.settings import Settings
from ray_ltdd.stages.colours import Hue, Saturation, draw_colours, recoloured, unchanged_colours
from ray_ltdd.stages.epoch_rows import EpochRows
from ray_ltdd.stages.expert_losses import debiased_share, imitation_loss, inverse_frequency_weights, mixed_cross_entropy, robust_loss
from ray_ltdd.stages.optimize import (
    LinearStep,
    Optimizers,
    cosine_with_warmup,
    load_training_state,
    make_optimizer,
    set_rate,
    training_state,
    training_step,
    unused_linear_step,
)
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.ranks import SOLO, Ranks
from ray_ltdd.stages.replay import Replayed
from ray_ltdd.stages.scoring import Logits, predict

VERSION = 1


class ExpertTraining(Settings):
    """How an expert is trained. Under `experts` for all; `observer.training` and `teacher.training` override single values."""

    epochs: int = Field(200, ge=1, description="passes over the long-tailed set (by the uniform stream)")
    batch_size: int = Field(
        64,
        ge=2,
        description="images per stream and step; two streams make two mixed views of this size. A ConvNet that another network "
        "teaches learns far more from 16 than from 64 in a few epochs",
    )
    optimizer: Optimizers = Field(
        "sgd", description="SGD with momentum, AdamW, or Muon (orthogonal steps of convolutions' weights, see linear_step; AdamW for the rest)"
    )
    learning_rate: float = Field(0.05, gt=0, description="peak learning rate; about 0.002 with AdamW and Muon")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD and of Muon, which 0.95 served; AdamW ignores it")
    nesterov: bool = Field(True, description="Nesterov's form of the momentum")
    linear_step: LinearStep = 0.0
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty of SGD, decoupled for AdamW and Muon")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="share of all steps in which the rate rises linearly; a cosine to zero follows")
    debias: bool = Field(
        True,
        description="false: plain cross-entropy on the same mixed views, uniform sampling, no robust term (Table 8's ablation)",
    )
    robust_weight: float = Field(0.2, ge=0, description="weight of L_robust (Eq. 5)")
    debias_weight: float = Field(1.0, ge=0, description="weight of L_debias (Eq. 6)")
    class_weight_exponent: float = Field(0.35, ge=0, le=3, description="q: classes weigh n_c^-q in the weighted cross-entropy")
    logit_adjustment: float = Field(0.0, ge=0, le=3, description="tau: both cross-entropies see logits plus tau times the log class prior")
    sampler_exponent: float = Field(1.0, ge=0, le=2, description="the second stream draws an image of class c with weight n_c^-this; 0 is uniform")
    imitation_weight: float = Field(
        0.1,
        ge=0,
        description="weight of the squared error to the logits of the expert it is taught by, on the same mixed views; for `taught_by` only",
    )
    mixup_alpha: float = Field(
        0.5,
        gt=0,
        description="both parameters of the Beta distribution that lambda is drawn from, one lambda for both views",
    )
    crop_padding: int = Field(4, ge=0, description="random shifts of at most this many pixels, where min_scale is 1")
    min_scale: float = Field(1.0, gt=0, le=1, description="smallest area of random resized crops, which replace the shifts; 1: shifts")
    flip: bool = Field(True, description="mirror half of the images; false where left and right differ, as in digits")
    hue: Hue = 0.0
    saturation: Saturation = 0.0
    ema_decay: float | None = Field(None, gt=0, lt=1, description="exponential moving average of weights per step; empty: none")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the gradient; empty: not clipped")
    accuracy_floor: float = Field(
        1.5,
        ge=0,
        description="stop the run when the mean per-class accuracy on training images is below this multiple of chance, or more than half of the "
        "classes are at or below chance; 0 never stops",
    )

    def unused(self) -> set[str]:
        """Names of settings that an expert trained by these does not depend on, or that change nothing as they are and came later than others.

        They go unnamed in what identifies an expert, so that those trained before there was a choice are still found.
        """
        idle = {"accuracy_floor"} | unchanged_colours(self) | ({"min_scale"} if self.min_scale == 1 else {"crop_padding"})
        idle |= unused_linear_step(self.optimizer, self.linear_step)
        return idle | {"sgd": {"optimizer"}, "adamw": {"momentum", "nesterov"}, "muon": set()}[self.optimizer]


@dataclass
class EpochDraws(EpochRows):
    """Which images one epoch mixes, and how, on the device: rows of S steps."""

    uniform_SB: torch.Tensor
    weighted_SB: torch.Tensor
    lambda_SB: torch.Tensor


@dataclass
class EpochShapes(EpochRows):
    """How one epoch's images are flipped, cut and coloured, and where CutMix's boxes lie, on the device: rows of S steps."""

    flip_SN: torch.Tensor
    box_SN4: torch.Tensor
    colour_SNCC: torch.Tensor
    centre_S2B: torch.Tensor


def train_expert(
    config: ExpertTraining,
    expert: Expert,
    bank: ImageBank,
    count_K: torch.Tensor,
    backend: Backend,
    seed: int,
    slot: CheckpointSlot,
    advance: Advance = silent,
    ranks: Ranks = SOLO,
    guide: Logits | None = None,
) -> Payload:
    """Train `expert` in place and return its weights.

    Interrupted training continues from the slot and ends with the same bytes: all random draws derive from (seed, epoch), and the slot holds
    weights, buffers, optimiser state and average.

    Several processes (`ranks`) call this with the same arguments and return the same weights. Each takes its share of every batch; without batch
    normalisation the outcome is a single process's up to rounding, with it each process normalises by its own share and the first one's statistics
    are kept.

    Args:
        config: the recipe.
        expert: freshly initialised, on the device.
        bank: the long-tailed training images.
        count_K: images of each class in `bank`, int64.
        backend: device, precision, compilation.
        seed: of all draws.
        slot: where resumable state goes, at ends of epochs; read by all processes, written by the first.
        advance: told the images done, those of all processes; called by the first.
        ranks: this process among those that train the expert.
        guide: the logits that are imitated, as a function of images; None: none are.

    Raises:
        InputError: the loss became NaN or infinite, or the expert is near chance on its own training images, or `ranks` cannot share a batch
            equally; in all processes.
    """
    ranks.require_equal_shares(min(config.batch_size, len(bank)))
    backend = backend.suited_to(expert)
    n_steps = max(len(bank) // config.batch_size, 1)
    n_all = config.epochs * n_steps
    optimizer = make_optimizer(
        config.optimizer, expert, config.learning_rate, config.weight_decay, config.momentum, config.nesterov, config.linear_step
    )
    average = ExponentialAverage(expert, config.ema_decay) if config.ema_decay else None
    weight_K = inverse_frequency_weights(count_K, config.class_weight_exponent).to(backend.device)
    adjustment_K = (config.logit_adjustment * (count_K.double() / count_K.sum()).log()).float().to(backend.device)
    flops = 3 * 2 * config.batch_size * n_all * forward_flops(expert, bank.channels, bank.image_size) / ranks.count
    loss_of = shared_loss(expert, backend.compile(expert_loss(config, expert, weight_K, adjustment_K, backend), flops), ranks)
    train_step = training_step(loss_of_draws(config, bank, loss_of, guide, ranks), expert, optimizer, average, config.gradient_clip)
    if ranks.count == 1 and bank.is_resident:
        # several processes exchange gradients in the middle of it; images that are not on the device come from the host
        train_step = Replayed(train_step)
    first_epoch = load_training_state(slot, expert, optimizer, average)
    # also keeps the first process from writing the slot while another has not read it
    ranks.barrier(backend.device, first_epoch)
    advance = advance if ranks.is_first else silent
    advance(first_epoch * n_steps * 2 * config.batch_size)
    expert.train()
    for epoch in range(first_epoch, config.epochs):
        draws = draw_epoch(config, bank.label_N, count_K, n_steps, seed, epoch)
        shapes = draw_epoch_shapes(config, n_steps, draws.lambda_SB.shape[1], bank.image_size, generator(backend.device, seed, "expert-views", epoch))
        row_S = torch.arange(n_steps, device=backend.device)
        loss = torch.zeros((), device=backend.device)
        for step in range(n_steps):
            t = epoch * n_steps + step
            seed_dropout(expert, ranks.seed(seed), t)
            alpha = torch.full((), debiased_share(t, n_all), device=backend.device)
            set_rate(optimizer, config.learning_rate * cosine_with_warmup(t, n_all, config.warmup_share))
            loss = train_step(row_S[step : step + 1], alpha, *draws.tensors(), *shapes.tensors())
            advance(2 * config.batch_size)
        # the loss is of the weights before the last step
        weights_finite = torch.stack([weight.isfinite().all() for weight in expert.parameters()]).all()
        if not ranks.all_true(loss.isfinite() & weights_finite):
            raise InputError(
                f"the expert's loss became NaN or infinite in epoch {epoch + 1} of {config.epochs}: "
                f"lower experts.learning_rate (now {config.learning_rate}) or set experts.gradient_clip."
            )
        if ranks.is_first:
            slot.offer(partial(training_state, epoch + 1, expert, optimizer, average))
    trained = average.averaged if average is not None else expert
    ranks.copy_buffers(trained)
    trained.eval()
    class_accuracy_K = training_accuracy(trained, bank, len(count_K), backend)
    check_above_chance(class_accuracy_K, config.accuracy_floor)
    return Payload(trained.state_dict(), {"training_accuracy_K": class_accuracy_K.tolist(), "n_steps": n_all})


def draw_epoch(config: ExpertTraining, label_N: torch.Tensor, count_K: torch.Tensor, n_steps: int, seed: int, epoch: int) -> EpochDraws:
    """Draw one epoch's two streams and lambdas.

    The first stream is a permutation of all images (its remainder of less than a batch is dropped; another one each epoch), the second is drawn with
    replacement, an image of class c with weight n_c^-sampler_exponent.
    """
    rng = generator(label_N.device, seed, "expert-order", epoch)
    size = (n_steps, min(config.batch_size, len(label_N)))
    uniform = torch.randperm(len(label_N), generator=rng, device=label_N.device)[: size[0] * size[1]].view(size)
    exponent = config.sampler_exponent if config.debias else 0.0
    weight_N = (count_K.double() ** -exponent).to(label_N.device)[label_N]
    weighted = torch.multinomial(weight_N, size[0] * size[1], replacement=True, generator=rng).view(size)
    beta = np.random.default_rng(derive_seed(seed, "expert-lambda", epoch)).beta(config.mixup_alpha, config.mixup_alpha, size)
    return EpochDraws(uniform, weighted, torch.as_tensor(beta, dtype=torch.float32, device=label_N.device))


def draw_epoch_shapes(config: ExpertTraining, n_steps: int, n_pairs: int, size: int, rng: torch.Generator) -> EpochShapes:
    """Draw the flips, boxes and CutMix centres of `n_steps` steps, one step after the other, then their colours."""
    n = 2 * n_pairs

    def draw() -> tuple[torch.Tensor, ...]:
        flip_N = draw_flips(n, rng) if config.flip else torch.zeros(n, dtype=torch.bool, device=rng.device)
        box_N4 = draw_shift_boxes(n, config.crop_padding, size, rng) if config.min_scale == 1 else draw_crop_boxes(n, (config.min_scale, 1.0), rng)
        return flip_N, box_N4, torch.rand(2, n_pairs, generator=rng, device=rng.device)

    flip_SN, box_SN4, centre_S2B = (torch.stack(drawn) for drawn in zip(*(draw() for _ in range(n_steps)), strict=True))
    return EpochShapes(flip_SN, box_SN4, draw_colours(config, (n_steps, n), rng), centre_S2B)


def make_views(
    config: ExpertTraining, bank: ImageBank, draws: EpochDraws, shapes: EpochShapes, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Build one step's two mixed views, or the share of them that is this rank's: draws are for the whole batch, images are cut for the share.

    Args:
        config: the recipe.
        bank: the images.
        draws, shapes: of a single step, S = 1. Nothing is drawn here, and nothing goes to or from the device.
        ranks: this process among those that train together.

    Returns:
        view_NCHW: float32, N = 2B; the first B are mixup, the others CutMix of the same pairs.
        first_N, second_N: int64 labels of the uniform and of the weighted stream.
        lambda_N: float32 weight of the first label; for CutMix corrected for the clipped box.
    """
    lambda_B, size = draws.lambda_SB[0], bank.image_size
    partner_B1HW, cutmix_lambda_B = cutmix_masks(lambda_B, shapes.centre_S2B[0], size)
    position_N = ranks.pairs(torch.cat([draws.uniform_SB[0], draws.weighted_SB[0]]))
    image_NCHW = crop(bank.take(position_N), ranks.pairs(shapes.box_SN4[0]), ranks.pairs(shapes.flip_SN[0]), size)
    image_NCHW = recoloured(image_NCHW, ranks.pairs(shapes.colour_SNCC[0]))
    first_BCHW, second_BCHW = image_NCHW.chunk(2)
    rows = ranks.rows(len(lambda_B))
    lambda_B, partner_B1HW, cutmix_lambda_B = lambda_B[rows], partner_B1HW[rows], cutmix_lambda_B[rows]
    view_NCHW = torch.cat([mixup(first_BCHW, second_BCHW, lambda_B), torch.where(partner_B1HW, second_BCHW, first_BCHW)])
    first_B, second_B = bank.label_N[position_N].chunk(2)
    return view_NCHW, first_B.repeat(2), second_B.repeat(2), torch.cat([lambda_B, cutmix_lambda_B])


def loss_of_draws(
    config: ExpertTraining, bank: ImageBank, loss_of: Callable[..., torch.Tensor], guide: Logits | None, ranks: Ranks
) -> Callable[..., torch.Tensor]:
    """Return the loss as a function of (step number, alpha, an epoch's draws): pixels are cut and the guide is asked where the loss is computed."""

    def loss(row_1: torch.Tensor, alpha: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        n = len(fields(EpochDraws))
        draws, shapes = EpochDraws(*drawn[:n]).row(row_1), EpochShapes(*drawn[n:]).row(row_1)
        views = make_views(config, bank, draws, shapes, ranks)
        return loss_of(*views, alpha, *(() if guide is None else (guide(views[0]),)))

    return loss


def expert_loss(
    config: ExpertTraining, expert: Expert, weight_K: torch.Tensor, adjustment_K: torch.Tensor, backend: Backend
) -> Callable[..., torch.Tensor]:
    """Return the loss of Eq. 7 as a function of (view_NCHW, first_N, second_N, lambda_N, alpha) that can be compiled.

    Without debiasing it is the plain cross-entropy of the head that is used afterwards. A sixth argument, guide_logit_NK, is imitated besides.
    """

    def imitation(logit_NK: torch.Tensor, guide_logit_NK: torch.Tensor | None) -> torch.Tensor | float:
        return 0.0 if guide_logit_NK is None else config.imitation_weight * imitation_loss(logit_NK, guide_logit_NK)

    def debiased(
        view_NCHW: torch.Tensor,
        first_N: torch.Tensor,
        second_N: torch.Tensor,
        lambda_N: torch.Tensor,
        alpha: torch.Tensor,
        guide_logit_NK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with backend.autocast():
            output = expert.heads(view_NCHW)
        p_1, p_2 = output.prediction_NP.float().chunk(2)
        z_1, z_2 = output.projection_NP.float().chunk(2)
        weighted = mixed_cross_entropy(output.debiased_logit_NK + adjustment_K, first_N, second_N, lambda_N, weight_K)
        plain = mixed_cross_entropy(output.plain_logit_NK + adjustment_K, first_N, second_N, lambda_N)
        debias = alpha * weighted + (1 - alpha) * plain
        eq_7 = config.robust_weight * robust_loss(p_1, z_1, p_2, z_2) + config.debias_weight * debias
        return eq_7 + imitation(output.debiased_logit_NK, guide_logit_NK)

    def plain(
        view_NCHW: torch.Tensor,
        first_N: torch.Tensor,
        second_N: torch.Tensor,
        lambda_N: torch.Tensor,
        _: torch.Tensor,
        guide_logit_NK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        with backend.autocast():
            logit_NK = expert(view_NCHW)
        return mixed_cross_entropy(logit_NK + adjustment_K, first_N, second_N, lambda_N) + imitation(logit_NK, guide_logit_NK)

    return debiased if config.debias else plain


class LossModule(torch.nn.Module):
    """An expert with its loss as forward pass, the form in which gradients can be averaged over processes."""

    def __init__(self, expert: Expert, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.expert = expert
        self.loss = loss

    def forward(self, *views: torch.Tensor) -> torch.Tensor:
        """Return the loss of this process's share."""
        return self.loss(*views)


def shared_loss(expert: Expert, loss: Callable[..., torch.Tensor], ranks: Ranks) -> Callable[..., torch.Tensor]:
    """Return `loss` as it is for a single process, else such that its backward pass averages `expert`'s gradients over all.

    A compiled loss stands inside the wrapper: torch then splits its graph where gradients are exchanged, and leaves the wrapper's own steps alone.
    """
    return loss if ranks.count == 1 else ranks.wrap(LossModule(expert, loss))


def training_accuracy(expert: torch.nn.Module, bank: ImageBank, n_classes: int, backend: Backend, most_per_class: int = 100) -> torch.Tensor:
    """Accuracy of each class on up to `most_per_class` of its training images, float64 [K] in [0, 1]; NaN for a class without images."""
    label_N = bank.label_N.cpu()
    position = torch.cat([(label_N == k).nonzero()[:most_per_class, 0] for k in range(n_classes)])
    hit = predict(expert, bank, backend, position).argmax(1).cpu() == label_N[position]
    member_KN = label_N[position][None, :] == torch.arange(n_classes)[:, None]
    return (member_KN & hit).sum(1).double() / member_KN.sum(1)


def check_above_chance(class_accuracy_K: torch.Tensor, floor: float, recipe: str = "experts") -> None:
    """Refuse an expert that has learnt next to nothing of its own training images; a floor of 0 accepts every one.

    Args:
        class_accuracy_K: accuracy of each class on them, in [0, 1]; NaN for a class without images.
        floor: least mean over the classes, as a multiple of chance.
        recipe: the section of the settings it was trained by.

    Raises:
        InputError: the mean is below the floor, or more than half of the classes are at or below chance. Everything later would only spread its
            ignorance.
    """
    mean, chance = float(class_accuracy_K.nanmean()), 1 / len(class_accuracy_K)
    n_weak, n_classes = int((class_accuracy_K <= chance).sum()), int((~class_accuracy_K.isnan()).sum())
    if floor == 0 or (mean >= floor * chance and 2 * n_weak <= n_classes):
        return
    raise InputError(
        f"the expert reaches {mean:.1%} mean per-class accuracy on its own training images, chance is {chance:.1%}, and {n_weak} of {n_classes} "
        f"classes are at or below it: it has learnt next to nothing. Raise {recipe}.epochs or mend {recipe}.learning_rate; experts.accuracy_floor "
        f"(now {floor} times chance) lowers this bar, and 0 removes it."
    )
