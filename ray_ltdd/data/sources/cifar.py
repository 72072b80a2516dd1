"""CIFAR-10 and CIFAR-100: torchvision's archive, downloaded where there is internet, or a folder the user names.

Shapes: N images, H W pixels, C channels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ray_ltdd.data.sources.base import ArrayPart, Contents, Source, file_identity
from ray_ltdd.data.sources.parquet import ParquetSource
from ray_ltdd.errors import InputError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

ARCHIVES = {"cifar10_lt": "CIFAR10", "cifar100_lt": "CIFAR100"}


def archive_of(dataset: str) -> "type[CIFAR10]":
    """torchvision's class for a key of `ARCHIVES`."""
    # imports torch's compiler, seconds that a process without this source need not wait for
    import torchvision.datasets

    archive: type[CIFAR10] = getattr(torchvision.datasets, ARCHIVES[dataset])
    return archive


class TorchvisionSource:
    """The pickled batches torchvision reads and verifies by MD5, in `root`/`archive.base_folder`.

    Args:
        archive: torchvision's dataset class.
        root: folder that holds the batches' folder.
        download: fetch the archive if the verified files are not there; without it the source is what stands in `root`.
        how_to_get: the remedy at the end of an error's sentence.
    """

    def __init__(self, archive: "type[CIFAR10]", root: Path, download: bool, how_to_get: str) -> None:
        self._archive, self._root, self._download, self._how_to_get = archive, root, download, how_to_get
        self.description = f"torchvision's {archive.__name__} in {root}"

    def identity(self) -> dict[str, object]:
        """Return the archive's name, and place, bytes and time of its files where they are the user's."""
        identity: dict[str, object] = {"torchvision": self._archive.__name__}
        if not self._download:
            identity["files"] = file_identity(sorted((self._root / self._archive.base_folder).iterdir()))
        return identity

    def load(self) -> Contents:
        """Return the classes and both parts, uint8 `[N, 32, 32, 3]` (150 MB for all of CIFAR).

        Raises:
            InputError: the files are missing or damaged and cannot be downloaded.
        """
        try:
            parts = [self._archive(str(self._root), train=train, download=self._download) for train in (True, False)]
        except (
            OSError,
            RuntimeError,
        ) as error:  # torchvision: RuntimeError for a wrong checksum, URLError (an OSError) for no internet
            action = "downloaded" if self._download else "read"
            raise InputError(f"{self._archive.__name__} could not be {action} ({error}): {self._how_to_get}") from error
        train, test = [ArrayPart(np.asarray(part.targets, np.int64), part.data) for part in parts]
        return Contents(tuple(parts[0].classes), train, test)


def cifar_source(dataset: str, path: Path | None, place: Path, how_to_get: Callable[[], str]) -> Source:
    """Return the source for `dataset` ("cifar10_lt" or "cifar100_lt").

    Args:
        dataset: key of `ARCHIVES`.
        path: `data.path`: a folder with Parquet files, or the folder torchvision's batches are in, or the one above;
            None for torchvision's archive in `place`.
        place: the folder torchvision downloads to.
        how_to_get: gives the remedy at the end of an error's sentence.

    Raises:
        InputError: `path` holds neither.
    """
    archive = archive_of(dataset)
    if path is None:
        return TorchvisionSource(archive, place, download=True, how_to_get=how_to_get())
    if path.suffix == ".parquet" or any(path.glob("*.parquet")) or any(path.glob("data/*.parquet")):
        return ParquetSource(path)
    for root in (path, path.parent):
        if (root / archive.base_folder).is_dir() and path in (root, root / archive.base_folder):
            return TorchvisionSource(archive, root, download=False, how_to_get=how_to_get())
    raise InputError(f"data.path={path} holds neither Parquet files nor {archive.base_folder}: {how_to_get()}")
