"""What recording a training step as one CUDA graph gains, on this machine's GPU.

    python benchmarks/replay.py [--steps 600]

Milliseconds a step of three trainings at the sizes of CIFAR-10-LT, kernel by kernel and replayed, in one run. Pixels are noise, which costs what
images do. The first third of the steps (warm-up, recording) is left out. On a CPU nothing is recorded: both columns are the same thing.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ray_ltdd.artifacts import CheckpointSlot
from ray_ltdd.compute import ComputeConfig, resolve_backend
from ray_ltdd.data.bank import ImageBank
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import Expert, build_expert
from ray_ltdd.stages import evaluate, experts
from ray_ltdd.stages.relabel import mean_logits
from ray_ltdd.stages.replay import Replayed
from ray_ltdd.stages.views import ViewsConfig

N_IMAGES, N_CLASSES = 12_400, 10


class NoSlot(CheckpointSlot):
    """A benchmark keeps nothing."""

    def __init__(self) -> None: ...

    def load(self) -> None: ...

    def offer(self, state: Callable[[], Any]) -> None: ...


class Clock:
    """Counts steps; the time after the first third of them."""

    def __init__(self, n_steps: int, device: torch.device) -> None:
        self.n_steps, self.device, self.n_seen, self.since = n_steps, device, 0, 0.0

    def advance(self, n_images: int) -> None:
        """One step, or what was done before: nothing."""
        self.n_seen += n_images > 0
        if self.n_seen == self.n_steps // 3 and not self.since:
            self.since = self._now()

    def milliseconds(self) -> float:
        """A step's."""
        return 1e3 * (self._now() - self.since) / (self.n_seen - self.n_steps // 3)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    n_steps = parser.parse_args().steps
    backend = resolve_backend(ComputeConfig())
    pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, 3, 32, 32), dtype=np.uint8)
    bank = ImageBank(pixels, np.arange(N_IMAGES) % N_CLASSES, np.arange(N_IMAGES), backend.device)
    device_name = torch.cuda.get_device_name() if backend.device.type == "cuda" else "a CPU, where nothing is recorded"
    table = Table("training", "images a step", "kernel by kernel [ms]", "replayed [ms]", "ratio", title=f"Steps on {device_name}")

    def network(architecture: str) -> Expert:
        expert = build_expert(ModelConfig(architecture=architecture), 32, 3, N_CLASSES, [0.5] * 3, [0.25] * 3, 0)
        return expert.to(backend.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def labels(architecture: str) -> evaluate.SoftLabels:
        return evaluate.labels_online(mean_logits([network(architecture).eval().requires_grad_(False)], backend))

    def student(guide: str, batch: int, clock: Clock) -> None:
        settings = (evaluate.StudentConfig(), ViewsConfig(batch_size=batch), network("convnet"), bank, labels(guide))
        evaluate.train_student(*settings, n_steps, 0, None, backend, NoSlot(), clock.advance)

    def observer(clock: Clock) -> None:
        config = experts.ExpertTraining(epochs=max(n_steps * 64 // N_IMAGES, 1), accuracy_floor=0)
        count_K = torch.full((N_CLASSES,), N_IMAGES // N_CLASSES)
        experts.train_expert(config, network("resnet32"), bank, count_K, backend, 0, NoSlot(), clock.advance)

    trainings: list[tuple[str, int, Callable[[Clock], None]]] = [
        ("student, ConvNet-3, asks a ConvNet-3", 25, lambda clock: student("convnet", 25, clock)),
        ("teacher, ConvNet-3, matches a ResNet-32", 64, lambda clock: student("resnet32", 64, clock)),
        ("observer, ResNet-32", 128, observer),
    ]
    for name, n_images, train in trainings:
        found = []
        for replayed in (False, True):
            clock = Clock(n_steps, backend.device)
            wrap = Replayed if replayed else _as_it_is
            with patch.object(evaluate, "Replayed", wrap), patch.object(experts, "Replayed", wrap):
                train(clock)
            found.append(clock.milliseconds())
        table.add_row(name, str(n_images), *(f"{value:.2f}" for value in found), f"{found[0] / found[1]:.1f}")
    Console().print(table)


def _as_it_is(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return step


if __name__ == "__main__":
    main()
