"""Running the real command line in processes of its own, at the smallest budget that passes through every stage."""

import hashlib
import io
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from ray_ltdd.config import load_config
from ray_ltdd.executor import SilentReporter
from ray_ltdd.runs import Run, open_run

ROOT = Path(__file__).parents[1]
TINY = (
    "experts.epochs=4",
    "experts.accuracy_floor=0",
    "observer.model.width=8",
    "teacher.model.width=8",
    "evaluate.model.width=8",
    "select_crops.crops_per_image=2",
    "recover.steps=12",
    "evaluate.epochs=30",
    "evaluate.seeds=1",
    "evaluate.baselines=[random]",
    # a Ray of its own takes each command ten seconds; tests/cluster/ has the ones that need it
    "cluster.executor=inline",
)


def quickstart_run(output: Path, *overrides: str) -> Run:
    """A run of the quick start with these settings into `output`, in this process."""
    config = load_config(ROOT / "configs" / "quickstart.yaml", [*overrides, f"output.root={output}"]).config
    return open_run(config, SilentReporter())


def command(*arguments: str) -> list[str]:
    """The command line as a process would start it."""
    return [sys.executable, "-m", "ray_ltdd.cli", *arguments]


def environment(**more: str) -> dict[str, str]:
    """One thread, like the tests themselves."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(), timeout=240)


def cli_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end in this process, which spares the imports: for commands that are refused."""
    from ray_ltdd.cli import main

    output, errors = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["ray-ltdd", *arguments]), redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        try:
            main()
        except SystemExit as end:
            return subprocess.CompletedProcess(arguments, int(end.code or 0), output.getvalue(), errors.getvalue())
    raise AssertionError("the command line always ends with a status")


def tiny_run(output: Path, *overrides: str) -> list[str]:
    """Arguments of a tiny run of the quick start into `output`."""
    return ["run", str(ROOT / "configs" / "quickstart.yaml"), *TINY, f"output.root={output}", *overrides]


def checksums(output: Path) -> dict[str, str]:
    """SHA-256 of every artifact's payload in a store, and of every distilled dataset, by path."""
    files = [*(output / "store").glob("*/*/payload.safetensors"), *output.glob("*/distilled/train.parquet")]
    files = [file for file in files if "damaged" not in str(file)]
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
