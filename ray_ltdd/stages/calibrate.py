"""Stage 2: fair statistics (Eq. 8-9). One pass over the long-tailed set, class moments of every monitored layer of the frozen observer.

Legend: N images, B batch, K classes of the work unit, A all classes, F channels, L layers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from ray_ltdd.artifacts import Payload
from ray_ltdd.compute import Backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.errors import InputError
from ray_ltdd.models.monitor import LAYER_TYPES, MonitorKind, monitored_layers
from ray_ltdd.seeding import generator
from ray_ltdd.settings import Settings
from ray_ltdd.stages.progress import Advance, silent
from ray_ltdd.statistics.alignment import LayerTarget, Moments
from ray_ltdd.statistics.moments import ClassMoments
from ray_ltdd.statistics.observe import Observation
from ray_ltdd.statistics.schedules import MomentumConfig
from ray_ltdd.statistics.targets import ClassTensors, ClassWeights, VarianceReading

VERSION = 1


class CalibrateConfig(Settings):
    """Class moments and the global target made of them."""

    layers: Literal["auto", "batch_norm", "normalization", "convolution", "all"] = Field(
        "auto",
        description="whose inputs are monitored: batch-norm layers, any normalisation layers, convolutions, or all of these; "
        "auto: batch_norm where the observer has it, else all",
    )
    momentum: MomentumConfig = Field(default_factory=MomentumConfig, description="how much the newest batch weighs")
    class_weights: ClassWeights = Field(
        "uniform",
        description="classes' weights in the global target: uniform (Eq. 9), sample (biased by class size), effective_number",
    )
    beta: float = Field(0.999, ge=0, lt=1, description="of effective_number: 0 weighs as sample, towards 1 as uniform")
    variance: VarianceReading = Field(
        "mixture",
        description="global variance: mean_of_classes (literally Eq. 9) or of the class-balanced mixture (adds the variance of class means)",
    )
    batch_size: int = Field(256, ge=1, description="images per forward pass; with the cumulative schedule it does not change the outcome")

    def target(self) -> dict[str, Any]:
        """The settings that decide how class moments are combined, as plain data, with the default of whatever `class_weights` does not use."""
        used = self if self.class_weights == "effective_number" else self.with_defaults({"beta"})
        return used.model_dump(mode="json", include={"class_weights", "beta", "variance"})


class MomentsConfig(Settings):
    """The part of `CalibrateConfig` that class moments depend on; the rest only combines them."""

    layers: MonitorKind
    momentum: MomentumConfig
    batch_size: int


def resolve_layers(config: CalibrateConfig, observer: torch.nn.Module) -> MonitorKind:
    """Return the kind of layers to monitor, `auto` resolved by what the observer has."""
    if config.layers != "auto":
        return config.layers
    has_batch_norm = any(isinstance(module, LAYER_TYPES["batch_norm"]) for module in observer.modules())
    return "batch_norm" if has_batch_norm else "all"


def check_layers(config: CalibrateConfig, weighted: Iterable[str], observer: torch.nn.Module) -> None:
    """Refuse, before anything is trained, an observer that cannot be monitored and weights of layers it has not.

    Args:
        config: which layers.
        weighted: names of layers that are given weights.
        observer: its structure; weights do not matter.

    Raises:
        InputError: as said.
    """
    layers = list(monitored_layers(observer, resolve_layers(config, observer)))
    for name in weighted:
        if name not in layers:
            raise InputError(f"recover.layer_weights: the observer has no monitored layer '{name}': choose among {', '.join(layers)}.")


@torch.no_grad()
def class_moments(
    config: MomentsConfig,
    observe: Observation,
    bank: ImageBank,
    classes: Sequence[int],
    backend: Backend,
    seed: int,
    advance: Advance = silent,
) -> Payload:
    """Return the moments of some classes: tensors `LAYER/mean` and `LAYER/var`, float64 [K, F], and `count`, int64 [K].

    A class is updated in batches of its own images, in an order drawn from (seed, class), so its outcome depends on no other class
    (up to the rounding of float64); short batches of several classes share a pass, whose free rows are placeholders that count for nothing.

    Args:
        config: schedule and batch size.
        observe: the frozen observer with its layers watched.
        bank: the long-tailed training images.
        classes: of this unit.
        backend: device.
        seed: of the orders.
        advance: told the images done.
    """
    moments: list[ClassMoments] = []
    for position_B, row_B in class_batches(bank.label_N.cpu(), classes, config.batch_size, seed):
        _, layers = observe(bank.take(position_B))
        n_images, row_B = int((row_B >= 0).sum()), row_B.to(backend.device)
        if not moments:
            moments = [ClassMoments(len(classes), mean_BF.shape[1], config.momentum, backend.device) for mean_BF, _ in layers]
        for layer, (mean_BF, var_BF) in zip(moments, layers, strict=True):
            layer.update(mean_BF, var_BF, row_B)
        advance(n_images)
    tensors = {"count": moments[0].count_K}
    for name, layer in zip(observe.layers, moments, strict=True):
        tensors[f"{name}/mean"], tensors[f"{name}/var"], _ = layer.compute()
    return Payload(tensors, {"layers": observe.layers, "classes": list(classes)})


def class_batches(label_N: torch.Tensor, classes: Sequence[int], batch_size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield forward passes of exactly `batch_size` rows: positions of images, and the row in `classes` of each (-1: a placeholder).

    Each class is cut into batches of `batch_size` that are never split over passes; a pass takes consecutive ones while they fit.
    """
    pieces: list[tuple[torch.Tensor, int]] = []
    for row, label in enumerate(classes):
        position_N = (label_N == label).nonzero()[:, 0]
        order = torch.randperm(len(position_N), generator=generator("cpu", seed, "calibrate", label))
        for piece in position_N[order].split(batch_size):
            if sum(len(held) for held, _ in pieces) + len(piece) > batch_size:
                yield _padded_pass(pieces, batch_size)
                pieces = []
            pieces.append((piece, row))
    if pieces:
        yield _padded_pass(pieces, batch_size)


def _padded_pass(pieces: list[tuple[torch.Tensor, int]], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    position = torch.cat([piece for piece, _ in pieces])
    row = torch.cat([torch.full((len(piece),), row) for piece, row in pieces])
    n_free = batch_size - len(position)
    return torch.cat([position, position[-1:].expand(n_free)]), torch.cat([row, torch.full((n_free,), -1)])


def alignment_targets(
    moments: ClassTensors, target: ClassTensors, layers: Sequence[str], weight_L: Sequence[float], device: torch.device
) -> list[LayerTarget]:
    """Make the targets of a work unit, one a layer, in float32.

    Args:
        moments: of the unit's classes, float64 [K, F].
        target: the global one, float64 [F].
        layers: names in forward order.
        weight_L: weights of the layers.
        device: of the targets.
    """

    def pair(tensors: ClassTensors, name: str) -> Moments:
        return tensors[f"{name}/mean"].float().to(device), tensors[f"{name}/var"].float().to(device)

    return [LayerTarget(pair(moments, name), pair(target, name), weight) for name, weight in zip(layers, weight_L, strict=True)]
