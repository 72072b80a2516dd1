"""Result rows: one per tested network, one schema, append-only Parquet files that any number of writers may add to.

A row's identity is the digest of the artifact it reports and, in a sweep, the trial it belongs to, so the same result is never written twice.
A sweep's trial that failed before it had a network to test has one row without accuracies.

Version 2 added `n_tested`, `state` and what a sweep knows of its rows; readers give rows of version 1 null there (`state` null means complete).
All files of any number of folders are one table:

    pyarrow.dataset.dataset(files, schema=SCHEMA).to_table()
    pandas.read_parquet(files, schema=SCHEMA)
    duckdb: SELECT * FROM read_parquet('runs/**/rows-*.parquet', union_by_name = true)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.storage import atomic_file, readable_os_error

SCHEMA_VERSION = 2

SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32()),
        pa.field("run", pa.string(), metadata={"meaning": "folder name of the run"}),
        pa.field("fingerprint", pa.string(), metadata={"meaning": "of the resolved settings"}),
        pa.field("artifact", pa.string(), metadata={"meaning": "digest of the artifact reported, the row's identity"}),
        pa.field("created", pa.string(), metadata={"meaning": "when it was computed, UTC"}),
        pa.field("benchmark", pa.string()),
        pa.field("split", pa.string(), metadata={"meaning": "name of the long-tailed split"}),
        pa.field("split_fingerprint", pa.string()),
        pa.field("imbalance_factor", pa.float64(), metadata={"meaning": "largest class over smallest, as drawn"}),
        pa.field("images_per_class", pa.int32()),
        pa.field(
            "method",
            pa.string(),
            metadata={"meaning": "trained on: distilled, random, whole; or the expert itself: observer, teacher"},
        ),
        pa.field("network", pa.string(), metadata={"meaning": "usual name, such as ConvNet-3"}),
        pa.field("number", pa.int32(), metadata={"meaning": "number of the seed"}),
        pa.field("labels", pa.string(), metadata={"meaning": "one, stored, online (soft), or one-hot"}),
        pa.field("part", pa.string(), metadata={"meaning": "tested on: test, validation or balanced_train"}),
        pa.field("top1", pa.float64(), metadata={"unit": "share"}),
        pa.field("top5", pa.float64(), metadata={"unit": "share"}),
        pa.field("many", pa.float64(), metadata={"unit": "share", "meaning": "mean over many-shot classes"}),
        pa.field("medium", pa.float64(), metadata={"unit": "share"}),
        pa.field("few", pa.float64(), metadata={"unit": "share"}),
        pa.field("group_rule", pa.string()),
        pa.field("per_class", pa.list_(pa.float64()), metadata={"unit": "share"}),
        pa.field("count_per_class", pa.list_(pa.int64()), metadata={"meaning": "training images"}),
        pa.field("seconds", pa.float64(), metadata={"unit": "s", "meaning": "to compute this artifact"}),
        pa.field(
            "stage_seconds",
            pa.map_(pa.string(), pa.float64()),
            metadata={"unit": "s", "meaning": "of the run's stages when computed"},
        ),
        pa.field(
            "peak_memory_mb",
            pa.float64(),
            metadata={"unit": "MB", "meaning": "of the process until the artifact was written"},
        ),
        pa.field("image_bytes", pa.int64(), metadata={"meaning": "PNG bytes of the distilled images; null for others"}),
        pa.field(
            "label_bytes",
            pa.int64(),
            metadata={"meaning": "bytes of soft labels a user must keep (online: of the teachers)"},
        ),
        pa.field("device", pa.string()),
        pa.field("versions", pa.string(), metadata={"meaning": "JSON"}),
        pa.field("settings", pa.string(), metadata={"meaning": "all resolved settings, JSON"}),
        pa.field("n_tested", pa.int64(), metadata={"meaning": "images it was tested on"}),
        pa.field("state", pa.string(), metadata={"meaning": "complete; pruned: tested before its last epoch, and stopped; failed"}),
        pa.field("epochs", pa.int32(), metadata={"meaning": "of the student's training before it was tested; null for experts"}),
        pa.field("sweep", pa.string(), metadata={"meaning": "name of the sweep; null outside of one, as all that follows"}),
        pa.field("cell", pa.string(), metadata={"meaning": "the sweep's cell, such as cifar10_lt-if100-ipc10"}),
        pa.field("study", pa.string(), metadata={"meaning": "name of the cell's study in the sweep's journal"}),
        pa.field("role", pa.string(), metadata={"meaning": "trial; or winner, defaults: a final run, on the full split and the test part"}),
        pa.field("trial", pa.int32(), metadata={"meaning": "number in the study; of a winner: the trial whose point it has; null for defaults"}),
        pa.field("params", pa.string(), metadata={"meaning": "the searched parameters and their values, JSON"}),
        pa.field("objectives", pa.list_(pa.float64()), metadata={"meaning": "the trial's values in the study"}),
        pa.field("reason", pa.string(), metadata={"meaning": "why it failed"}),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

IDENTITY = ("artifact", "fingerprint", "method", "sweep", "study", "role", "trial")
"""Columns in which two rows agree if and only if they report the same result."""


def append_rows(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Add rows to the folder as one Parquet file, named by the rows' identities; written whole or not at all.

    Rows that stand there already stay, unless what they report was computed anew (its artifact had been lost): then the new ones take their place.

    Raises:
        InputError: the folder cannot be written.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    # null is left out, so that rows outside of sweeps have the names they had in version 1
    identity = json.dumps([[row[name] for name in IDENTITY if row.get(name) is not None] for row in rows])
    path = folder / f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"
    with readable_os_error(folder):
        if not path.exists() or _created(path) != [row.get("created") for row in rows]:
            with atomic_file(path) as temporary:
                pq.write_table(table, temporary, compression="zstd")
    return path


def read_rows(folder: Path) -> pa.Table:
    """Read all rows of a results folder, each result once.

    Raises:
        InputError: a file is damaged.
    """
    table = pa.concat_tables([_read(path) for path in sorted(folder.glob("rows-*.parquet"))] or [SCHEMA.empty_table()])
    seen: set[tuple[Any, ...]] = set()
    keep = []
    for index, identity in enumerate(zip(*(table[name].to_pylist() for name in IDENTITY), strict=True)):
        if identity not in seen:
            seen.add(identity)
            keep.append(index)
    return table.take(pa.array(keep, pa.int64()))


def _created(path: Path) -> list[str | None] | None:
    """When the results in a file were computed; None where it is damaged, which is as good as none."""
    try:
        found: list[str | None] = pq.read_table(path, columns=["created"])["created"].to_pylist()
    except (pa.ArrowException, OSError):
        return None
    return found


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"the result rows {path} are damaged ({on_one_line(error)}): remove the file and run the same command again.") from error
