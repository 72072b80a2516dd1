"""Any number of runs and sweeps as one table."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.results.rows import IDENTITY, SCHEMA
from ray_ltdd.settings import WHERE_SECTIONS, WHERE_SETTINGS
from ray_ltdd.storage import is_store

_FILE = "__filename"
# what does not change what is measured: places, how work is shared, and how many seeds and baselines stand beside this one
_INCIDENTAL: dict[str, tuple[str, ...]] = {**WHERE_SETTINGS, "evaluate": ("seeds", "baselines")}
# the settings a network that saw no distilled image depends on
_BASELINE = ("data", "split", "distill", "evaluate", "compute")


def load_results(paths: str | Path | Sequence[str | Path], states: Sequence[str] = ("complete",)) -> pd.DataFrame:
    """Load the result rows of runs, of sweeps, or of folders that hold such, each result once.

    Args:
        paths: one or more folders, each searched through; artifact stores below them are not.
        states: of the rows wanted; `pruned` rows are accuracies at an earlier epoch, `failed` ones have none.

    Returns:
        the columns of `ray_ltdd.results.rows.SCHEMA` (accuracies are shares in [0, 1], `stage_seconds` is a dict of seconds, `settings` JSON
        text); and `folder` (the run's, as text), `seed` (int, the experiment's, from the settings) and `recipe` (12 hex digits: equal for
        rows whose settings differ in the seed, in names and in places alone). The index counts from 0; rows are in the order of paths.

    Raises:
        InputError: a path does not exist, or there are no rows in any. A damaged file is named in a warning and left out.
    """
    folders = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    files = [file for folder in folders for file in _row_files(folder)]
    if not files:
        places = ", ".join(map(str, folders)) or "no folder"
        raise InputError(f"there are no result rows in {places}: give folders that `ray-ltdd run` made, or one that holds such.")
    frame = _read(list(dict.fromkeys(files))).drop_duplicates(list(IDENTITY), ignore_index=True)
    # rows of version 1 have no state
    frame["state"] = frame["state"].fillna("complete")
    frame = frame[frame["state"].isin(list(states))].reset_index(drop=True)
    frame["folder"] = [_run_folder(name) for name in frame.pop(_FILE)]
    frame["stage_seconds"] = pd.Series([dict(pairs) if pairs is not None else {} for pairs in frame["stage_seconds"]], dtype=object)
    settings = parsed_settings(frame)
    frame["seed"] = [int(values.get("seed", 0)) for values in settings]
    keys = [recipe(values, method) for values, method in zip(settings, frame["method"], strict=True)]
    # text in an empty table, too
    frame["recipe"] = pd.Series(keys, index=frame.index, dtype=str)
    return frame


def parsed_settings(frame: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Return the settings of every row as nested plain data, in the rows' order; rows without settings give an empty one.

    Settings that came after a row was written have their defaults.
    """
    # it brings torch, which takes seconds: a caller without rows does not wait for it
    from ray_ltdd.results.completed import completed

    known: dict[str, Mapping[str, Any]] = {"{}": {}}
    texts = [text if isinstance(text, str) else "{}" for text in frame["settings"]]
    for text in texts:
        if text not in known:
            known[text] = completed(json.loads(text))
    return [known[text] for text in texts]


def setting(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return one setting of every row, such as `recover.steps`; None where a row has no such setting."""
    values = []
    for settings in parsed_settings(frame):
        found: Any = settings
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        values.append(found)
    return pd.Series(values, index=frame.index, name=name, dtype=object)


def recipe(settings: Mapping[str, Any], method: str, apart_from: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Return what rows have in common that differ in seeds alone: 12 hex digits over the settings that `method` depends on.

    Args:
        settings: all resolved settings, nested.
        method: the row's; baselines and experts do not depend on how images are distilled.
        apart_from: section -> names of settings that may differ too.
    """
    kept = {name: value for name, value in settings.items() if name not in ("seed", *WHERE_SECTIONS)}
    if method in ("random", "whole"):
        kept = {name: kept.get(name) for name in _BASELINE} | {"views": (settings.get("relabel") or {}).get("views")}
    elif method in ("observer", "teacher"):
        kept = {name: kept.get(name) for name in ("data", "split", "compute")} | _expert_settings(settings, method)
    workers = (settings.get("cluster") or {}).get("expert_workers", 1)
    if workers > 1 and method not in ("random", "whole"):
        # the one setting of how work is shared that changes an outcome
        kept["expert_workers"] = workers
    plain = {name: _without(value, (*_INCIDENTAL.get(name, ()), *apart_from.get(name, ()))) for name, value in kept.items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _teachers(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [expert for expert in (settings.get("teacher"), *(settings.get("more_teachers") or ())) if expert]


def _expert_settings(settings: Mapping[str, Any], role: str) -> dict[str, Any]:
    part = (settings.get("evaluate") or {}).get("part")
    others = {name: settings.get(name) for name in ("teacher_seeds", "more_teachers")} if role == "teacher" else {}
    if role == "teacher" and any(teacher.get("taught_by") for teacher in _teachers(settings)):
        others["observer"] = settings.get("observer")
    return {"expert": settings.get(role), "others": others, "part": part}


def _without(value: Any, names: tuple[str, ...]) -> Any:
    return {name: inner for name, inner in value.items() if name not in names} if isinstance(value, Mapping) else value


def _row_files(folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give one that `ray-ltdd run` or `ray-ltdd sweep` made.")
    for place, folders, names in os.walk(folder):
        folders[:] = [] if is_store(Path(place)) else sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.abspath(os.path.join(place, name)) for name in sorted(names) if name.startswith("rows-") and name.endswith(".parquet"))


def _run_folder(file: str) -> str:
    place = Path(file).parent
    return str(place.parent if place.name == "results" else place)


def _read(files: Sequence[str]) -> pd.DataFrame:
    try:
        table = _table(files)
    except (pa.ArrowException, OSError):
        table = _table(list(_sound(files)))
    return table.to_pandas()


def _table(files: Sequence[str]) -> pa.Table:
    if not files:
        return SCHEMA.empty_table().append_column(_FILE, pa.array([], pa.string()))
    return ds.dataset(list(files), schema=SCHEMA, format="parquet").to_table(columns=[*SCHEMA.names, _FILE])


def _sound(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        try:
            pq.read_table(file, schema=SCHEMA)
        except (pa.ArrowException, OSError) as error:
            remedy = "remove the file and run the same command again"
            warnings.warn(f"the result rows {file} are damaged and left out ({on_one_line(error)}): {remedy}.", stacklevel=4)
            continue
        yield file
