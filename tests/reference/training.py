"""Optimisers, averages and the losses of Eq. 4, 7 and 10 from their formulas, one number or one tensor at a time.

Legend: N images, K classes, P projection, F features, L layers.
"""

import math

import torch
from reference import alignment, losses


def expert_loss(output, first_N, second_N, lambda_N, alpha, weight_K, adjustment_K, robust_weight, debias_weight):
    """Eq. 7 on two views of half the rows each; `output` is (plain_NK, debiased_NK, projection_NP, prediction_NP)."""
    plain_NK, debiased_NK, projection_NP, prediction_NP = ([[float(v) for v in row] for row in tensor] for tensor in output)
    half = len(plain_NK) // 2
    robust = losses.robust(prediction_NP[:half], projection_NP[:half], prediction_NP[half:], projection_NP[half:])
    adjusted = [[[v + float(a) for v, a in zip(row, adjustment_K, strict=True)] for row in logits] for logits in (debiased_NK, plain_NK)]
    weighted = losses.mixed_cross_entropy(adjusted[0], first_N, second_N, lambda_N, weight_K)
    plain = losses.mixed_cross_entropy(adjusted[1], first_N, second_N, lambda_N, [1.0] * len(plain_NK[0]))
    return robust_weight * robust + debias_weight * (alpha * weighted + (1 - alpha) * plain)


def student_loss(logit_NK, label_N, partner_label_N, lambda_N, target_NK, hard_weight, soft_weight):
    """Eq. 10: the cross-entropy with mixed labels, and the squared error summed over classes; means over images. Without targets the first."""
    hard = losses.mixed_cross_entropy(logit_NK, label_N, partner_label_N, lambda_N, [1.0] * len(logit_NK[0]))
    if target_NK is None:
        return hard
    soft = sum((float(a) - float(b)) ** 2 for row, target in zip(logit_NK, target_NK, strict=True) for a, b in zip(row, target, strict=True))
    return hard_weight * hard + soft_weight * soft / len(label_N)


def recovery_loss(config, logit_NK, label_N, synthetic_L, others_L, own, class_target_L, global_target_L, weight_L, variance):
    """Eq. 4 from smoothed class moments, one pair [K, F] a layer."""
    n_own, n_all = len(own), len(others_L[0][0])
    whole = n_all / n_own * alignment.global_term(synthetic_L, others_L, own, global_target_L, weight_L, variance)
    by_class = alignment.class_term(synthetic_L, class_target_L, weight_L)
    entropy = sum(losses.cross_entropy(logit_K, int(label)) for logit_K, label in zip(logit_NK, label_N, strict=True)) / len(label_N)
    aligned = config.global_weight * whole + config.class_weight * by_class
    return config.alignment_weight * aligned + config.cross_entropy_weight * entropy


def cosine(step, n_steps, n_warmup=0):
    """Half a cosine from 1 to 0, after `n_warmup` equal steps up from 0, the last of which would reach 1 where the cosine begins."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2


@torch.no_grad()
def clip(parameters, largest):
    """g <- g min(1, largest / |g|), |g| over all parameters; the norm before, a number."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    for gradient in gradients:
        gradient *= min(1.0, largest / norm)
    return norm


@torch.no_grad()
def move_average(average, module, decay):
    """a <- decay a + (1 - decay) w for every weight and buffer; a counter is copied."""
    for old, new in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        old.copy_(decay * old + (1 - decay) * new if old.is_floating_point() else new)


class Sgd:
    """SGD with L2 penalty and momentum, v <- m v + g, v_0 = g; p <- p - rate (g + m v) in Nesterov's form as Sutskever wrote it for torch, else
    p <- p - rate v."""

    def __init__(self, parameters, momentum, weight_decay, nesterov=True):
        self.parameters, self.momentum, self.weight_decay, self.velocity = list(parameters), momentum, weight_decay, {}
        self.nesterov = nesterov

    @torch.no_grad()
    def step(self, rate):
        for number, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            gradient = parameter.grad + self.weight_decay * parameter
            velocity = self.velocity.get(number)
            velocity = gradient if velocity is None else self.momentum * velocity + gradient
            self.velocity[number] = velocity.clone()
            parameter -= rate * (gradient + self.momentum * velocity if self.nesterov else velocity)
            parameter.grad = None


class Adam:
    """Adam as published, with decoupled weight decay (0: none)."""

    def __init__(self, parameters, betas, weight_decay=0.0):
        self.parameters, self.betas, self.weight_decay = list(parameters), betas, weight_decay
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.n_steps = 0

    @torch.no_grad()
    def step(self, rate):
        self.n_steps += 1
        for parameter, first, second in zip(self.parameters, self.first, self.second, strict=True):
            first += (1 - self.betas[0]) * (parameter.grad - first)
            second += (1 - self.betas[1]) * (parameter.grad**2 - second)
            corrected = [m / (1 - beta**self.n_steps) for m, beta in zip((first, second), self.betas, strict=True)]
            parameter -= rate * self.weight_decay * parameter
            parameter -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)
            parameter.grad = None


class Muon:
    """Muon as published, with the step size of AdamW, for convolutions of 16 input channels or more, or with `linear_step` for everything of two
    dimensions or more; Adam for the rest."""

    def __init__(self, parameters, momentum, weight_decay, nesterov=True, linear_step=0.0):
        parameters = list(parameters)
        is_matrix = [p.ndim >= 2 if linear_step else p.ndim == 4 and p.shape[1] >= 16 for p in parameters]
        self.matrices = [p for p, taken in zip(parameters, is_matrix, strict=True) if taken]
        self.rest = Adam([p for p, taken in zip(parameters, is_matrix, strict=True) if not taken], (0.9, 0.999), weight_decay)
        self.linear_step = linear_step
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self.velocity = [torch.zeros_like(p) for p in self.matrices]

    @torch.no_grad()
    def step(self, rate):
        self.rest.step(rate)
        for parameter, velocity in zip(self.matrices, self.velocity, strict=True):
            velocity *= self.momentum
            velocity += parameter.grad
            direction = parameter.grad + self.momentum * velocity if self.nesterov else velocity
            left, value, right = torch.linalg.svd(direction.flatten(1), full_matrices=False)
            value = value / value.norm().clamp(min=1e-30)  # the debiased head has no gradient at the first step, where alpha is 0
            for _ in range(5):
                value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
            step = (left * value) @ right
            parameter -= rate * self.weight_decay * parameter
            multiple = self.linear_step if parameter.ndim == 2 else 1
            parameter -= multiple * rate * 0.2 * max(step.shape) ** 0.5 * step.view_as(parameter)
            parameter.grad = None
