"""Tasks and runs small enough to be computed many times, in any process."""

import os
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import ray.cloudpickle
import tiny
import torch
from commands import ROOT, TINY, checksums

from ray_ltdd.artifacts import Key, Payload
from ray_ltdd.cluster.executor import make_executor
from ray_ltdd.config import load_config
from ray_ltdd.errors import InputError
from ray_ltdd.executor import SilentReporter, Task
from ray_ltdd.runs import execute, in_this_process, open_run

# workers do not find the tests' modules: their functions travel as they are
ray.cloudpickle.register_pickle_by_value(tiny)

UNITS = (
    "cluster.executor=ray",
    "distill.classes_per_unit=3",
    "recover.exchange_every=5",
    "compute.threads=1",
    "output.checkpoint_seconds=0",
    "evaluate.seeds=2",
)


def config_of(output: Path, *overrides: str):
    """The tiny run, cut into four work units that exchange their moments twice."""
    return load_config(ROOT / "configs" / "quickstart.yaml", [*TINY, *UNITS, f"output.root={output}", *overrides]).config


def run(output: Path, *overrides: str, reporter=None, inline=False):
    """Distil into `output`; return the checksums of everything made."""
    factory = in_this_process if inline else make_executor
    with open_run(config_of(output, *overrides), reporter or SilentReporter(), make_executor=factory) as opened:
        execute(opened)
    return checksums(output)


class Watcher(SilentReporter):
    """Does something once in a stage, at its first progress; parts of a stage are shown by its title and their number."""

    def __init__(self, actions):
        self.actions = dict(actions)

    @contextmanager
    def stage(self, title, n_images):
        yield lambda n: self._told(title, n)

    def _told(self, title, n):
        stage = next((name for name in self.actions if title == name or title.startswith(f"{name} ")), None)
        if n and stage is not None:
            self.actions.pop(stage)()


def numbered(context, slot, advance, number, scale=1):
    """The least a task can do."""
    advance(number)
    return Payload({"x": torch.tensor([number * scale])}, {"number": number, "pid": os.getpid()})


def slow(context, slot, advance, number, seconds):
    """Work that can be watched; says when it began and ended, on the one clock of this machine's processes."""
    began = time.monotonic()
    for _ in range(10):
        time.sleep(seconds / 10)
        advance(number / 10)
    payload = numbered(context, slot, lambda n: None, number)
    return Payload(payload.tensors, payload.record | {"began": began, "ended": time.monotonic()})


def failing(context, slot, advance, number, kind, marks):
    """Fails in the way `kind` says; `marks` counts the attempts."""
    (Path(marks) / f"{time.time_ns()}").touch()
    if kind == "nan":
        raise InputError("the loss became NaN: lower recover.learning_rate.")
    if kind == "bug":
        raise ZeroDivisionError("division by zero")
    if kind == "killed" or (kind == "killed once" and len(list(Path(marks).iterdir())) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "monitor once" and len(list(Path(marks).iterdir())) == 1:
        taken = []
        while True:
            taken.append(bytearray(b"x") * 2**28)
            time.sleep(0.1)
    if kind == "torch's memory" or (kind == "memory once" and len(list(Path(marks).iterdir())) == 1):
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 2**33, resource.RLIM_INFINITY))
        try:
            bytearray(2**40) if kind == "memory once" else torch.empty(2**40, dtype=torch.uint8)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return numbered(context, slot, advance, number)


def task(function, number, **inputs):
    """A task of `number` images."""
    return Task(Key("stage", 1, {"number": number}, {}, 0), function, {"number": number, **inputs}, number, f"number {number}")
