"""Rows of the schema's first version beside those of the second: one table for every reader."""

import csv
import io
import json
import subprocess
import sys

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from synthetic_rows import BASE, row, settings_with, write

from ray_ltdd.errors import InputError
from ray_ltdd.results.aggregate import PAIR, aggregate, paired_test
from ray_ltdd.results.export import csv_text, write_csv
from ray_ltdd.results.load import load_results
from ray_ltdd.results.rows import IDENTITY, SCHEMA, SCHEMA_VERSION, append_rows, read_rows

N_FIRST_VERSION = 31
"""Columns of version 1, which come first."""

SWEEP = {"sweep": "s", "cell": "c", "study": "c-1234abcd", "role": "trial", "params": '{"recover.steps": 75}', "part": "validation"}


def write_first_version(folder, *rows):
    """Write rows as version 1 did."""
    schema = pa.schema(list(SCHEMA)[:N_FIRST_VERSION], metadata={"schema_version": "1"})
    (folder / "results").mkdir(parents=True)
    table = pa.Table.from_pylist([{name: values[name] for name in schema.names} for values in rows], schema=schema)
    pq.write_table(table, folder / "results" / "rows-0123456789abcdef.parquet")


def mixed(folder):
    """Two old rows, a trial's, a pruned and a failed one's; the folder they are in."""
    write_first_version(folder / "old", row(number=0, top1=0.5), row(number=1, top1=0.6))
    trials = [
        row(number=0, top1=0.7, schema_version=2, state="complete", trial=0, objectives=[0.7], n_tested=500, epochs=200, **SWEEP),
        row(number=0, top1=0.3, schema_version=2, state="pruned", trial=1, objectives=[0.3], epochs=20, artifact="part", **SWEEP),
        {
            **dict.fromkeys(SCHEMA.names),
            "fingerprint": "f",
            "method": "distilled",
            "state": "failed",
            "trial": 2,
            "reason": "the loss exploded",
            **SWEEP,
        },
    ]
    for values in trials:
        append_rows(folder / "new" / "results", [values])
    return folder


def test_the_first_versions_columns_have_not_moved():
    assert SCHEMA_VERSION == 2 and SCHEMA.names[N_FIRST_VERSION - 1] == "settings" and SCHEMA.names[N_FIRST_VERSION] == "n_tested"
    assert all(field.metadata for field in list(SCHEMA)[N_FIRST_VERSION:]), "every new column says what it means"


def test_all_readers_see_one_table(tmp_path):
    files = sorted(map(str, mixed(tmp_path).glob("**/rows-*.parquet")))
    assert len(files) == 4
    for frame in (
        ds.dataset(files, schema=SCHEMA).to_table().to_pandas(),
        pd.read_parquet(files, schema=SCHEMA),
        duckdb.sql(f"SELECT * FROM read_parquet('{tmp_path}/**/rows-*.parquet', union_by_name = true)").df(),
    ):
        assert len(frame) == 5 and set(frame.columns) == set(SCHEMA.names)
        assert sorted(frame["state"].fillna("null")) == ["complete", "failed", "null", "null", "pruned"]
        assert frame["top1"].sum() == 0.5 + 0.6 + 0.7 + 0.3 and frame["reason"].dropna().tolist() == ["the loss exploded"]
    assert len(read_rows(tmp_path / "old" / "results")) == 2 and read_rows(tmp_path / "old" / "results").schema == SCHEMA


def test_old_rows_are_complete_and_unfinished_ones_are_asked_for(tmp_path):
    frame = load_results(mixed(tmp_path))
    assert frame["top1"].tolist() == [0.7, 0.5, 0.6] and set(frame["state"]) == {"complete"}
    assert set(load_results(tmp_path, ("pruned", "failed"))["state"]) == {"pruned", "failed"}
    assert aggregate(frame, by=["part"])["n"].tolist() == [1, 2]


def test_the_same_network_in_two_roles_is_two_rows_and_twice_in_one_is_one(tmp_path):
    """A winner that is the defaults: both sides of the comparison have their row."""
    both = [row(number=n, artifact=f"a{n}", state="complete", **{**SWEEP, "role": role}) for role in ("winner", "defaults") for n in (0, 1)]
    for values in (both, both[:2], both[2:]):
        append_rows(tmp_path / "results", values)
    assert len(read_rows(tmp_path / "results")) == 4 and len(load_results(tmp_path)) == 4
    frame = load_results(tmp_path)
    test = paired_test(*(frame[frame["role"] == role] for role in ("winner", "defaults")), on=PAIR)
    assert (test.n, test.mean, test.p) == (2, 0.0, 1.0)
    assert set(IDENTITY) <= set(SCHEMA.names)


def test_rows_outside_of_sweeps_keep_their_files_names(tmp_path):
    """Version 1 hashed these three: the same result written by both is one file."""
    import hashlib

    values = row()
    identity = json.dumps([[values["artifact"], values["fingerprint"], values["method"]]])
    assert write(tmp_path, values).name == f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.parquet"


def test_csv_holds_every_row_and_lists_as_json(tmp_path):
    assert write_csv(mixed(tmp_path), tmp_path / "all.csv") == 5
    frame = pd.read_csv(tmp_path / "all.csv")
    assert (tmp_path / "all.csv").read_text() == csv_text(tmp_path)
    assert len(json.loads(frame["per_class"].dropna().iloc[0])) == 10 and {"Recover": 1.5} in [json.loads(text) for text in frame["stage_seconds"]]
    assert frame["state"].tolist().count("failed") == 1 and frame.loc[frame["state"] == "failed", "reason"].tolist() == ["the loss exploded"]


def test_whole_numbers_are_whole_in_csv(tmp_path):
    mixed(tmp_path)
    rows = list(csv.DictReader(io.StringIO(csv_text(tmp_path))))
    whole = [field.name for field in SCHEMA if pa.types.is_integer(field.type)]
    cells = {row[name] for row in rows for name in whole}
    assert "" in cells and {"0", "1"} & cells and all(cell.lstrip("-").isdigit() for cell in cells - {""}), cells


def test_a_folder_in_place_of_a_csv_file_is_named(tmp_path):
    mixed(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=rf"^--output={tmp_path / 'out'} is a folder: set --output to a file$"):
        write_csv(tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_many_processes_append_at_once(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'tests/results'); from pathlib import Path; from synthetic_rows import row;"
        "from ray_ltdd.results.rows import append_rows;"
        "[append_rows(Path(sys.argv[1]), [row(number=n % 5, trial=n % 5, state='complete', study='s')]) for n in range(10)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(read_rows(tmp_path)["trial"].to_pylist()) == [0, 1, 2, 3, 4]


def test_recipes_do_not_depend_on_what_a_sweep_adds(tmp_path):
    write(tmp_path / "a", row(settings=settings_with(recover__steps=75)))
    write(tmp_path / "b", row(settings=BASE, state="complete", **{**SWEEP, "part": "test"}, trial=3))
    assert load_results(tmp_path)["recipe"].nunique() == 1
