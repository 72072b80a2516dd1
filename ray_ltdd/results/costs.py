"""What the stages of any number of runs cost, and what more workers gained."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ray_ltdd.errors import InputError
from ray_ltdd.results.figures.pareto import accuracy_and_bytes, accuracy_over_bytes
from ray_ltdd.results.figures.stage_costs import stage_costs
from ray_ltdd.results.figures.worker_scaling import worker_scaling
from ray_ltdd.results.summary import SUMMARY
from ray_ltdd.storage import is_store

COLUMNS = [
    "run",
    "fingerprint",
    "stage",
    "wall_seconds",
    "compute_seconds",
    "n_images",
    "n_computed",
    "n_reused",
    "n_workers",
    "utilisation",
    "n_bytes",
]


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """Return what FOLDER/summary.json says, or None where a run has not come to its end.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder) / SUMMARY
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): run `ray-ltdd run {path.parent / 'settings.yaml'}` again, which writes it anew.") from error
    return found if isinstance(found, dict) else None


def load_costs(paths: str | Path | Sequence[str | Path]) -> pd.DataFrame:
    """Load the stages' costs of all finished runs below some folders.

    Returns:
        one row a run and stage: `run` (folder's name), `fingerprint`, `stage`, `wall_seconds` (in that run), `compute_seconds` (that its artifacts
        took when they were computed), `n_images` passed, `n_computed` and `n_reused` artifacts, `n_workers` (0: the process itself), `utilisation`
        (share of the workers' time; NaN without), `n_bytes` that workers wrote and were sent. NaN where a run of an earlier version says nothing.

    Raises:
        InputError: a folder does not exist, or a summary is damaged.
    """
    return pd.DataFrame([row for folder in _finished(paths) for row in _rows(folder)], columns=COLUMNS)


def stage_figures(paths: str | Path | Sequence[str | Path]) -> dict[str, Figure]:
    """Draw the stages' costs of every finished run below some folders: name of the run -> figure of `stage_costs`.

    Raises:
        InputError: a folder does not exist, or a summary is damaged.
    """
    known = {folder.name: (read_summary(folder) or {}).get("stages") for folder in _finished(paths)}
    return {name: stage_costs(stages, f"Cost of the stages, {name}") for name, stages in known.items() if stages}


def bytes_figures(rows: pd.DataFrame) -> dict[str, Figure]:
    """Draw test accuracy for the bytes kept where sizes differ by more than a tenth: title -> figure, one a benchmark, IF and network.

    Args:
        rows: of `load_results`.
    """
    figures = {}
    tested = rows[(rows["part"] == "test") & (rows["method"] == "distilled")]
    for (benchmark, factor, network), own in tested.groupby(["benchmark", "imbalance_factor", "network"], sort=False):
        table = accuracy_and_bytes(own)
        # below a tenth the difference is that of PNG's compression, not of a choice
        if table["bytes"].max() > 1.1 * table["bytes"].min():
            title = f"{benchmark}, IF {factor:g}, {network}: accuracy for the bytes kept"
            figures[title] = accuracy_over_bytes(table, title)
    return figures


def worker_gains(costs: pd.DataFrame) -> pd.DataFrame:
    """Return what more workers gained in stages that were computed afresh by several numbers of them, under the same settings.

    Args:
        costs: of `load_costs`.

    Returns:
        one row a run and stage: `fingerprint`, `stage`, `n_workers`, `wall_seconds`, `speedup` (seconds with the fewest workers over its own) and
        `efficiency` (speedup over the ratio of workers). Empty where no stage was computed by two numbers of workers.
    """
    fresh = costs[(costs["n_workers"] > 0) & (costs["n_reused"] == 0) & (costs["wall_seconds"] > 0)].sort_values("n_workers")
    keys = ["fingerprint", "stage"]
    several = fresh[fresh.groupby(keys)["n_workers"].transform("nunique") > 1]
    first = several.groupby(keys)[["wall_seconds", "n_workers"]].transform("first")
    speedup = first["wall_seconds"] / several["wall_seconds"]
    gains = several.assign(speedup=speedup, efficiency=speedup * first["n_workers"] / several["n_workers"])
    return gains.sort_values(["fingerprint", "stage", "n_workers"])[[*keys, "n_workers", "wall_seconds", "speedup", "efficiency"]].reset_index(
        drop=True
    )


def scaling_figures(costs: pd.DataFrame) -> dict[str, Figure]:
    """Return one figure of `worker_scaling` for each set of equal settings that several numbers of workers computed: fingerprint -> figure."""
    gains = worker_gains(costs)
    return {str(key): worker_scaling(own, f"Speedup over the fewest workers, {key}") for key, own in gains.groupby("fingerprint", sort=False)}


def _finished(paths: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """The folders of finished runs."""
    for folder in [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}: give one that `ray-ltdd run` or `ray-ltdd sweep` made.")
        for place, folders, names in os.walk(folder):
            folders[:] = [] if is_store(Path(place)) else sorted(name for name in folders if not name.startswith("."))
            if SUMMARY in names:
                yield Path(place)


def _rows(folder: Path) -> list[dict[str, Any]]:
    summary = read_summary(folder) or {}
    known = {"run": folder.name, "fingerprint": summary.get("fingerprint")}
    return [{**known, "stage": stage, **record} for stage, record in (summary.get("stages") or {}).items()]
