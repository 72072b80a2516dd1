"""Decode a dataset once, in bounded memory, into a folder that every later run maps.

Shapes: N images of a part, K classes, C channels, H W pixels (uint8).
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from pydantic import Field

from ray_ltdd.data.catalogue import Benchmark, find_benchmark
from ray_ltdd.data.pixels import decode
from ray_ltdd.data.prepared import (
    ROOT_SETTING,
    NpyWriter,
    PreparedDataset,
    is_whole,
    new_folder,
    open_prepared,
    write_record,
)
from ray_ltdd.data.sources import open_source
from ray_ltdd.data.sources.base import Contents, Part, Source, reading
from ray_ltdd.errors import InputError
from ray_ltdd.seeding import generator
from ray_ltdd.settings import Place, Settings
from ray_ltdd.storage import readable_os_error

# Raise when the decoded pixels would change: older folders are then no longer found.
FORMAT_VERSION = 2
# Images decoded before they are written: 38 MB at 224 px.
CHUNK_IMAGES = 256
# The held-out test part is one and the same for every run.
_TEST_PART_SEED = 0

_log = logging.getLogger(__name__)


class DataConfig(Settings):
    """Which images, from where, at which size."""

    dataset: str = Field("digits_lt", description="Name of the dataset: a benchmark of ray_ltdd.data.catalogue, image_folder or parquet.")
    path: Place | None = Field(
        None,
        description="The user's files (folder, zip or Parquet file); if not given, ROOT/sources/DATASET.",
    )
    root: Place = Field("~/.cache/ray_ltdd/data", description="Folder for decoded datasets (N x C x H x W bytes each) and downloads.")
    image_size: int | None = Field(None, description="Side of the decoded images in pixels; the dataset's own if not given.", ge=8, le=512)
    test_per_class: int | None = Field(
        None,
        description="Images per class held out for testing, for a source without a test part (digits_lt: 50).",
        ge=1,
    )


@dataclass(frozen=True, eq=False)
class _Selection:
    """The images of `part` at the ascending positions `index_N`, which become one part of the prepared dataset."""

    part: Part
    index_N: np.ndarray


@dataclass(frozen=True)
class _Task:
    """What is to be decoded, and `folder`, whose name tells it from everything else."""

    benchmark: Benchmark
    source: Source
    image_size: int
    test_per_class: int | None
    key_inputs: dict[str, object]
    folder: Path


def prepare_dataset(config: DataConfig, on_progress: Callable[[int, int], None] | None = None) -> PreparedDataset:
    """Return the dataset of `config`, decoding it first if nobody has; a second caller waits for the first.

    Args:
        config: which images, from where, at which size.
        on_progress: called with (images decoded, images in all) after every chunk.

    Raises:
        InputError: the dataset is unknown, missing, damaged or inconsistent, or `config.root` cannot be written.
    """
    task = _plan(config)
    # Looked at before the lock is taken, so that a dataset on a read-only disk can be used.
    if is_whole(task.folder):
        return open_prepared(task.folder.absolute())
    root, lock = task.folder.parent, FileLock(f"{task.folder}.lock")
    with readable_os_error(root, ROOT_SETTING):
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        if not is_whole(task.folder):
            if task.folder.exists():
                _log.warning("%s is damaged and is prepared again", task.folder)
            _write(task, on_progress)
    finally:
        lock.release()
    return open_prepared(task.folder.absolute())


def _plan(config: DataConfig) -> _Task:
    benchmark = find_benchmark(config.dataset)
    image_size = benchmark.resolve_image_size(config.image_size)
    root = Path(config.root).absolute()
    source = open_source(benchmark, config.path, root)
    test_per_class = config.test_per_class or benchmark.test_per_class
    with reading(source.description):
        identity = source.identity()
    key_inputs = {
        "format": FORMAT_VERSION,
        "dataset": benchmark.name,
        "image_size": image_size,
        "test_per_class": test_per_class,
        "source": identity,
    }
    key = hashlib.sha256(json.dumps(key_inputs, sort_keys=True).encode()).hexdigest()[:12]
    folder = root / f"{benchmark.name}-{image_size}px-{key}"
    return _Task(benchmark, source, image_size, test_per_class, key_inputs, folder)


def _write(task: _Task, on_progress: Callable[[int, int], None] | None) -> None:
    contents = _load(task)
    selections = _select(contents, task.test_per_class, task.source.description)
    total, done = sum(len(selection.index_N) for selection in selections.values()), 0
    with new_folder(task.folder) as temporary:
        files: dict[str, dict[str, object]] = {}
        for part, selection in selections.items():
            for count in _write_part(temporary, part, selection, task, files):
                done += count
                if on_progress is not None:
                    on_progress(done, total)
        record = {
            "dataset": task.benchmark.name,
            "class_names": contents.class_names,
            "image_size": task.image_size,
            "channels": task.benchmark.channels,
            "source": task.source.description,
            "images": {part: len(selection.index_N) for part, selection in selections.items()},
            "fingerprint": _fingerprint(contents.class_names, files),
            "files": files,
            "key_inputs": task.key_inputs,
        }
        with readable_os_error(task.folder.parent, ROOT_SETTING):
            write_record(temporary, record)


def _load(task: _Task) -> Contents:
    with reading(task.source.description):
        contents = task.source.load()
    expected, found = task.benchmark.class_count, len(contents.class_names)
    if expected not in (None, found):
        raise InputError(
            f"{task.source.description} has {found} classes but {task.benchmark.name} has {expected}: "
            "complete it, or use data.dataset=image_folder or parquet for your own"
        )
    return contents


def _select(contents: Contents, test_per_class: int | None, where: str) -> dict[str, _Selection]:
    """Say which images of the source are trained on and which are tested on."""
    train = contents.train
    if contents.test is not None:
        if test_per_class is not None:
            raise InputError(f"data.test_per_class={test_per_class} is given but {where} has its own test part: remove data.test_per_class")
        test = contents.test
        return {
            "train": _Selection(train, np.arange(len(train.label_N))),
            "test": _Selection(test, np.arange(len(test.label_N))),
        }
    if test_per_class is None:
        raise InputError(
            f"{where} has no test part: add one (a folder, or Parquet files, called test, val or validation), "
            "or set data.test_per_class to hold out that many images of each class"
        )
    held_out_N = _draw_test_part(train.label_N, contents.class_names, test_per_class)
    kept_N = np.setdiff1d(np.arange(len(train.label_N)), held_out_N)
    return {"train": _Selection(train, kept_N), "test": _Selection(train, held_out_N)}


def _draw_test_part(label_N: np.ndarray, class_names: tuple[str, ...], test_per_class: int) -> np.ndarray:
    """Return the ascending positions (int64) of `test_per_class` images of each class."""
    drawn = []
    for k, name in enumerate(class_names):
        index_N = np.flatnonzero(label_N == k)
        if len(index_N) <= test_per_class:
            raise InputError(
                f"class {name!r} has {len(index_N)} images, so data.test_per_class={test_per_class} leaves none to train on: lower it or add images"
            )
        order_N = torch.randperm(len(index_N), generator=generator("cpu", _TEST_PART_SEED, "test_part", k)).numpy()
        drawn.append(index_N[order_N[:test_per_class]])
    return np.sort(np.concatenate(drawn))


def _write_part(folder: Path, part: str, selection: _Selection, task: _Task, files: dict[str, dict[str, object]]) -> Iterator[int]:
    """Write one part, yielding the number of images in each chunk; afterwards `files` has the records of its files."""
    root, shape = task.folder.parent, (task.benchmark.channels, task.image_size, task.image_size)
    count = len(selection.index_N)
    with readable_os_error(root, ROOT_SETTING):
        writer = NpyWriter(folder / f"{part}_labels.npy", (count,), np.int64)
        writer.append(selection.part.label_N[selection.index_N].astype(np.int64))
        files[f"{part}_labels.npy"] = writer.close()
        writer = NpyWriter(folder / f"{part}_images.npy", (count, *shape), np.uint8)
    for image_NCHW in _decoded_chunks(selection, task.image_size, task.benchmark.channels):
        with readable_os_error(root, ROOT_SETTING):
            writer.append(image_NCHW)
        yield len(image_NCHW)
    with readable_os_error(root, ROOT_SETTING):
        files[f"{part}_images.npy"] = writer.close()


def _decoded_chunks(selection: _Selection, image_size: int, channels: int) -> Iterator[np.ndarray]:
    """Yield uint8 `[up to CHUNK_IMAGES, C, H, W]` in order; only one chunk, encoded and decoded, is in memory."""
    encoded = selection.part.images(selection.index_N)
    # PIL decodes and resizes outside the interpreter's lock, and a tree on a network disk needs reads in flight.
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        while chunk := list(islice(encoded, CHUNK_IMAGES)):
            yield np.stack(list(pool.map(lambda image: decode(image, image_size, channels), chunk)))


def _fingerprint(class_names: tuple[str, ...], files: dict[str, dict[str, object]]) -> str:
    content = [list(class_names), sorted((name, file["sha256"]) for name, file in files.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
