import os
import re
import warnings

import numpy as np
import pytest

from ray_ltdd.data.sources.base import reading
from ray_ltdd.data.sources.image_folder import ImageFolderSource
from ray_ltdd.errors import InputError

BOTH = {"train": {"dog": 2, "cat": 3}, "test": {"dog": 1, "cat": 1}}


@pytest.mark.parametrize("test_name", ["test", "val", "validation"])
def test_classes_by_name_files_by_name(tmp_path, write_folder, test_name):
    root = write_folder(tmp_path, {"train": BOTH["train"], test_name: BOTH["test"]})
    (root / "train" / "cat" / ".DS_Store").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contents = ImageFolderSource(root).load()
    assert contents.class_names == ("cat", "dog")
    assert contents.train.label_N.tolist() == [0, 0, 0, 1, 1]
    assert contents.test.label_N.tolist() == [0, 1]
    where = [image.where for image in contents.train.images(np.array([0, 4]))]
    assert where == [str(root / "train/cat/00000.png"), str(root / "train/dog/00001.png")]


@pytest.mark.parametrize("name", ["cat/sub/0.png", "stray.png", "cat/0.jfif", "cat/0.avif", "cat/0.tga", "cat/notes.txt", "cat/d.png/x"])
def test_what_is_left_out_is_said(tmp_path, write_folder, name):
    root = write_folder(tmp_path, BOTH)
    (root / "train" / name).parent.mkdir(exist_ok=True)
    (root / "train" / name).touch()
    example = root / "train" / "/".join(name.split("/")[:2])
    with pytest.warns(
        UserWarning, match=rf"^1 file or folder is left out of {re.escape(str(root))}, such as {re.escape(str(example))}: .* end in \.bmp, "
    ):
        assert len(ImageFolderSource(root).load().train.paths) == 5


def test_what_is_left_out_is_said_once(tmp_path, write_folder):
    root = write_folder(tmp_path, BOTH)
    write_folder(tmp_path, {"test": {"cat": 4}}, suffix=".jp2")
    (root / "train" / "README").touch()
    with pytest.warns(UserWarning, match=r"^5 files or folders are left out") as caught:
        ImageFolderSource(root).load()
    assert len(caught) == 1


@pytest.mark.parametrize("target", ["/nowhere", "0.png"])
def test_a_link_to_nothing_or_itself_names_the_remedy(tmp_path, write_folder, target):
    root = write_folder(tmp_path, BOTH)
    (root / "train/cat/0.png").symlink_to(target)
    match = rf"cannot be read: .* at {root}/train/cat/0.png: restore it \(or what it links to\), make it readable or remove it"
    with pytest.raises(InputError, match=match), reading("the folder"):
        ImageFolderSource(root).identity()


@pytest.mark.parametrize("target", ["/nowhere", "notes.txt"])
def test_a_broken_link_that_is_no_image_is_left_out(tmp_path, write_folder, target):
    root = write_folder(tmp_path, BOTH)
    (root / "train/cat/notes.txt").symlink_to(target)
    ImageFolderSource(root).identity()
    with pytest.warns(UserWarning, match=r"^1 file or folder is left out"):
        ImageFolderSource(root).load()


def test_file_names_that_are_not_unicode_are_read(tmp_path, write_folder):
    root = write_folder(tmp_path, BOTH)
    os.rename(root / "train/cat/00000.png", os.fsencode(root / "train/cat") + b"/caf\xe9.png")
    source = ImageFolderSource(root)
    source.identity()
    *_, image = source.load().train.images(np.arange(3))
    assert image.open().size == (12, 12)


def test_class_names_that_are_not_unicode_are_refused(tmp_path, write_folder):
    root = write_folder(tmp_path, BOTH)
    for part in ("train", "test"):
        os.rename(root / part / "cat", os.fsencode(root / part) + b"/caf\xe9")
    source = ImageFolderSource(root)
    source.identity()
    with pytest.raises(InputError, match=r"class 'caf\\udce9' in .* has a name that is not UTF-8: rename it"):
        source.load()


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


def test_a_single_class_is_refused(tmp_path, write_folder):
    with pytest.raises(InputError, match=r"has a single class, 'cat': add at least one more"):
        ImageFolderSource(write_folder(tmp_path, {"train": {"cat": 3}})).load()


@pytest.mark.parametrize(("part", "word"), [("train", "training"), ("test", "test")])
def test_class_without_images(tmp_path, write_folder, part, word):
    root = write_folder(tmp_path, BOTH)
    for file in (root / part / "dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match=rf"class 'dog' has no {word} image in .*: add images \(.bmp, .*\) or remove the class"):
        ImageFolderSource(root).load()


@pytest.mark.parametrize(("there", "missing"), [("train", "test"), ("test", "train")])
def test_train_and_test_with_other_classes(tmp_path, write_folder, there, missing):
    root = write_folder(tmp_path, BOTH)
    write_folder(tmp_path, {there: {"emu": 1}})
    with pytest.raises(InputError, match=f"class 'emu' is in .*/{there} but not in .*/{missing}"):
        ImageFolderSource(root).load()
