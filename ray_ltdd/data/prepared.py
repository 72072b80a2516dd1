"""The decoded dataset on disk: four memory-mapped arrays and a record beside them; written whole or not at all.

Shapes: N images of a part, K classes, C channels, H W pixels (uint8).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ray_ltdd.errors import InputError
from ray_ltdd.storage import readable_os_error

RECORD = "prepared.json"
PARTS = ("train", "test")
ROOT_SETTING = "data.root"


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images: `image_NCHW` uint8, read from disk as it is used, and their classes `label_N` int64."""

    image_NCHW: np.memmap
    label_N: np.ndarray


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """A dataset decoded once. Pickles as its folder's path: a worker maps the same file, it is sent no pixels.

    Attributes:
        folder: where it lies.
        dataset: the benchmark's name.
        class_names: K names; a label is a position here.
        image_size: H = W in pixels.
        channels: C.
        source: what it was decoded from.
        train: the training source, all of it; a long-tailed split draws from here.
        test: the test images.
        fingerprint: SHA-256 (hex) of decoded pixels, labels and class names, wherever they lie and came from.
    """

    folder: Path
    dataset: str
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    source: str
    train: ImageSet
    test: ImageSet
    fingerprint: str

    def __reduce__(self) -> tuple[object, ...]:
        return open_prepared, (self.folder,)


def open_prepared(folder: Path) -> PreparedDataset:
    """Map the prepared dataset in `folder`; costs milliseconds whatever its size.

    Raises:
        InputError: `folder` does not hold a whole one.
    """
    if not is_whole(folder):
        raise InputError(f"{folder} does not hold a whole prepared dataset: prepare it again (ray-ltdd data prepare)")
    record = json.loads((folder / RECORD).read_text())
    train, test = [ImageSet(np.load(folder / f"{part}_images.npy", mmap_mode="r"), np.load(folder / f"{part}_labels.npy")) for part in PARTS]
    return PreparedDataset(
        folder=folder,
        dataset=record["dataset"],
        class_names=tuple(record["class_names"]),
        image_size=record["image_size"],
        channels=record["channels"],
        source=record["source"],
        train=train,
        test=test,
        fingerprint=record["fingerprint"],
    )


def is_whole(folder: Path) -> bool:
    """Return whether `folder` has a readable record and each of its files the recorded size (contents are not read)."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
        return all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


class NpyWriter:
    """An .npy file written front to back, hashed on the way.

    Plain writes instead of a writable memory map: on a full disk a map kills the process (SIGBUS), a write raises.

    Args:
        path: the file.
        shape: of the whole array.
        dtype: of the whole array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self._digest = hashlib.sha256()
        self._missing = int(np.prod(shape)) * np.dtype(dtype).itemsize
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: np.ndarray) -> None:
        """Write the next rows.

        Raises:
            OSError: the disk is full, for one.
        """
        content = np.ascontiguousarray(rows).data.cast("B") if rows.size else b""
        self._digest.update(content)
        self._file.write(content)
        self._missing -= rows.nbytes

    def close(self) -> dict[str, object]:
        """Flush to the disk; return `bytes` of the file and `sha256` (hex) of the array's data.

        Raises:
            ValueError: other than the announced number of rows was written.
        """
        with self._file:
            if self._missing:
                raise ValueError(f"{self._file.name} lacks {self._missing} bytes of the announced shape")
            self._file.flush()
            os.fsync(self._file.fileno())
            return {"bytes": self._file.tell(), "sha256": self._digest.hexdigest()}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` when the body ends well and vanishes when it does not.

    The caller holds the lock of `folder`: what killed processes left beside it is removed.
    """
    for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    with readable_os_error(folder.parent, ROOT_SETTING):
        temporary.mkdir()
    try:
        yield temporary
        with readable_os_error(folder.parent, ROOT_SETTING):
            _sync(temporary)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_record(folder: Path, record: dict[str, object]) -> None:
    """Write `record` as the folder's JSON record and flush it to the disk."""
    with open(folder / RECORD, "w") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
