import zipfile

import numpy as np
import pytest
from tiny_images import encode, pixels

from ray_ltdd.data.sources.tiny_imagenet import TinyImageNetSource
from ray_ltdd.errors import InputError


@pytest.fixture
def tree(tmp_path):
    """The layout Stanford ships, with three classes."""
    root, number = tmp_path / "tiny-imagenet-200", 0
    for wnid in ("n03", "n01", "n02"):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(2):
            (root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG").write_bytes(encode(number))
            number += 1
    (root / "val" / "images").mkdir(parents=True)
    rows = []
    for i, wnid in enumerate(("n02", "n01", "n03")):
        (root / "val" / "images" / f"val_{i}.JPEG").write_bytes(encode(100 + i))
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "wnids.txt").write_text("n03\nn01\nn02\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\nn04\tox\n")
    return root


def zipped(tree):
    path = tree.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, file.relative_to(tree.parent))
    return path


@pytest.mark.parametrize("form", ["tree", "above", "zip", "zip in folder"])
def test_all_forms_hold_the_same(tree, tmp_path, form):
    path = {"tree": tree, "above": tmp_path}.get(form)
    if path is None:
        path = zipped(tree)
        if form == "zip in folder":
            (tmp_path / "only").mkdir()
            path = path.rename(tmp_path / "only" / path.name).parent
    source = TinyImageNetSource(path, "get it")
    assert source.identity() == source.identity()
    contents = source.load()
    assert contents.class_names == ("goldfish", "crane (n02)", "crane (n03)")
    assert contents.train.label_N.tolist() == [0, 0, 1, 1, 2, 2]
    assert contents.test.label_N.tolist() == [1, 0, 2]
    images = [np.asarray(image.open()) for image in contents.train.images(np.array([0, 5]))]
    np.testing.assert_array_equal(images, [pixels(2), pixels(1)])
    np.testing.assert_array_equal(np.asarray(next(contents.test.images(np.array([2]))).open()), pixels(102))


def test_missing(tmp_path):
    with pytest.raises(InputError, match=r"Tiny-ImageNet is not at .*: get it from there"):
        TinyImageNetSource(tmp_path, "get it from there").identity()


def test_truncated_zip(tree):
    path = zipped(tree)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"tiny-imagenet-200.zip is not a readable zip .* damaged or truncated; download it again"):
        TinyImageNetSource(path, "get it").load()


def test_incomplete_tree(tree):
    (tree / "val" / "val_annotations.txt").unlink()
    with pytest.raises(InputError, match=r"has no val/val_annotations.txt: it is not a complete tiny-imagenet-200"):
        TinyImageNetSource(tree, "get it").load()


def test_unknown_class_in_the_annotations(tree):
    with open(tree / "val" / "val_annotations.txt", "a") as file:
        file.write("val_9.JPEG\tn99\t0\t0\t9\t9\n")
    with pytest.raises(InputError, match=r"line 4 of .*val_annotations.txt has class 'n99', which is not in wnids.txt"):
        TinyImageNetSource(tree, "get it").load()


def test_class_without_images(tree):
    for file in (tree / "train" / "n01" / "images").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="class 'goldfish' has no training image"):
        TinyImageNetSource(tree, "get it").load()
