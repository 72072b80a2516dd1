"""Result rows as CSV, for programs that read nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ray_ltdd.results.load import load_results
from ray_ltdd.results.rows import SCHEMA
from ray_ltdd.storage import atomic_file, readable_os_error

STATES = ("complete", "pruned", "failed")


def csv_text(folder: Path) -> str:
    """Return all rows below a folder as CSV with a heading: the columns of `load_results`, lists and mappings as JSON, nothing for null.

    Raises:
        InputError: there are no rows there.
    """
    return str(_flat(load_results(folder, STATES)).to_csv(index=False))


def write_csv(folder: Path, path: Path) -> int:
    """Write all rows below a folder as CSV, see `csv_text`; return their number.

    Raises:
        InputError: there are no rows there, or the file cannot be written.
    """
    frame = load_results(folder, STATES)
    with readable_os_error(path, "--output"), atomic_file(path) as temporary:
        _flat(frame).to_csv(temporary, index=False)
    return len(frame)


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    # pandas makes whole numbers with a null among them floats
    whole = {field.name: "Int64" for field in SCHEMA if pa.types.is_integer(field.type)}
    return frame.map(_plain).astype(whole)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | list | dict):
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)
    return value
