"""What every reader offers: class names, labels, and images that are decoded only when asked for.

Shapes: N images of a part, H W pixels, C channels, K classes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ray_ltdd.errors import InputError


@dataclass(frozen=True)
class EncodedImage:
    """One image, not yet decoded: `where` names it in an error, `open` gives the PIL image (from any thread)."""

    where: str
    open: Callable[[], Image.Image]


class Part(Protocol):
    """The training or the test images of a source."""

    @property
    def label_N(self) -> np.ndarray:
        """Class of each image, int64 `[N]`, each in 0..K-1."""
        ...

    def images(self, index_N: np.ndarray) -> Iterator[EncodedImage]:
        """Yield the images at the ascending positions `index_N` (int64), holding only a few in memory at a time."""
        ...


@dataclass(frozen=True)
class Contents:
    """What a source holds: the K class names, the training part, and the test part or None."""

    class_names: tuple[str, ...]
    train: Part
    test: Part | None


class Source(Protocol):
    """Where a dataset's images come from. Building one reads nothing."""

    @property
    def description(self) -> str:
        """What the user gave, for messages and records."""
        ...

    def identity(self) -> dict[str, object]:
        """Return plain data that changes when the source's files do or lie elsewhere, without reading them.

        Raises:
            InputError: the files are not there.
        """
        ...

    def load(self) -> Contents:
        """Read names and labels, decode nothing.

        Raises:
            InputError: the source is missing, damaged or inconsistent.
        """
        ...


@dataclass(frozen=True)
class FilePart:
    """A part whose images are files of their own: `label_N` int64 `[N]` and N paths."""

    label_N: np.ndarray
    paths: Sequence[Path]

    def images(self, index_N: np.ndarray) -> Iterator[EncodedImage]:
        """Yield the files at `index_N`."""
        for i in index_N:
            yield EncodedImage(str(self.paths[i]), partial(Image.open, self.paths[i]))


@dataclass(frozen=True)
class ArrayPart:
    """A part that is decoded already: `label_N` int64 `[N]`, `image_N` uint8 `[N, H, W]` (grey) or `[N, H, W, 3]`."""

    label_N: np.ndarray
    image_N: np.ndarray

    def images(self, index_N: np.ndarray) -> Iterator[EncodedImage]:
        """Yield the arrays at `index_N`."""
        for i in index_N:
            yield EncodedImage(f"image {i}", partial(Image.fromarray, self.image_N[i]))


@contextmanager
def reading(what: object) -> Iterator[None]:
    """Turn an `OSError` of the body (an unreadable file, a link to nothing or to itself) into an `InputError` that says `what` cannot be read."""
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}: restore it (or what it links to), make it readable or remove it" if error.filename else ""
        raise InputError(f"{what} cannot be read: {error.strerror or error}{where}") from error


def file_identity(paths: Iterable[Path]) -> list[list[object]]:
    """Return place, bytes and modification time (ns) of each file or folder.

    The place is the resolved path: two datasets may agree in all names, sizes and times (such as unpacked bitmaps).
    """
    stats = [(path, path.stat()) for path in paths]
    return [[str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def check_contents(contents: Contents, where: object, remedy: str = "add images") -> Contents:
    """Return `contents` unchanged if every class has an image in each part and a name that can be written.

    Args:
        contents: to be checked.
        where: the source's files, for the message.
        remedy: what else than to remove the class.

    Raises:
        InputError: there are fewer than two classes; one has no image, or a name that is not Unicode (a folder's from an old archive is such).
    """
    if len(contents.class_names) < 2:
        raise InputError(f"{where} has a single class, {contents.class_names[0]!r}: add at least one more, there is nothing to tell apart")
    for name in contents.class_names:
        if name.encode(errors="ignore").decode() != name:
            raise InputError(f"class {name!r} in {where} has a name that is not UTF-8: rename it")
    for name, part in (("training", contents.train), ("test", contents.test)):
        if part is None:
            continue
        count_K = np.bincount(part.label_N, minlength=len(contents.class_names))
        empty = [contents.class_names[k] for k in np.flatnonzero(count_K == 0)]
        if empty:
            more = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
            raise InputError(f"class {empty[0]!r}{more} has no {name} image in {where}: {remedy} or remove the class")
    return contents
