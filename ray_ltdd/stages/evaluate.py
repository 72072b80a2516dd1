"""Stage 5, second half: students trained from scratch on the distilled images and tested on the balanced test set (Eq. 10).

    L = hard_weight * CE(mixed one-hot labels) + soft_weight * |logits - teacher's logits|_2^2

The squared error is summed over classes, so its weight is the paper's. The last epoch counts.
Baselines see the same views for the same number of steps.

Legend: N images, B batch, K classes, S batches of an epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from ray_ltdd.artifacts import CheckpointSlot, Payload
from ray_ltdd.compute import Backend, forward_flops
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.seeding import generator, seed_dropout
from ray_ltdd.settings import Settings
from ray_ltdd.stages.optimize import (
    LinearStep,
    Optimizers,
    cosine_with_warmup,
    halved,
    load_training_state,
    make_optimizer,
    set_rate,
    training_state,
    training_step,
    unused_linear_step,
)
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.replay import Replayed
from ray_ltdd.stages.scoring import predict
from ray_ltdd.stages.views import EpochViews, ViewsConfig, draw_epoch_views, epoch_shape, make_batch, mix_labels

VERSION = 2


@dataclass(frozen=True)
class SoftLabels:
    """Where target logits come from.

    Attributes:
        of: (view_BCHW, index_B, partner_B, lambda_B, what was fetched or None) -> target logits, float32 [B, K]; whole-batch tensor code.
        fetch: looks up what a batch needs by its number since the start; None: nothing.
    """

    of: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    fetch: Callable[[int], torch.Tensor] | None = None

    def __call__(self, view_BCHW: torch.Tensor, index_B: torch.Tensor, partner_B: torch.Tensor, lambda_B: torch.Tensor, t: int) -> torch.Tensor:
        """Target logits of batch `t`, float32 [B, K]."""
        return self.of(view_BCHW, index_B, partner_B, lambda_B, self.fetch(t) if self.fetch else None)


class Recipe(Settings):
    """How a network is trained on views and soft labels."""

    who: ClassVar[str] = "a student"
    section: ClassVar[str] = "evaluate"
    """Who is trained, and where these settings stand: for error messages."""

    epochs: int = Field(1000, ge=1, description="passes over the distilled images; baselines train for the same number of steps")
    optimizer: Optimizers = Field(
        "adamw",
        description="AdamW, SGD with Nesterov momentum, or Muon (orthogonal steps of convolutions' weights, see linear_step; AdamW for the rest)",
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    halve_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="shares of the training after which the rate is halved; empty: it follows a cosine to zero"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD and of Muon, which 0.95 served; AdamW ignores it")
    linear_step: LinearStep = 0.0
    weight_decay: float = Field(0.01, ge=0, description="decoupled for AdamW and Muon, L2 for SGD")
    warmup_share: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises linearly; without halve_at")
    soft_weight: float = Field(1.0, ge=0, description="k2, weight of the squared error to the teacher's logits, summed over classes")
    hard_weight: float = Field(0.025, ge=0, description="k1, weight of the cross-entropy with one-hot labels")
    ema_decay: float | None = Field(0.99, gt=0, lt=1, description="moving average of weights and buffers, which is what is tested; empty: none")

    def outcome(self) -> dict[str, Any]:
        """The settings the network's weights depend on, as plain data."""
        idle = ({"momentum"} if self.optimizer == "adamw" else set()) | ({"warmup_share"} if self.halve_at else set())
        return self.with_defaults(idle).model_dump(mode="json", exclude=unused_linear_step(self.optimizer, self.linear_step))


class StudentConfig(Recipe):
    """How a student is trained: what it depends on beside its data, its labels, its views and its seed."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the student's network")


class EvaluateConfig(StudentConfig):
    """Students, baselines, and what they are tested on."""

    seeds: int = Field(3, ge=1, description="students of different seeds; the mean and deviation are over them")
    part: Literal["test", "validation", "balanced_train"] = Field(
        "test",
        description="what students are tested on. Searches use validation, never test. balanced_train: as many training images of every class as "
        "the smallest has, at most 100: says which settings let students follow their teacher without setting images aside or reading the test set. "
        "The teacher has seen these images, students at most some crops of them: compare such accuracies with one another only",
    )
    baselines: tuple[Literal["random", "whole"], ...] = Field(
        ("random", "whole"),
        description="also train students on as many random real images, on the whole long-tailed set (one-hot labels, same steps)",
    )

    def outcome(self) -> dict[str, Any]:
        """The settings a student's weights depend on, as plain data."""
        return self.student().outcome()

    def student(self) -> StudentConfig:
        """The part one student depends on."""
        return StudentConfig(**{name: getattr(self, name) for name in StudentConfig.model_fields})


@dataclass(frozen=True)
class TrainingPart:
    """Which part of a training is done: a student trained in parts ends with the bytes of one trained in one go.

    Attributes:
        start: what `TrainedStudent.state` gave after the part before; None: from the beginning.
        last_epoch: to end after; None: the last of all.
    """

    start: Mapping[str, torch.Tensor] | None = None
    last_epoch: int | None = None


WHOLE = TrainingPart()


@dataclass(frozen=True)
class TrainedStudent:
    """A student as far as it was trained.

    Attributes:
        tested: what is to be tested, its average or itself; in evaluation mode.
        state: gives all that a further part goes on from.
    """

    tested: torch.nn.Module
    state: Callable[[], dict[str, torch.Tensor]]


def train_student(
    config: Recipe,
    views_config: ViewsConfig,
    student: torch.nn.Module,
    bank: ImageBank,
    soft_labels: SoftLabels | None,
    n_steps: int,
    views_seed: int,
    n_view_epochs: int | None,
    backend: Backend,
    slot: CheckpointSlot,
    advance: Advance = silent,
    part: TrainingPart = WHOLE,
    draw_positions: Callable[[int], torch.Tensor] | None = None,
) -> TrainedStudent:
    """Train `student`, in one go or a part of the way.

    Args:
        config: the recipe.
        views_config: the views.
        student: freshly initialised, on the device.
        bank: its training images.
        soft_labels: where target logits come from; None trains on one-hot labels alone, with weight 1.
        n_steps: batches in all, of all parts.
        views_seed: of the views.
        n_view_epochs: the views repeat after so many epochs (stored labels); None: never.
        backend: device, precision, compilation.
        slot: resumable state.
        advance: told the images done, those of parts before left out.
        part: which part.
        draw_positions: gives, for an epoch, the N positions in the bank that its views show, int64 on the device; None: every image once.

    Raises:
        InputError: the loss or a weight became NaN or infinite.
    """
    optimizer = make_optimizer(
        config.optimizer, student, config.learning_rate, config.weight_decay, config.momentum, nesterov=True, linear_step=config.linear_step
    )
    average = ExponentialAverage(student, config.ema_decay) if config.ema_decay else None
    per_epoch, batch = epoch_shape(views_config, len(bank))
    flops = 3 * n_steps * batch * forward_flops(student, bank.channels, bank.image_size)
    loss_of = backend.compile(student_loss(config, student, soft_labels is not None, backend), flops)
    take_step = training_step(loss_of_views(views_config, bank, soft_labels, loss_of), student, optimizer, average)
    take_step = Replayed(take_step) if bank.is_resident else take_step
    row_S = torch.arange(per_epoch, device=backend.device)
    done = load_training_state(slot, student, optimizer, average, part.start)
    advance((done - n_before(part)) * batch)
    last_step = n_steps if part.last_epoch is None else part.last_epoch * per_epoch
    student.train()
    loss = torch.zeros(())
    views: EpochViews | None = None
    for t in range(done, last_step):
        epoch, step = divmod(t, per_epoch)
        if views is None or step == 0:
            drawn_epoch = epoch % n_view_epochs if n_view_epochs else epoch
            views = draw_epoch_views(views_config, len(bank), bank.image_size, views_seed, drawn_epoch, backend.device)
            if draw_positions is not None:
                views = replace(views, index_SB=draw_positions(epoch)[views.index_SB])
        seed_dropout(student, views_seed, t)
        factor = halved(t, n_steps, config.halve_at) if config.halve_at else cosine_with_warmup(t, n_steps, config.warmup_share)
        set_rate(optimizer, config.learning_rate * factor)
        fetched = () if soft_labels is None or soft_labels.fetch is None else (soft_labels.fetch(t),)
        loss = take_step(row_S[step : step + 1], *views.tensors(), *fetched)
        slot.offer(partial(training_state, t + 1, student, optimizer, average))
        advance(batch)
    # weights, too: where nothing was left to do, what a former attempt saved last may be what it then refused
    if not bool(loss.isfinite()) or not all(bool(weight.isfinite().all()) for weight in student.parameters()):
        raise InputError(f"{config.who}'s loss became NaN or infinite: lower {config.section}.learning_rate (now {config.learning_rate}).")
    tested = average.averaged if average is not None else student.eval()
    return TrainedStudent(tested, partial(training_state, last_step, student, optimizer, average))


def loss_of_views(
    config: ViewsConfig, bank: ImageBank, soft_labels: SoftLabels | None, loss_of: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    """Return the loss as a function of (step number, an epoch's draws, what its labels fetched): pixels are cut and labelled where it is computed."""

    def loss(row_1: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
        n = len(fields(EpochViews))
        views, fetched = EpochViews(*drawn[:n]).row(row_1), drawn[n] if len(drawn) > n else None
        view_BCHW, partner_B, lambda_B = make_batch(config, bank, views, 0)
        index_B = views.index_SB[0]
        label_B = bank.label_N[index_B]
        target_BK = None if soft_labels is None else soft_labels.of(view_BCHW, index_B, partner_B, lambda_B, fetched)
        return loss_of(view_BCHW, label_B, label_B[partner_B], lambda_B, target_BK)

    return loss


def n_before(part: TrainingPart) -> int:
    """Batches done before a part."""
    return 0 if part.start is None else int(part.start["n_done"])


def student_loss(config: Recipe, student: torch.nn.Module, soft: bool, backend: Backend) -> Callable[..., torch.Tensor]:
    """Return Eq. 10 as a function of (view_BCHW, label_B, partner_label_B, lambda_B, target_BK or None) that can be compiled."""
    hard_weight = config.hard_weight if soft else 1.0

    def loss(
        view_BCHW: torch.Tensor,
        label_B: torch.Tensor,
        partner_label_B: torch.Tensor,
        lambda_B: torch.Tensor,
        target_BK: torch.Tensor | None,
    ) -> torch.Tensor:
        with backend.autocast():
            logit_BK = student(view_BCHW)
        logit_BK = logit_BK.float()
        total = torch.zeros((), device=logit_BK.device)
        if hard_weight:
            own = F.cross_entropy(logit_BK, label_B, reduction="none")
            partner = F.cross_entropy(logit_BK, partner_label_B, reduction="none")
            total = total + hard_weight * (lambda_B * own + (1 - lambda_B) * partner).mean()
        if target_BK is not None:
            total = total + config.soft_weight * (logit_BK - target_BK).square().sum(1).mean()
        return total

    return loss


def labels_per_image(logit_NK: torch.Tensor) -> SoftLabels:
    """Soft labels `one`: the images' stored logits, mixed as the images are."""

    def look_up(
        view_BCHW: torch.Tensor, index_B: torch.Tensor, partner_B: torch.Tensor, lambda_B: torch.Tensor, fetched: torch.Tensor | None
    ) -> torch.Tensor:
        return mix_labels(logit_NK[index_B].float(), partner_B, lambda_B)

    return SoftLabels(look_up)


def labels_per_view(load_chunk: Callable[[int], torch.Tensor], chunks: Sequence[range], per_epoch: int, device: torch.device) -> SoftLabels:
    """Soft labels `stored`: the logits of every view of the stored epochs, gone through again and again, one chunk of them in memory at a time.

    Args:
        load_chunk: reads a chunk by its number, fp16 [E, S, B, K].
        chunks: the epochs of each chunk, in their order; all but the last have as many.
        per_epoch: S, batches of an epoch.
        device: where the labels are wanted; a chunk goes there as a whole.
    """
    per_chunk, n_stored = len(chunks[0]) * per_epoch, chunks[-1].stop * per_epoch
    held: dict[int, torch.Tensor] = {}

    def fetch(t: int) -> torch.Tensor:
        number, step = divmod(t % n_stored, per_chunk)
        if number not in held:
            # the last one goes before the next one comes
            held.clear()
            held[number] = load_chunk(number).flatten(0, 1).to(device)
        # a row of its own: whoever keeps it (a replayed step does) would keep the chunk
        return held[number][step].clone()

    def as_fetched(
        view_BCHW: torch.Tensor, index_B: torch.Tensor, partner_B: torch.Tensor, lambda_B: torch.Tensor, fetched: torch.Tensor | None
    ) -> torch.Tensor:
        assert fetched is not None
        return fetched.float()

    return SoftLabels(as_fetched, fetch)


def labels_online(teacher: Callable[[torch.Tensor], torch.Tensor]) -> SoftLabels:
    """Soft labels `online`: the teacher labels every view."""

    def ask(
        view_BCHW: torch.Tensor, index_B: torch.Tensor, partner_B: torch.Tensor, lambda_B: torch.Tensor, fetched: torch.Tensor | None
    ) -> torch.Tensor:
        return teacher(view_BCHW)

    return SoftLabels(ask)


def score(model: torch.nn.Module, bank: ImageBank, n_classes: int, groups: Sequence[str], backend: Backend) -> Payload:
    """Test `model` once on `bank`.

    Returns:
        tensor `prediction`, int16 [N]; record: `top1`, `top5` (None with fewer than 6 classes), `per_class` [K] and the mean over each
        group's classes, `many`, `medium`, `few`, all shares in [0, 1]. A class without test images is None.
    """
    logit_NK = predict(model, bank, backend).cpu()
    label_N = bank.label_N.cpu()
    hit_N = (logit_NK.argmax(1) == label_N).double()
    per_class = [float(hit_N[label_N == k].mean()) if bool((label_N == k).any()) else None for k in range(n_classes)]
    record: dict[str, object] = {"top1": float(hit_N.mean()), "top5": None, "per_class": per_class}
    if n_classes > 5:
        record["top5"] = float((logit_NK.topk(5, dim=1).indices == label_N[:, None]).any(1).double().mean())
    for group in ("many", "medium", "few"):
        of_group = [value for value, name in zip(per_class, groups, strict=True) if name == group and value is not None]
        record[group] = sum(of_group) / len(of_group) if of_group else None
    return Payload({"prediction": logit_NK.argmax(1).to(torch.int16)}, record)


def random_real_images(label_N: torch.Tensor, images_per_class: int, n_classes: int, seed: int) -> torch.Tensor:
    """Positions of `images_per_class` random images of every class, int64; all of a class, again and again, where it has fewer."""
    chosen = []
    for label in range(n_classes):
        position_N = (label_N == label).nonzero()[:, 0]
        order = position_N[torch.randperm(len(position_N), generator=generator("cpu", seed, "random-real", label))]
        chosen.append(order.repeat(-(-images_per_class // len(order)))[:images_per_class])
    return torch.cat(chosen)
