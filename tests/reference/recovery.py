"""Stage 4 of all work units in lock step: full tables of class moments where the package has sums over units, one loop over steps where it has parts.

Legend: N images of a unit's wave, K classes of a unit, A all classes, F channels, L layers, C H W.
"""

import math
from dataclasses import dataclass

import torch
from reference import training


@dataclass
class Unit:
    """One wave of one unit; `target_L` are its classes' moments, one pair [K, F] a layer. Its pixels are moved in place."""

    classes: list
    label_N: torch.Tensor
    pixel: torch.Tensor
    seed: int
    target_L: list
    smoothed_L: list | None = None
    loss: float = float("nan")


def observe(observer, image_NCHW):
    """Logits, and what every batch norm is given."""
    seen = []
    norms = [module for module in observer.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].double())) for norm in norms]
    logit_NK = observer(image_NCHW).double()
    for hook in hooks:
        hook.remove()
    return logit_NK, seen


def class_moments(x_NFHW, unit):
    """Mean and variance over all images and pixels of each class."""
    values_K = [x_NFHW[unit.label_N == label].transpose(0, 1).flatten(1) for label in unit.classes]
    return torch.stack([value.mean(1) for value in values_K]), torch.stack([value.var(1, correction=0) for value in values_K])


def tables(units, moments_UL):
    """The units' class moments as pairs [A, F], one a layer."""
    table_L = []
    for of_layer in zip(*moments_UL, strict=True):
        table = tuple(torch.zeros(sum(len(unit.classes) for unit in units), moment.shape[1], dtype=torch.float64) for moment in of_layer[0])
        for unit, pair in zip(units, of_layer, strict=True):
            for whole, moment in zip(table, pair, strict=True):
                whole[unit.classes] = moment.detach()
        table_L.append(table)
    return table_L


def detached(moments_L):
    """Without their gradient."""
    return [tuple(moment.detach() for moment in pair) for pair in moments_L]


def smoothed(old_L, new_L, momentum):
    """The first ones as they are, then mixed with those before."""
    if old_L is None:
        return new_L
    return [tuple(momentum * a + (1 - momentum) * b for a, b in zip(old, new, strict=True)) for old, new in zip(old_L, new_L, strict=True)]


def loss(config, logit_NK, unit, synthetic_L, known_L, global_target_L, weight_L, variance):
    """`training.recovery_loss` once more, with a gradient."""
    aligned = 0.0
    for own, known, of_class, of_all, weight in zip(synthetic_L, known_L, unit.target_L, global_target_L, weight_L, strict=True):
        mean_AF, var_AF = (whole.index_copy(0, torch.tensor(unit.classes), moment) for whole, moment in zip(known, own, strict=True))
        var_F = var_AF.mean(0) + (mean_AF.var(0, correction=0) if variance == "mixture" else 0)
        whole = (mean_AF.mean(0) - of_all[0]).norm() + (var_F - of_all[1]).norm()
        by_class = sum((moment - target).norm(dim=1) for moment, target in zip(own, of_class, strict=True)).mean()
        aligned = aligned + weight * (config.global_weight * len(mean_AF) / len(unit.classes) * whole + config.class_weight * by_class)
    total = config.alignment_weight * aligned + config.cross_entropy_weight * torch.nn.functional.cross_entropy(logit_NK, unit.label_N)
    pairs_LL = (synthetic_L, known_L, unit.target_L, global_target_L)
    synthetic_L, known_L, *target_LL = ([(mean.detach().numpy(), var.detach().numpy()) for mean, var in pairs_L] for pairs_L in pairs_LL)
    by_hand = training.recovery_loss(config, logit_NK.detach(), unit.label_N, synthetic_L, known_L, unit.classes, *target_LL, weight_L, variance)
    assert math.isclose(total.item(), by_hand, rel_tol=1e-9)
    return total


def recover(config, observer, units, view, global_target_L, weight_L, variance, pixel_scale):
    """All steps of a wave; `view` gives a unit's augmented images at a step.

    Of the others' classes a unit knows the moments of the initial images as they are, then the smoothed ones of every k-th step.
    """
    adams = [training.Adam([unit.pixel.requires_grad_(True)], config.betas) for unit in units]
    known_L = tables(units, [[class_moments(x_NFHW, unit) for x_NFHW in observe(observer, unit.pixel)[1]] for unit in units])
    for step in range(config.steps):
        if step and step % config.exchange_every == 0:
            known_L = tables(units, [unit.smoothed_L for unit in units])
        for unit, adam in zip(units, adams, strict=True):
            logit_NK, seen = observe(observer, view(unit, step))
            synthetic_L = smoothed(unit.smoothed_L, [class_moments(x_NFHW, unit) for x_NFHW in seen], config.statistics_momentum)
            value = loss(config, logit_NK, unit, synthetic_L, known_L, global_target_L, weight_L, variance)
            value.backward()
            unit.smoothed_L, unit.loss = detached(synthetic_L), value.item()
            adam.step(config.learning_rate * pixel_scale * training.cosine(step, config.steps))
            with torch.no_grad():
                unit.pixel.clamp_(0, 1)
