import os

import numpy as np
import pytest

from ray_ltdd.data.sources.image_folder import ImageFolderSource
from ray_ltdd.errors import InputError

BOTH = {"train": {"dog": 2, "cat": 3}, "test": {"dog": 1, "cat": 1}}


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_classes_by_name_files_by_name(tmp_path, write_folder, test_name):
    root = write_folder(tmp_path, {"train": BOTH["train"], test_name: BOTH["test"]})
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    contents = ImageFolderSource(root).load()
    assert contents.class_names == ("cat", "dog")
    assert contents.train.label_N.tolist() == [0, 0, 0, 1, 1]
    assert contents.test.label_N.tolist() == [0, 1]
    where = [image.where for image in contents.train.images(np.array([0, 4]))]
    assert where == [str(root / "train/cat/00000.png"), str(root / "train/dog/00001.png")]


def test_without_a_test_folder_there_is_no_test_part(tmp_path, write_folder):
    assert ImageFolderSource(write_folder(tmp_path, {"train": BOTH["train"]})).load().test is None


def test_identity_follows_the_files(tmp_path, write_folder):
    source = ImageFolderSource(write_folder(tmp_path, BOTH))
    before = source.identity()
    assert source.identity() == before
    path = tmp_path / "train/cat/00000.png"
    path.write_bytes(path.read_bytes() + b"x")
    assert source.identity() != before


def test_identity_of_a_published_tree_follows_its_folders(tmp_path, write_folder):
    source = ImageFolderSource(write_folder(tmp_path, BOTH), each_file=False)
    before = source.identity()
    os.utime(tmp_path / "train/cat", ns=(1, 1))
    assert source.identity() != before


def test_no_train_folder(tmp_path):
    with pytest.raises(InputError, match=r"has no folder train: images are expected as .*/train/<class>/\*.png"):
        ImageFolderSource(tmp_path).identity()


def test_no_class_folders(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="has no class folders"):
        ImageFolderSource(tmp_path).load()


@pytest.mark.parametrize(("part", "word"), [("train", "training"), ("test", "test")])
def test_class_without_images(tmp_path, write_folder, part, word):
    root = write_folder(tmp_path, BOTH)
    for file in (root / part / "dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=f"class 'dog' has no {word} image in .*: add images or remove the class"):
        ImageFolderSource(root).load()


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_train_and_test_with_other_classes(tmp_path, write_folder, there, missing):
    root = write_folder(tmp_path, BOTH)
    write_folder(tmp_path, {there: {"emu": 1}})
    with pytest.raises(InputError, match=f"class 'emu' is in .*/{there} but not in .*/{missing}"):
        ImageFolderSource(root).load()
