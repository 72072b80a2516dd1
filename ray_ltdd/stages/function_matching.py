"""Stage 1, another way: a teacher trained to be the observer's function, as students are trained to be the teacher's (function matching).

    L = soft_weight * |logits - observer's logits|_2^2 + hard_weight * CE(mixed one-hot labels)

on random resized crops, mixed by CutMix, of the whole long-tailed set: the views that students meet, labelled one by one, instead of the images whose
labels the observer knows by heart. An image of class c is drawn with weight n_c^-sampler_exponent, others in every epoch.

Legend: N images, K classes.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field

from ray_ltdd.artifacts import CheckpointSlot, Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.models.expert import Expert
from ray_ltdd.seeding import derive_seed, generator
from ray_ltdd.stages.evaluate import Recipe, labels_online, train_student
from ray_ltdd.stages.experts import check_above_chance, training_accuracy
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.stages.scoring import Logits
from ray_ltdd.stages.views import ViewsConfig, n_batches


class FunctionMatching(Recipe):
    """How a teacher is trained as a student of the observer."""

    who: ClassVar[str] = "a teacher"
    section: ClassVar[str] = "teacher.function_matching"

    epochs: int = Field(100, ge=1, description="epochs of as many draws as the long-tailed set has images")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    hard_weight: float = Field(0.0, ge=0, description="k1, weight of the cross-entropy with one-hot labels")
    sampler_exponent: float = Field(1.0, ge=0, le=2, description="an image of class c is drawn with weight n_c^-this; 0: every image once an epoch")
    views: ViewsConfig = Field(default_factory=lambda: ViewsConfig(batch_size=64), description="the views it learns from")

    def outcome(self) -> dict[str, Any]:
        """The settings the teacher's weights depend on, as plain data."""
        return super().outcome() | {"views": self.views.outcome()}


def match_function(
    config: FunctionMatching,
    expert: Expert,
    guide: Logits,
    bank: ImageBank,
    count_K: torch.Tensor,
    backend: Backend,
    seed: int,
    slot: CheckpointSlot,
    advance: Advance = silent,
    accuracy_floor: float = 0.0,
) -> Payload:
    """Train `expert` in place and return its weights; of its heads, the debiased one. Interrupted training ends with the same bytes.

    Args:
        config: the recipe.
        expert: freshly initialised, on the device.
        guide: the observer's logits, as a function of images.
        bank: the long-tailed training images.
        count_K: images of each class in `bank`, int64.
        backend: device, precision, compilation.
        seed: of all draws.
        slot: resumable state.
        advance: told the images done.
        accuracy_floor: see `ExpertTraining`.

    Raises:
        InputError: the loss became NaN or infinite, or the expert is near chance on its own training images.
    """
    backend = backend.suited_to(expert)
    n_steps = config.epochs * n_batches(config.views, len(bank))
    draw = partial(draw_positions, bank.label_N, count_K, config.sampler_exponent, seed) if config.sampler_exponent else None
    views_seed, labels = derive_seed(seed, "matching-views"), labels_online(guide)
    trained = train_student(config, config.views, expert, bank, labels, n_steps, views_seed, None, backend, slot, advance, draw_positions=draw)
    class_accuracy_K = training_accuracy(trained.tested, bank, len(count_K), backend)
    check_above_chance(class_accuracy_K, accuracy_floor, config.section)
    return Payload(trained.tested.state_dict(), {"training_accuracy_K": class_accuracy_K.tolist(), "n_steps": n_steps})


def draw_positions(label_N: torch.Tensor, count_K: torch.Tensor, exponent: float, seed: int, epoch: int) -> torch.Tensor:
    """Draw one epoch's images with replacement, one of class c with weight n_c^-exponent; int64 [N] on the labels' device."""
    weight_N = (count_K.double() ** -exponent)[label_N.cpu()]
    rng = generator("cpu", seed, "matching-positions", epoch)
    return torch.multinomial(weight_N, len(label_N), replacement=True, generator=rng).to(label_N.device)
