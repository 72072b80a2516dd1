"""What training experts and students has in common: the optimiser, the rate's schedule, and the state that makes an interrupted training continue
exactly."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.models.ema import ExponentialAverage
from ray_ltdd.stages.muon import Muon

Optimizers = Literal["sgd", "adamw", "muon"]

LinearStep = Annotated[
    float,
    Field(
        ge=0,
        description="0: Muon leaves linear layers and the first convolution to AdamW. Else it takes both, linear layers with steps this many times a "
        "convolution's: with 100 classes 3 learned far faster. Dear for hidden layers of thousands of values; other optimisers ignore it",
    ),
]


def unused_linear_step(optimizer: Optimizers, linear_step: float) -> set[str]:
    """The setting's name where it changes nothing: it goes unnamed in what identifies a network, so that those trained before it came are found."""
    return set() if optimizer == "muon" and linear_step else {"linear_step"}


def cosine_with_warmup(step: int, n_steps: int, warmup_share: float) -> float:
    """The factor on the peak rate: linear from 0 over the first `warmup_share` of the steps, then half a cosine that reaches 0 after the last."""
    n_warmup = int(warmup_share * n_steps)
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup)))


def halved(step: int, n_steps: int, shares: Sequence[float]) -> float:
    """The factor on the peak rate: halved when each of `shares` of the steps is done."""
    return float(0.5 ** sum(step >= share * n_steps for share in shares))


def make_optimizer(
    kind: Optimizers, module: torch.nn.Module, learning_rate: float, weight_decay: float, momentum: float, nesterov: bool, linear_step: float = 0.0
) -> torch.optim.Optimizer:
    """SGD, whose decay is an L2 penalty; AdamW, whose decay is decoupled and which has no use for `momentum` and `nesterov`; or Muon, see there, the
    only one with a use for `linear_step`."""
    # a rate that lives on the GPU is read anew by every replay of a recorded step
    device = next(module.parameters()).device
    on_gpu = device.type == "cuda"
    rate = torch.tensor(learning_rate, device=device) if on_gpu else learning_rate
    if kind == "adamw":
        # one pass over the weights where the plain form takes about ten: on a CPU core 18.4 -> 5.2 ms a step for VGG-11, 0.7 -> 0.2 for ConvNet-3
        return torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=weight_decay, fused=True, capturable=on_gpu)
    if kind == "muon":
        return Muon(module, rate, weight_decay, momentum, nesterov, linear_step)
    return torch.optim.SGD(
        module.parameters(), lr=rate, momentum=momentum, nesterov=nesterov and momentum > 0, weight_decay=weight_decay, fused=on_gpu or None
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def training_step(
    loss_of: Callable[..., torch.Tensor],
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ExponentialAverage | None,
    gradient_clip: float | None = None,
) -> Callable[..., torch.Tensor]:
    """Return the function that, given what `loss_of` takes, changes `module` by one step at the rate last set, and returns the loss before it."""

    def step(*inputs: torch.Tensor) -> torch.Tensor:
        loss = loss_of(*inputs)
        loss.backward()
        if gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update()
        return loss.detach()

    return step


def training_state(
    n_done: int, module: torch.nn.Module, optimizer: torch.optim.Optimizer, average: ExponentialAverage | None
) -> dict[str, torch.Tensor]:
    """Everything a training needs to go on, as one flat dict of tensors: progress, weights and buffers, optimiser state, average."""
    state = {"n_done": torch.tensor(n_done)}
    state |= {f"module/{name}": tensor for name, tensor in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in values.items() if value is not None}
    if average is not None:
        state |= {f"average/{name}": tensor for name, tensor in average.averaged.state_dict().items()}
        state["n_updates"] = torch.tensor(average.n_updates)
    return {name: tensor.clone() for name, tensor in state.items()}


def load_training_state(
    slot: CheckpointSlot,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ExponentialAverage | None,
    start: Mapping[str, torch.Tensor] | None = None,
) -> int:
    """Restore what `training_state` saved and return how much was done.

    Args:
        slot: holds this computation's own state, if it was interrupted.
        module, optimizer, average: are set to the state.
        start: the state it began from, used where the slot is empty; None: as it stands, 0.
    """
    state = slot.load() or start
    if state is None:
        return 0
    module.load_state_dict(_under("module/", state))
    parameters = list(module.parameters())
    values: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _under("optimizer/", state).items():
        index, entry = name.split("/")
        values.setdefault(int(index), {})[entry] = _laid_out_as(parameters[int(index)], tensor)
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        average.load_state_dict({"averaged": _under("average/", state), "n_updates": int(state["n_updates"])})
    return int(state["n_done"])


def _laid_out_as(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of an optimiser's tensor in its parameter's memory layout: fused AdamW passes over both as they lie in memory and checks nothing."""
    return torch.empty_like(parameter, requires_grad=False).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _under(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
