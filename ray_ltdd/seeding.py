"""A seed from (experiment, stage, index): every random draw of a run can be traced to one."""

import hashlib

import torch


def derive_seed(experiment_seed: int, stage: str, *index: int | str) -> int:
    """Return a 63-bit seed that depends on all arguments, joined by slashes, and on nothing else.

    Args:
        experiment_seed: the run's `seed`.
        stage: name of the stage that draws.
        index: what tells this draw from the stage's others, such as a class, an epoch or a student's number.
    """
    text = "/".join([str(experiment_seed), stage, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_dropout(module: torch.nn.Module, seed: int, step: int) -> None:
    """Seed torch's global generator for one training step of a network with dropout, the only layers that draw from it; does nothing for others."""
    if any(isinstance(layer, torch.nn.Dropout) for layer in module.modules()):
        torch.manual_seed(derive_seed(seed, "dropout", step))


def generator(device: torch.device | str, experiment_seed: int, stage: str, *index: int | str) -> torch.Generator:
    """Return a `torch.Generator` on `device` seeded with `derive_seed` of the other arguments."""
    return torch.Generator(device).manual_seed(derive_seed(experiment_seed, stage, *index))
