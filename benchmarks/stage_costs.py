"""What every stage costs on this machine, beside the plain way of doing the same work, in one run.

    python benchmarks/stage_costs.py [--data PATH] [--output FOLDER] [--no-plain] [key=value ...]

The work: CIFAR-10-LT at IF 100, 10 images per class, ConvNet-3 (width 128, instance norm) as observer, teacher and student, experts at 20 epochs
(configs/cifar10_lt_20_epochs.yaml). The plain way is what published code does: eager float32, Pillow transforms image by image, the teacher in the
student's loop. It is measured over a few steps and extrapolated to the whole work, which the table says.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from PIL import Image
from rich.console import Console
from rich.table import Table

from ray_ltdd import pipeline
from ray_ltdd.artifacts import peak_memory_mb
from ray_ltdd.config import ExperimentConfig, load_config
from ray_ltdd.executor import StageRecord
from ray_ltdd.kernels.serving import switched_off
from ray_ltdd.models.config import ModelConfig
from ray_ltdd.models.expert import build_expert
from ray_ltdd.reporting import make_reporter
from ray_ltdd.runs import Run, execute, open_run

ROOT = Path(__file__).parents[1]
MEAN, STD = torch.full((3,), 0.47), torch.full((3,), 0.25)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="folder with train.parquet and test.parquet; default: torchvision's download")
    parser.add_argument("--output", default="runs/stage_costs", help="emptied of earlier artifacts, so that every stage is computed")
    parser.add_argument("--no-plain", action="store_true", help="skip the plain way")
    parser.add_argument("overrides", nargs="*", help="settings, such as experts.epochs=1")
    arguments = parser.parse_args()
    overrides = [f"output.root={arguments.output}", *arguments.overrides]
    if arguments.data:
        overrides.append(f"data.path={arguments.data}")
    config = load_config(ROOT / "configs" / "cifar10_lt_20_epochs.yaml", overrides).config
    plain = None if arguments.no_plain else measure_in_own_process(plain_costs, overrides)
    with tempfile.TemporaryDirectory() as fresh:
        probe = [*overrides, f"output.root={fresh}/runs"]
        cold, warm = (seconds_to_first_step(probe, f"{fresh}/cache") for _ in range(2))
    print(f"start to first training step: {cold:.1f} s with a cold compilation cache, {warm:.1f} s with a warm one")
    shutil.rmtree(arguments.output, ignore_errors=True)
    started = time.monotonic()
    run = open_run(config, make_reporter(quiet=False))
    report = execute(run)
    wall = time.monotonic() - started
    print_table(run, {record.title: record for record in report.records}, plain, wall)


def seconds_to_first_step(overrides: list[str], cache: str) -> float:
    """Wall seconds from the start of a new process to the end of its first training step, with what is compiled kept in the folder `cache`."""
    code = (
        f"import sys, time; started = time.time(); sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import stage_costs as s; "
        f"s.run_to_first_step(s.load_config(s.ROOT / 'configs' / 'cifar10_lt_20_epochs.yaml', {overrides!r}).config)"
    )
    started = time.monotonic()
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    return time.monotonic() - started


def run_to_first_step(config: ExperimentConfig) -> None:
    """Start a run and leave the process after its first training step."""

    class FirstStep:
        @contextmanager
        def stage(self, title: str, n_images: int) -> Iterator[Callable[[int], None]]:
            yield lambda n: os._exit(0) if title == "Experts" and n > 0 else None

    pipeline.distil(config, (run := open_run(config, FirstStep())).bench, run.executor)


def measure_in_own_process(function: Callable[[ExperimentConfig], dict[str, float]], overrides: list[str]) -> dict[str, float]:
    """Run the plain way in a process of its own: its threads and memory must not weigh on ours."""
    code = (
        f"import sys, json; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import stage_costs as s; "
        f"print(json.dumps(s.{function.__name__}(s.load_config(s.ROOT / 'configs' / 'cifar10_lt_20_epochs.yaml', {overrides!r}).config)))"
    )
    import json

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


@switched_off()
def plain_costs(config: ExperimentConfig) -> dict[str, float]:
    """Seconds the plain way takes for each stage, extrapolated from a few steps of it, with torch's own operators only."""
    run = open_run(config, make_reporter(quiet=True))
    n_train = len(run.bench.split.train_index_N)
    experts = config.experts
    n_expert_steps = experts.epochs * (n_train // experts.batch_size)
    n_student_steps = config.evaluate.epochs * -(-10 * config.distill.images_per_class // config.relabel.views.batch_size)
    return {
        "expert": seconds_per_step(plain_expert_step(run, experts.batch_size), 8) * n_expert_steps,
        "crops": seconds_per_step(plain_crop_step(run), 300) * n_train * config.select_crops.crops_per_image,
        "recovery": seconds_per_step(plain_forward_step(run, 100), 4) * n_train / 100
        + seconds_per_step(plain_recovery_step(run), 6) * config.recover.steps,
        "student": seconds_per_step(plain_student_step(run, config.relabel.views.batch_size), 25) * n_student_steps,
    }


def seconds_per_step(step: Callable[[], None], n: int) -> float:
    """Mean wall seconds of `n` steps after two to warm up."""
    step()
    step()
    started = time.perf_counter()
    for _ in range(n):
        step()
    return (time.perf_counter() - started) / n


def _expert() -> torch.nn.Module:
    return build_expert(ModelConfig(), 32, 3, 10, MEAN, STD, 0)


def _images(run: Run) -> list[Image.Image]:
    rows = run.bench.split.train_index_N[:2000]
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in run.bench.prepared.train.image_NCHW[rows]]


def plain_expert_step(run: Run, batch: int) -> Callable[[], None]:
    """Two batches by Pillow, two mixed views, four passes' worth of losses, SGD."""
    images, expert, draw = _images(run), _expert(), np.random.default_rng(0)
    transform = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), T.ToTensor()])
    optimizer = torch.optim.SGD(expert.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-3)

    def step() -> None:
        first, second = (torch.stack([transform(images[i]) for i in draw.integers(0, 2000, batch)]) for _ in range(2))
        lam = float(draw.beta(0.5, 0.5))
        loss = torch.zeros(())
        for view in (lam * first + (1 - lam) * second, first.flip(0) * lam + second * (1 - lam)):
            output = expert.heads(view)
            label = torch.from_numpy(draw.integers(0, 10, batch))
            loss = loss + F.cross_entropy(output.debiased_logit_NK, label) + F.cross_entropy(output.plain_logit_NK, label)
            loss = loss - F.cosine_similarity(output.prediction_NP, output.projection_NP.detach()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_crop_step(run: Run) -> Callable[[], None]:
    """One crop by Pillow and one forward pass of it."""
    images, expert, draw = _images(run), _expert().eval(), np.random.default_rng(0)
    transform = T.Compose([T.RandomResizedCrop(32, scale=(0.5, 1)), T.RandomHorizontalFlip(), T.ToTensor()])

    @torch.no_grad()
    def step() -> None:
        expert(transform(images[draw.integers(0, 2000)])[None]).log_softmax(1)

    return step


def plain_forward_step(run: Run, batch: int) -> Callable[[], None]:
    """One eager forward pass of 100 images, decoded one by one."""
    images, expert = _images(run), _expert().eval()
    to_tensor = T.ToTensor()

    @torch.no_grad()
    def step() -> None:
        expert(torch.stack([to_tensor(image) for image in images[:batch]]))

    return step


def plain_recovery_step(run: Run) -> Callable[[], None]:
    """One eager step on 100 images: forward, moments of every convolution input by class in a loop, backward, Adam."""
    expert = _expert().eval().requires_grad_(False)
    captured: list[torch.Tensor] = []
    for module in expert.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    pixel = torch.rand(100, 3, 32, 32, requires_grad=True)
    label = torch.arange(10).repeat_interleave(10)
    optimizer = torch.optim.Adam([pixel], lr=0.05, betas=(0.5, 0.9))

    def step() -> None:
        captured.clear()
        loss = F.cross_entropy(expert(pixel), label)
        for x in captured:
            for k in range(10):
                loss = loss + 0.01 * (x[label == k].mean((0, 2, 3)).norm() + x[label == k].var((0, 2, 3)).norm())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def plain_student_step(run: Run, batch: int) -> Callable[[], None]:
    """One batch by Pillow, the teacher on it, student, AdamW."""
    images, student, teacher, draw = _images(run), _expert(), _expert().eval(), np.random.default_rng(0)
    transform = T.Compose([T.RandAugment(), T.RandomResizedCrop(32, scale=(0.08, 1)), T.RandomHorizontalFlip(), T.ToTensor()])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)

    def step() -> None:
        view = torch.stack([transform(images[i]) for i in draw.integers(0, 100, batch)])
        with torch.no_grad():
            target = teacher(view)
        logit = student(view)
        loss = F.mse_loss(logit, target) + 0.025 * F.cross_entropy(logit, torch.from_numpy(draw.integers(0, 10, batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def print_table(run: Run, records: dict[str, StageRecord], plain: dict[str, float] | None, wall: float) -> None:
    """Print the table of stages, and what else a user waits for."""
    ours = {
        "expert": records["Experts"].compute_seconds / records["Experts"].n_computed,
        "crops": records["Select crops"].compute_seconds,
        "recovery": records["Calibrate"].compute_seconds + records["Recover"].compute_seconds,
        "student": records["Students"].compute_seconds / records["Students"].n_computed,
    }
    names = {
        "expert": f"one expert, {run.config.experts.epochs} epochs",
        "crops": "initialisation",
        "recovery": "statistics + recovery",
        "student": "one student",
    }
    table = Table(
        title=f"Seconds per stage, {run.config.split.imbalance_factor:g} IF, {run.config.distill.images_per_class} IPC", title_justify="left"
    )
    for heading in ("stage", "plain way (extrapolated)", "this code", "times as fast"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, title in names.items():
        other = ("", "") if plain is None else (f"{plain[name]:.0f}", f"{plain[name] / ours[name]:.1f}")
        table.add_row(title, other[0], f"{ours[name]:.0f}", other[1])
    total = sum(ours.values())
    other = ("", "") if plain is None else (f"{sum(plain.values()):.0f}", f"{sum(plain.values()) / total:.1f}")
    table.add_row("all", other[0], f"{total:.0f}", other[1])
    console = Console()
    console.print(table)
    console.print(f"Whole run with baselines and further seeds: {wall:.0f} s; peak memory {peak_memory_mb():.0f} MB.")


if __name__ == "__main__":
    main()
