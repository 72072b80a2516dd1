"""Parquet in the schema of the Hugging Face hub: struct {bytes, path}, integer label, class names in the metadata.

Shapes: N images.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ray_ltdd.data.sources.base import Contents, EncodedImage, check_contents, file_identity
from ray_ltdd.errors import InputError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")
_BATCH_ROWS = 128


@dataclass(frozen=True)
class _Shard:
    """One file: its path, rows, column names, and class names (None where the metadata has none)."""

    path: Path
    row_count: int
    image_column: str
    label_column: str
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class _ParquetPart:
    label_N: np.ndarray
    shards: Sequence[_Shard]

    def images(self, index_N: np.ndarray) -> Iterator[EncodedImage]:
        start = 0
        for shard in self.shards:
            in_shard_N = index_N[(index_N >= start) & (index_N < start + shard.row_count)]
            yield from _shard_images(shard, in_shard_N - start)
            start += shard.row_count


class ParquetSource:
    """`path`/train*.parquet and test*.parquet (or val*.parquet), or in `path`/data, ordered by name; or one file.

    Args:
        path: the folder or the file. One file is a training part alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.description = f"Parquet in {path}"

    def _files(self) -> tuple[list[Path], list[Path]]:
        if self._path.is_file():
            return [self._path], []
        folder = self._path if any(self._path.glob("*.parquet")) else self._path / "data"
        train, test, validation = [sorted(folder.glob(f"{part}*.parquet")) for part in ("train", "test", "val")]
        if not train:
            raise InputError(f"{self._path} has no train*.parquet: put the training rows there, or set data.path to one Parquet file")
        return train, test or validation

    def identity(self) -> dict[str, object]:
        """Return place, bytes and time of the files.

        Raises:
            InputError: there is no train*.parquet.
        """
        train, test = self._files()
        return {"train": file_identity(train), "test": file_identity(test)}

    def load(self) -> Contents:
        """Read schema and labels; see `Source.load`. Without names in the metadata the classes are called 0, 1, ...

        Raises:
            InputError: a file is damaged, lacks a column or has it twice, has a label out of range, or other classes than the
            rest; there are no training rows; labels without names are not 0 to K-1.
        """
        train, test = [[_open_shard(path) for path in paths] for paths in self._files()]
        for shard in (*train, *test):
            if shard.class_names != train[0].class_names:
                raise InputError(f"{shard.path} has other class names than {train[0].path}: all files must carry the same list")
        class_names = train[0].class_names
        train_label_N = _read_labels(train, None if class_names is None else len(class_names))
        if len(train_label_N) == 0:
            raise InputError(f"{self._path} has no training rows: add some")
        if class_names is None:
            class_names = _numbers(train_label_N, self._path)
        test_part = _ParquetPart(_read_labels(test, len(class_names)), test) if test else None
        return check_contents(Contents(class_names, _ParquetPart(train_label_N, train), test_part), self._path)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable Parquet file ({reason}): it is damaged or truncated; fetch it again") from error


def _open_shard(path: Path) -> _Shard:
    with _parquet_errors(path), pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    for name in (*IMAGE_COLUMNS, *LABEL_COLUMNS):
        if schema.names.count(name) > 1:
            raise InputError(f"{path} has {schema.names.count(name)} columns called {name}: rename or remove all but one")
    image = _find_column(path, schema, IMAGE_COLUMNS, _is_image_struct, "a struct with a binary field bytes")
    label = _find_column(path, schema, LABEL_COLUMNS, pa.types.is_integer, "an integer")
    return _Shard(path, rows, image, label, _class_names(schema, label))


def _find_column(path: Path, schema: pa.Schema, names: tuple[str, str], fits: Callable[[pa.DataType], bool], kind: str) -> str:
    there = [name for name in names if name in schema.names]
    fitting = [name for name in there if fits(schema.field(name).type)]
    if fitting:
        return fitting[0]
    if there:
        raise InputError(f"{path} has a column {there[0]} that is {schema.field(there[0]).type}: it must be {kind}")
    raise InputError(f"{path} lacks a column {names[0]} (or {names[1]}), {kind}: its columns are {', '.join(schema.names)}")


def _is_image_struct(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    return pa.types.is_binary(kind.field("bytes").type) or pa.types.is_large_binary(kind.field("bytes").type)


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label_column]["names"]))
    except (KeyError, TypeError, ValueError):  # no such metadata, or a label that is a plain integer there
        return None


def _numbers(label_N: np.ndarray, path: Path) -> tuple[str, ...]:
    """Return "0" to "K-1" as the names of the K distinct labels; one huge label must not make as many names."""
    label_K = np.unique(label_N)
    if label_K[-1] >= len(label_K):
        shown = [*label_K[:3], "...", label_K[-1]] if len(label_K) > 4 else label_K
        raise InputError(
            f"{path} names no classes and its training labels are {', '.join(map(str, shown))}: number the {len(label_K)} classes "
            f"0 to {len(label_K) - 1}, or list their names in the hub's metadata"
        )
    return tuple(map(str, label_K))


def _read_labels(shards: Sequence[_Shard], class_count: int | None) -> np.ndarray:
    columns = [np.zeros(0, np.int64)]
    for shard in shards:
        with _parquet_errors(shard.path), pq.ParquetFile(shard.path) as file:
            column = file.read(columns=[shard.label_column]).column(0)
        value_N = column.fill_null(0).to_numpy()
        # Compared in the column's own type: a large uint64 becomes a valid label when it is cast.
        above_N = value_N >= (np.iinfo(np.int64).max if class_count is None else class_count)
        wrong_N = column.is_null().to_numpy() | (value_N < 0) | above_N
        if wrong_N.any():
            row = int(np.argmax(wrong_N))
            allowed = "0 to K-1 for K classes" if class_count is None else f"0 to {class_count - 1}"
            raise InputError(
                f"row {row} of {shard.path} has {shard.label_column} {column[row]}, which is not in {allowed}: correct or remove the row"
            )
        columns.append(value_N.astype(np.int64))
    return np.concatenate(columns)


def _shard_images(shard: _Shard, row_N: np.ndarray) -> Iterator[EncodedImage]:
    """Yield the images at the ascending rows `row_N`, streaming the file whatever the size of its row groups."""
    if len(row_N) == 0:
        return
    start = 0
    with _parquet_errors(shard.path), pq.ParquetFile(shard.path, buffer_size=1 << 20) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[shard.image_column]):
            bytes_column = batch.column(0).field("bytes")
            for row in row_N[(row_N >= start) & (row_N < start + len(batch))]:
                yield _encoded(shard.path, int(row), bytes_column[int(row) - start].as_py())
            start += len(batch)
            if start > row_N[-1]:
                return


def _encoded(path: Path, row: int, content: bytes | None) -> EncodedImage:
    if content is None:
        raise InputError(f"row {row} of {path} has no image bytes: write the images into the file, not only their paths")
    return EncodedImage(f"row {row} of {path}", lambda: Image.open(io.BytesIO(content)))
