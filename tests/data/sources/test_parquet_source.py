import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_images import pixels

from ray_ltdd.data.sources.parquet import ParquetSource
from ray_ltdd.errors import InputError


def decoded(part, index):
    return [np.asarray(image.open()) for image in part.images(np.array(index))]


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_shards_are_read_in_order(tmp_path, write_parquet, image, label):
    names = {"image": image, "label": label}
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [1, 0], first=7, **names)
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 1, 0, 1, 0, 1], **names)
    write_parquet(tmp_path / "validation.parquet", [1, 0], first=20, **names)
    contents = ParquetSource(tmp_path).load()
    assert contents.class_names == ("cat", "dog")
    assert contents.train.label_N.tolist() == [0, 1, 1, 0, 1, 0, 1, 1, 0]
    wanted = [0, 2, 3, 6, 7, 8]
    for number, image_HWC in zip(wanted, decoded(contents.train, wanted), strict=True):
        np.testing.assert_array_equal(image_HWC, pixels(number))
    np.testing.assert_array_equal(decoded(contents.test, [1])[0], pixels(21))


def test_the_hubs_data_folder_and_test_before_validation(tmp_path, write_parquet):
    for part, first in (("train", 0), ("test", 10), ("validation", 20)):
        write_parquet(tmp_path / "data" / f"{part}.parquet", [0, 1], first=first)
    np.testing.assert_array_equal(decoded(ParquetSource(tmp_path).load().test, [0])[0], pixels(10))


def test_one_file_without_names(tmp_path, write_parquet):
    contents = ParquetSource(write_parquet(tmp_path / "mine.parquet", [0, 2, 1], names=None)).load()
    assert contents.class_names == ("0", "1", "2") and contents.test is None


def test_large_shards_stream(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 200, row_group_size=400)
    contents = ParquetSource(path).load()
    assert sum(1 for _ in contents.train.images(np.arange(400))) == 400
    np.testing.assert_array_equal(decoded(contents.train, [300])[0], pixels(300))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_file(tmp_path, write_parquet, keep):
    path = write_parquet(tmp_path / "train.parquet", [0, 1])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(
        InputError,
        match=r"train.parquet is not a readable Parquet file \(.*\): it is damaged or truncated; fetch it again",
    ):
        ParquetSource(tmp_path).load()


def test_damage_in_the_middle(tmp_path, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 20, row_group_size=40)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"train.parquet is not a readable Parquet file"):
        contents = ParquetSource(tmp_path).load()
        list(contents.train.images(np.arange(40)))


@pytest.mark.parametrize("label", [2, -1])
def test_label_out_of_range(tmp_path, write_parquet, label):
    write_parquet(tmp_path / "train.parquet", [0, 1, 1, label, 0])
    with pytest.raises(InputError, match=rf"row 3 of .*train.parquet has label {label}, which is not in 0 to 1"):
        ParquetSource(tmp_path).load()


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_labels_of_every_integer_type(tmp_path, write_parquet, sign, bits):
    kind = getattr(pa, f"{sign}{bits}")()
    path = write_parquet(tmp_path / "train.parquet", [0, 1, 1, 0], kind=kind)
    label_N = ParquetSource(path).load().train.label_N
    assert label_N.tolist() == [0, 1, 1, 0] and label_N.dtype == np.int64
    write_parquet(path, [0, 1, None], kind=kind)
    with pytest.raises(InputError, match=r"row 2 of .* has label None, which is not in 0 to 1"):
        ParquetSource(path).load()


@pytest.mark.parametrize("label", [2**63 - 1, 2**63, 2**64 - 1])
def test_a_label_that_no_class_can_have(tmp_path, write_parquet, label):
    path = write_parquet(tmp_path / "train.parquet", [0, label], names=None, kind=pa.uint64())
    with pytest.raises(InputError, match=rf"row 1 of .* has label {label}, which is not in 0 to K-1 for K classes: correct or remove the row"):
        ParquetSource(path).load()


def test_null_label_and_negative_without_names(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", [0, None])
    with pytest.raises(InputError, match=r"row 1 of .* has label None, which is not in 0 to 1"):
        ParquetSource(tmp_path).load()
    write_parquet(tmp_path / "train.parquet", [0, -4], names=None)
    with pytest.raises(InputError, match=r"row 1 of .* has label -4, which is not in 0 to K-1 for K classes"):
        ParquetSource(tmp_path).load()


@pytest.mark.parametrize(
    ("labels", "shown", "numbers"),
    [
        ([1, 2, 1], "1, 2", "2 classes 0 to 1"),
        ([0, 5, 9], "0, 5, 9", "3 classes 0 to 2"),
        ([0, 1, 3 * 10**9], "0, 1, 3000000000", "3 classes 0 to 2"),
        ([9, 0, 1, 2, 5], "0, 1, 2, ..., 9", "5 classes 0 to 4"),
    ],
)
def test_labels_without_names_are_0_to_k_minus_1(tmp_path, write_parquet, labels, shown, numbers):
    path = write_parquet(tmp_path / "train.parquet", labels, names=None)
    with pytest.raises(InputError, match=rf"train.parquet names no classes and its training labels are {shown}: number the {numbers}, or list"):
        ParquetSource(path).load()


@pytest.mark.parametrize("names", [None, ("cat", "dog")])
def test_no_rows(tmp_path, write_parquet, names):
    with pytest.raises(InputError, match=r"has no training rows: add some"):
        ParquetSource(write_parquet(tmp_path / "train.parquet", [], names=names)).load()


def test_a_column_there_twice(tmp_path, write_parquet):
    table = pq.read_table(write_parquet(tmp_path / "train.parquet", [0, 1]))
    pq.write_table(table.append_column("label", table.column("label")), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet has 2 columns called label: rename or remove all but one"):
        ParquetSource(tmp_path).load()


def test_class_without_images(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", [0, 0])
    with pytest.raises(InputError, match="class 'dog' has no training image"):
        ParquetSource(tmp_path).load()


def test_missing_columns(tmp_path):
    pq.write_table(pa.table({"picture": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"lacks a column image \(or img\), a struct with .*: its columns are picture, label"):
        ParquetSource(tmp_path).load()
    image = pa.array([{"bytes": b""}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": image, "label": ["cat"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet has a column label that is string: it must be an integer"):
        ParquetSource(tmp_path).load()


def test_row_without_bytes(tmp_path):
    image = pa.array([{"bytes": None}, {"bytes": None}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": image, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"row 0 of .* has no image bytes"):
        list(ParquetSource(tmp_path).load().train.images(np.array([0])))


def test_other_class_names_in_test(tmp_path, write_parquet):
    write_parquet(tmp_path / "train.parquet", [0, 1])
    write_parquet(tmp_path / "test.parquet", [0, 1], names=("dog", "cat"))
    with pytest.raises(InputError, match=r"test.parquet has other class names than .*train.parquet"):
        ParquetSource(tmp_path).load()


def test_no_train_file(tmp_path):
    with pytest.raises(InputError, match=r"has no train\*.parquet"):
        ParquetSource(tmp_path).identity()
