"""The observer as a function from images to logits and every monitored layer's per-image moments: what calibration and recovery both need.

Legend: N images, K classes, F channels, L layers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ray_ltdd.compute import Backend
from ray_ltdd.models.monitor import MonitorKind, capture_inputs, monitored_layers
from ray_ltdd.statistics.alignment import Moments
from ray_ltdd.statistics.moments import image_moments


@contextmanager
def observing(observer: torch.nn.Module, kind: MonitorKind, backend: Backend, flops: float = 0.0) -> Iterator["Observation"]:
    """Watch the layers of `kind` in the frozen `observer` while the context lasts.

    Args:
        observer: in evaluation mode.
        kind: of `monitored_layers`.
        backend: device, precision; compiles where `flops` earn it back.
        flops: floating-point operations expected in all.

    Raises:
        InputError: the observer has no such layer.
    """
    layers = monitored_layers(observer, kind)
    with capture_inputs(observer, layers) as captured:

        def observe(image_NCHW: torch.Tensor) -> tuple[torch.Tensor, list[Moments]]:
            with backend.autocast():
                logit_NK = observer(image_NCHW)
            seen = list(captured.values())
            # maps of hundreds of images are gigabytes; and torch.compile, which compiles anew where a dict has changed, finds it empty at every call
            captured.clear()
            return logit_NK.float(), [image_moments(x_NFHW) for x_NFHW in seen]

        yield Observation(list(layers), backend.compile(observe, flops))


@dataclass(frozen=True)
class Observation:
    """Call it with float images in [0, 1] to get (logit_NK, [(mean_NF, var_NF) of every layer]), float32, with gradients where enabled.

    Attributes:
        layers: the names of the monitored layers in forward order.
    """

    layers: list[str]
    function: Callable[[torch.Tensor], tuple[torch.Tensor, list[Moments]]]

    def __call__(self, image_NCHW: torch.Tensor) -> tuple[torch.Tensor, list[Moments]]:
        """Observe images [N, C, H, W]."""
        return self.function(image_NCHW)
