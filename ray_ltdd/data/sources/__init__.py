"""One reader per kind of source, and the one place that says which dataset uses which."""

from pathlib import Path

from ray_ltdd.data.catalogue import Benchmark
from ray_ltdd.data.sources.base import Source
from ray_ltdd.data.sources.cifar import ARCHIVES, cifar_source
from ray_ltdd.data.sources.digits import DigitsSource
from ray_ltdd.data.sources.image_folder import ImageFolderSource
from ray_ltdd.data.sources.imagenet import imagenet_source
from ray_ltdd.data.sources.parquet import ParquetSource
from ray_ltdd.data.sources.tiny_imagenet import TinyImageNetSource
from ray_ltdd.errors import InputError

__all__ = ["open_source"]


def open_source(benchmark: Benchmark, path: str | None, root: Path) -> Source:
    """Return the reader of `benchmark`'s images; nothing is decoded or downloaded yet.

    Args:
        benchmark: which dataset.
        path: `data.path`, the user's files; None for `root`/sources/<name>.
        root: `data.root`.

    Raises:
        InputError: the files are not there; the message says what to download from where and where to put it.
    """
    name, place = benchmark.name, root / "sources" / benchmark.name
    if name == "digits_lt":
        if path is not None:
            raise InputError(f"data.path={path} is given but digits_lt comes with scikit-learn: remove data.path")
        return DigitsSource()
    given = None if path is None else Path(path).expanduser()
    if given is not None and not given.exists():
        raise InputError(f"data.path={path} does not exist: {benchmark.how_to_get(place)}")
    if name in ARCHIVES:
        return cifar_source(name, given, place, lambda: benchmark.how_to_get(place))
    if benchmark.class_count is None and given is None:
        raise InputError(f"data.dataset={name} needs data.path: {benchmark.how_to_get(place)}")
    return _file_source(benchmark, given or place, benchmark.how_to_get(place))


def _file_source(benchmark: Benchmark, path: Path, how_to_get: str) -> Source:
    if benchmark.name == "tiny_imagenet_lt":
        return TinyImageNetSource(path, how_to_get)
    if benchmark.name == "parquet":
        return ParquetSource(path)
    if benchmark.name == "image_folder":
        return ImageFolderSource(path)
    if not (path / "train").is_dir():
        raise InputError(f"{benchmark.name} is not at {path}: {how_to_get}")
    return imagenet_source(path, benchmark.class_count or 0)
