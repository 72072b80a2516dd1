"""Muon: descent along the orthogonalised momentum of convolutions' and, if wanted, linear layers' weights, AdamW for all else.

With W [out, in * height * width] a convolution's weight as a matrix, G its gradient, mu the momentum, eta the rate, w the weight decay:

    V <- mu V + G,    U = G + mu V (Nesterov) or V,    W <- (1 - eta w) W - eta 0.2 sqrt(max(out, in * height * width)) O(U)

A linear layer's weight [out, in] takes such steps where `linear_step` is above 0:

    W <- (1 - eta w) W - linear_step eta 0.2 sqrt(max(out, in)) O(U)

and convolutions of few input channels, the first above all, those of the others. A head of 100 classes, whose features are far from equally strong,
otherwise lags behind what feeds it for thousands of steps.

O(U) has U's singular vectors and singular values near 1: five steps X <- a X + (b A + c A^2) X, A = X X^T, from X = U / |U|_F. The factor gives
the step the size it has with AdamW, so that one rate serves both kinds of parameters. Students, which are short of steps, learn more from each.

The five steps are taken on A alone, of the shorter side's size: X is multiplied twice instead of ten times. That takes float32 (an error in A grows
12-fold a step, and with bfloat16's outgrows A), and on a CPU core still less time than plain steps in bfloat16: 1.7 instead of 2.4 ms for 128 x 1152.
"""

import math
from typing import Any

import torch
from torch.optim.adamw import adamw

N_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c as published by Keller Jordan: chosen for the steepest rise of small singular values, which end between about 0.7 and 1.2."""

FEWEST_CHANNELS = 16
"""Input channels of a group from which a convolution's weight is taken as a matrix where linear layers' are not: the first layer's filters see fewer.
Of a grouped convolution always: one matrix would mix filters that have no input in common."""

_TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for the weights that `is_matrix` names, AdamW (betas 0.9 and 0.999) for all other parameters.

    Args:
        module: whose parameters are trained.
        lr: the rate of both; a tensor on a GPU, where a recorded step reads it anew.
        weight_decay: decoupled, of both.
        momentum: mu; Muon's alone.
        nesterov: see U above.
        linear_step: of linear layers, see above; 0: AdamW takes them and first convolutions.
    """

    def __init__(
        self, module: torch.nn.Module, lr: float | torch.Tensor, weight_decay: float, momentum: float, nesterov: bool, linear_step: float = 0.0
    ) -> None:
        on_gpu = next(module.parameters()).is_cuda
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "linear_step": linear_step}
        # these two tell the base class, which restores states, where AdamW's step numbers belong
        super().__init__(module.parameters(), settings | {"fused": True, "capturable": on_gpu})
        self._matrices = {id(layer.weight) for layer in module.modules() if is_matrix(layer, linear_step)}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient by one step."""
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in filter(self.takes, given):
                self._descend(parameter, group)
            self._adamw([parameter for parameter in given if not self.takes(parameter)], group)

    def takes(self, parameter: torch.Tensor) -> bool:
        """Whether a parameter takes orthogonal steps."""
        return id(parameter) in self._matrices

    def _descend(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        rate, decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity = state["momentum_buffer"].mul_(momentum).add_(weight.grad)
        direction = weight.grad.add(velocity, alpha=momentum) if group["nesterov"] else velocity
        # with channels last, as a convolution's weight lies in memory: no copy
        last = direction.movedim(1, -1)
        rows = last.flatten(1)
        scale = 0.2 * math.sqrt(max(rows.shape)) * (group["linear_step"] if weight.ndim == 2 else 1)
        weight.mul_(1 - rate * decay).sub_(orthogonalized(rows).view_as(last).movedim(-1, 1) * (rate * scale))

    def _adamw(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=group["capturable"],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def is_matrix(layer: torch.nn.Module, linear_step: float) -> bool:
    """Whether Muon takes a layer's weight: a convolution of 16 input channels or more; with a `linear_step` every other one without groups, too, and
    linear layers."""
    if isinstance(layer, torch.nn.Linear):
        return linear_step > 0
    return isinstance(layer, torch.nn.Conv2d) and (layer.weight.shape[1] >= FEWEST_CHANNELS or (linear_step > 0 and layer.groups == 1))


def orthogonalized(direction_RC: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the same singular vectors, [R, C], whose singular values are near 1 wherever they were not far below the largest."""
    a, b, c = COEFFICIENTS
    is_tall = direction_RC.shape[0] > direction_RC.shape[1]
    X = direction_RC.T if is_tall else direction_RC
    X = X / (X.norm() + _TINY)
    A = X @ X.T
    product: torch.Tensor | None = None
    for number in range(N_ITERATIONS):
        factor = torch.addmm(A, A, A, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if number + 1 < N_ITERATIONS:
            A = factor @ A @ factor
    assert product is not None
    return (product @ X).T if is_tall else product @ X
