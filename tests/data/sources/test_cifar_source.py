import hashlib
import pickle

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from ray_ltdd.data.catalogue import find_benchmark
from ray_ltdd.data.sources import cifar, open_source
from ray_ltdd.data.sources.cifar import TorchvisionSource
from ray_ltdd.data.sources.parquet import ParquetSource
from ray_ltdd.errors import InputError


def write_batch(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path.name, hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small_archive(tmp_path):
    """torchvision's own reader over two small batches: everything but its list of checksums is the real class."""
    pixel_ND = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    folder = tmp_path / CIFAR10.base_folder

    class SmallArchive(CIFAR10):
        url = "http://127.0.0.1:9/none.tar.gz"
        train_list = [write_batch(folder / "data_batch_1", {"data": pixel_ND[:4], "labels": [0, 1, 1, 0]})]  # noqa: RUF012
        test_list = [write_batch(folder / "test_batch", {"data": pixel_ND[4:], "labels": [1, 0]})]  # noqa: RUF012
        meta = dict(zip(("filename", "md5"), write_batch(folder / "m", {"label_names": ["cat", "dog"]}), strict=True)) | {"key": "label_names"}

    return SmallArchive, tmp_path, pixel_ND


def test_torchvisions_batches(small_archive):
    archive, root, pixel_ND = small_archive
    source = TorchvisionSource(archive, root, download=False, how_to_get="")
    contents = source.load()
    assert contents.class_names == ("cat", "dog")
    assert contents.train.label_N.tolist() == [0, 1, 1, 0] and contents.test.label_N.tolist() == [1, 0]
    image_HWC = np.asarray(next(contents.train.images(np.array([3]))).open())
    np.testing.assert_array_equal(image_HWC.transpose(2, 0, 1).ravel(), pixel_ND[3])
    assert len(source.identity()["files"]) == 3


def test_damaged_batch(small_archive):
    archive, root, _ = small_archive
    (root / archive.base_folder / "test_batch").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"SmallArchive could not be read .*: fetch it"):
        TorchvisionSource(archive, root, download=False, how_to_get="fetch it").load()


def test_no_internet(small_archive, tmp_path):
    archive, _, _ = small_archive
    with pytest.raises(InputError, match=r"SmallArchive could not be downloaded .*: fetch it"):
        TorchvisionSource(archive, tmp_path / "empty", download=True, how_to_get="fetch it").load()


@pytest.mark.parametrize(("name", "folder"), [("cifar10_lt", "cifar-10-batches-py"), ("cifar100_lt", "cifar-100-python")])
def test_what_a_path_means(tmp_path, write_parquet, name, folder):
    (tmp_path / "pickles" / folder).mkdir(parents=True)
    write_parquet(tmp_path / "files" / "train.parquet", [0, 1])
    (tmp_path / "empty").mkdir()
    benchmark = find_benchmark(name)
    for path in (tmp_path / "pickles", tmp_path / "pickles" / folder):
        assert isinstance(open_source(benchmark, str(path), tmp_path), TorchvisionSource)
    assert isinstance(open_source(benchmark, str(tmp_path / "files"), tmp_path), ParquetSource)
    assert isinstance(open_source(benchmark, None, tmp_path), TorchvisionSource)
    with pytest.raises(InputError, match=f"data.path=.*empty holds neither Parquet files nor {folder}: download https://"):
        open_source(benchmark, str(tmp_path / "empty"), tmp_path)
    with pytest.raises(InputError, match=r"data.path=/no/where does not exist: download https://"):
        open_source(benchmark, "/no/where", tmp_path)
    assert cifar.archive_of(name).base_folder == folder
