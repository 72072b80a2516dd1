"""Which layers of a network are watched, and what they were given.

Shapes: N images, C channels, H height, W width, F features.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from ray_ltdd.errors import InputError

MonitorKind = Literal["batch_norm", "normalization", "convolution", "all"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NORMALIZATIONS = (*_BATCH_NORMS, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
_CONVOLUTIONS = (nn.Conv2d,)
LAYER_TYPES: dict[MonitorKind, tuple[type[nn.Module], ...]] = {
    "batch_norm": _BATCH_NORMS,
    "normalization": _NORMALIZATIONS,
    "convolution": _CONVOLUTIONS,
    "all": (*_NORMALIZATIONS, *_CONVOLUTIONS),
}


def monitored_layers(model: nn.Module, kind: MonitorKind) -> dict[str, nn.Module]:
    """Return the layers of one kind by their dotted name in `model`, in the order in which a forward pass meets them.

    Every network of this package registers its layers in that order. An expert's names start with "encoder.".

    Args:
        model: an encoder, or an expert or student around one.
        kind: "batch_norm"; "normalization" (batch, instance or group norm); "convolution"; or "all", which is both of
            the latter. The first convolution's input is the normalised image itself.

    Raises:
        InputError: the model has no such layer. The message lists the layers it has and the kinds that would work.
    """
    if kind not in LAYER_TYPES:
        raise InputError(f"'{kind}' is not a kind of layer to monitor: choose one of {', '.join(LAYER_TYPES)}.")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LAYER_TYPES[kind])}
    if not layers:
        raise InputError(_refusal(model, kind))
    return layers


def _refusal(model: nn.Module, kind: MonitorKind) -> str:
    modules = list(model.modules())
    counts = Counter(type(module).__name__ for module in modules if not list(module.children()))
    listing = ", ".join(f"{count} {name}" for name, count in counts.items())
    possible = [f"'{other}'" for other, types in LAYER_TYPES.items() if any(isinstance(m, types) for m in modules)]
    remedies = [f"monitor {' or '.join(possible)}"] if possible else []
    if kind == "batch_norm":
        remedies.append("set the observer's normalization to 'batch'")
    elif kind == "normalization":
        remedies.append("set the observer's normalization to 'batch', 'instance' or 'group'")
    else:
        remedies.append("use a network with convolutions")
    name = getattr(model, "label", type(model).__name__)
    return f"{name} has no {kind} layer to monitor (its layers: {listing}): {', or '.join(remedies)}."


@contextmanager
def capture_inputs(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Record what each of `layers` is given in the latest forward pass through `model`, while the context lasts.

    Yields a dict that a forward pass fills: layer name -> input tensor [N, C, H, W], in forward order, with its
    gradient graph, in the dtype the layer saw. An input [N, F] is reshaped to [N, F, 1, 1]. The hooks are removed on
    exit; the tensors stay until the dict is dropped. With `torch.compile`, compile a function that runs the model and
    returns the dict's values, and call it first inside the context: hooks added to what is compiled are not seen.

    Raises:
        ValueError: a layer does not belong to `model`, so that its input would never be recorded.
    """
    own = set(model.modules())
    foreign = [name for name, layer in layers.items() if layer not in own]
    if foreign:
        raise ValueError(f"layers {', '.join(foreign)} are not part of the {type(model).__name__} to capture from")
    input_by_layer: dict[str, torch.Tensor] = {}
    handles = [layer.register_forward_pre_hook(_recorder(name, input_by_layer)) for name, layer in layers.items()]
    try:
        yield input_by_layer
    finally:
        for handle in handles:
            handle.remove()


def _recorder(name: str, input_by_layer: dict[str, torch.Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        value: torch.Tensor = args[0]
        input_by_layer[name] = value[:, :, None, None] if value.ndim == 2 else value

    return record
