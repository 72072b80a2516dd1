"""A small run that was really made, from the command line's own parts, once a session."""

import pytest
import torch
from commands import ROOT, TINY

from ray_ltdd.config import load_config
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import execute, open_run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """Folder of a run of the quick start's digits at the smallest budget, two work units, two waves, with its store beside it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    changes = [*TINY, "distill.classes_per_unit=5", "recover.exchange_every=6", "recover.batch_size=15", "compute.compile=off", f"output.root={root}"]
    with open_run(load_config(ROOT / "configs" / "quickstart.yaml", changes).config, SilentReporter()) as run:
        execute(run)
    return run.folder
