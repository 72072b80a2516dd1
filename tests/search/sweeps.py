"""Small sweep files to write, and a study to ask."""

from pathlib import Path
from typing import Any

import optuna
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "configs" / "sweep").glob("*.yaml"))

BASE: dict[str, Any] = {"data": {"dataset": "digits_lt"}, "split": {"imbalance_factor": 10}, "experts": {"epochs": 3}, "evaluate": {"epochs": 60}}
SWEEP: dict[str, Any] = {
    "name": "s",
    "base": "base.yaml",
    "set_in_trials": {"split.validation_per_class": 5, "evaluate.epochs": 20},
    "cells": {"split.imbalance_factor": [5, 10, 20], "distill.images_per_class": [1, 2]},
    "search": {
        "calibrate.momentum.schedule": {"choices": ["cumulative", "constant", "power"]},
        "calibrate.momentum.value": {"low": 0.01, "high": 0.5, "log": True, "when": {"calibrate.momentum.schedule": "constant"}},
        "recover.steps": {"low": 10, "high": 100},
    },
    "trials": 6,
}


def write(folder: Path, changes: dict[str, Any] | None = None, base: dict[str, Any] | None = None, name: str = "sweep.yaml") -> Path:
    """Write base.yaml and a sweep file with `changes` to `SWEEP`; a change to None removes the entry."""
    dump(folder / "base.yaml", base if base is not None else BASE)
    values = {key: value for key, value in {**SWEEP, **(changes or {})}.items() if value is not None}
    dump(folder / name, values)
    return folder / name


def dump(path: Path, values: Any) -> None:
    yaml = YAML()
    with path.open("w") as file:
        yaml.dump(values, file)


def study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """A study in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler, direction="maximize")
