"""Sweep files small enough to be searched without computing anything, or to be computed in seconds."""

from pathlib import Path

from commands import ROOT, TINY
from ruamel.yaml import YAML

from ray_ltdd.config import override, read_yaml
from ray_ltdd.search.load import load_sweep

SEARCH = {
    "calibrate.momentum.schedule": {"choices": ["cumulative", "constant"]},
    "calibrate.momentum.value": {"low": 0.01, "high": 0.5, "log": True, "when": {"calibrate.momentum.schedule": "constant"}},
    "recover.steps": {"low": 10, "high": 100},
    "relabel.tau": {"low": 0, "high": 2},
}
SWEEP = {
    "name": "tiny",
    "base": "base.yaml",
    "set_in_trials": {"split.validation_per_class": 18},
    "set_in_finals": {"evaluate.baselines": []},
    "cells": {"split.imbalance_factor": [5, 10]},
    "search": SEARCH,
    "trials": 6,
    "concurrency": 1,
    "sampler": {"n_startup_trials": 2},
    "warm_start": {"kind": "neighbour", "points": 2, "head_start": 3},
}


def sweep_file(folder: Path, **changes) -> Path:
    """Write the sweep with some sections changed, and its base: the quick start with a tiny budget. Its runs go below the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    base = read_yaml(ROOT / "configs" / "quickstart.yaml")
    for text in (*TINY, "evaluate.epochs=24", "experts.epochs=1"):
        override(base, text)
    _dump(folder / "base.yaml", base)
    _dump(folder / "sweep.yaml", {**SWEEP, "output": {"root": str(folder / "runs")}, **changes})
    return folder / "sweep.yaml"


def _dump(path: Path, values) -> None:
    with path.open("w") as file:
        YAML().dump(values, file)


def sweep_of(folder: Path, *overrides: str, **changes):
    """The sweep, loaded."""
    return load_sweep(sweep_file(folder, **changes), overrides)
