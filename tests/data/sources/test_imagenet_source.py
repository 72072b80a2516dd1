import numpy as np
import pytest

from ray_ltdd.data.sources.image_folder import ImageFolderSource
from ray_ltdd.data.sources.imagenet import ListFileSource, imagenet_source
from ray_ltdd.errors import InputError

TREE = {"train": {"n01": 3, "n02": 2}, "val": {"n01": 1, "n02": 1}}
TRAIN = "train/n02/00000.png 1\ntrain/n01/00002.png 0\n\ntrain/n01/00000.png 0\n"


@pytest.fixture
def root(tmp_path, write_folder):
    return write_folder(tmp_path, TREE)


def test_list_files_win_over_the_tree(root):
    assert isinstance(imagenet_source(root, 2), ImageFolderSource)
    (root / "ImageNet_LT_train.txt").write_text(TRAIN)
    assert isinstance(imagenet_source(root, 2), ListFileSource)


@pytest.mark.parametrize("test_list", ["ImageNet_LT_test.txt", "ImageNet_LT_val.txt"])
def test_lists_are_read_in_their_order(root, test_list):
    (root / "ImageNet_LT_train.txt").write_text(TRAIN)
    (root / test_list).write_text("val/n01/00000.png 0\nval/n02/00000.png 1\n")
    contents = imagenet_source(root, 2).load()
    assert contents.class_names == ("n01", "n02")
    assert contents.train.label_N.tolist() == [1, 0, 0]
    where = [image.where for image in contents.train.images(np.arange(3))]
    assert where[0] == str(root / "train/n02/00000.png") and where[2] == str(root / "train/n01/00000.png")
    assert contents.test.label_N.tolist() == [0, 1]


def test_the_published_test_list_is_preferred(root):
    (root / "ImageNet_LT_train.txt").write_text(TRAIN)
    (root / "ImageNet_LT_val.txt").write_text("train/n01/00000.png 0\ntrain/n02/00000.png 1\n")
    (root / "ImageNet_LT_test.txt").write_text("val/n02/00000.png 1\nval/n01/00000.png 0\n")
    assert imagenet_source(root, 2).load().test.label_N.tolist() == [1, 0]


def test_flat_folders_give_numbered_classes(root):
    (root / "ImageNet_LT_train.txt").write_text("train/a.png 0\ntrain/b.png 1\n")
    assert imagenet_source(root, 2).load().class_names == ("0", "1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/n01/00001.png 2", "line 2 of .*ImageNet_LT_train.txt has label 2, outside 0 to 1"),
        ("train/n01/00001.png -1", "has label -1, outside 0 to 1"),
        ("train/n01/00001.png", "line 2 of .* is 'train/n01/00001.png' but must be `path label`"),
        ("train/n01/00001.png cat", "must be `path label`"),
    ],
)
def test_bad_lines(root, line, message):
    (root / "ImageNet_LT_train.txt").write_text(f"train/n01/00000.png 0\n{line}\ntrain/n02/00000.png 1\n")
    with pytest.raises(InputError, match=message):
        imagenet_source(root, 2).load()


def test_class_without_images(root):
    (root / "ImageNet_LT_train.txt").write_text("train/n01/00000.png 0\n")
    with pytest.raises(InputError, match=r"class '.+' \(and 1 more\) has no training image"):
        imagenet_source(root, 3).load()
