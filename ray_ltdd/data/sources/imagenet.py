"""ImageNet: the list files of ImageNet-LT (Liu et al. 2019) if they are there, else the tree with a folder per class.

Shapes: N images.
"""

from pathlib import Path

import numpy as np

from ray_ltdd.data.sources.base import Contents, FilePart, Source, check_contents, file_identity
from ray_ltdd.data.sources.image_folder import ImageFolderSource
from ray_ltdd.errors import InputError

TRAIN_LIST = "ImageNet_LT_train.txt"
# The published test list is the original validation set; the "val" list, a few images per class, is only a stand-in.
TEST_LISTS = ("ImageNet_LT_test.txt", "ImageNet_LT_val.txt")


class ListFileSource:
    """Images named by lists of `path label` lines, paths relative to `root`.

    Args:
        root: the images' folder, which also holds the lists.
        class_count: number of classes K; labels run from 0 to K-1.
    """

    def __init__(self, root: Path, class_count: int) -> None:
        self._root, self._class_count = root, class_count
        self.description = f"list files in {root}"

    def _lists(self) -> list[Path]:
        test = next((self._root / name for name in TEST_LISTS if (self._root / name).is_file()), None)
        return [self._root / TRAIN_LIST, *([] if test is None else [test])]

    def identity(self) -> dict[str, object]:
        """Return place, bytes and time of the lists."""
        return {"lists": file_identity(self._lists())}

    def load(self) -> Contents:
        """Read the lists; see `Source.load`. A class is called by its images' folder (the wnid) where they share one.

        Raises:
            InputError: a line is not `path label`, a label is out of range, or a class has no images.
        """
        train, *rest = [_read_list(path, self._root, self._class_count) for path in self._lists()]
        return check_contents(Contents(_class_names(train, self._class_count), train, rest[0] if rest else None), self._root)


def imagenet_source(path: Path, class_count: int) -> Source:
    """Return the reader for what stands in `path`: list files win over the bare tree."""
    if (path / TRAIN_LIST).is_file():
        return ListFileSource(path, class_count)
    return ImageFolderSource(path, each_file=False)


def _read_list(path: Path, root: Path, class_count: int) -> FilePart:
    paths, labels = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.lstrip("-").isdigit():
            raise InputError(f"line {number} of {path} is {line!r} but must be `path label`, such as `train/n01440764/n01440764_190.JPEG 0`")
        if not 0 <= int(label) < class_count:
            raise InputError(f"line {number} of {path} has label {label}, outside 0 to {class_count - 1}: correct the list")
        paths.append(root / name)
        labels.append(int(label))
    return FilePart(np.asarray(labels, np.int64), paths)


def _class_names(part: FilePart, class_count: int) -> tuple[str, ...]:
    folders: list[set[str]] = [set() for _ in range(class_count)]
    for label, path in zip(part.label_N, part.paths, strict=True):
        folders[label].add(path.parent.name)
    names = [next(iter(folder)) if len(folder) == 1 else str(k) for k, folder in enumerate(folders)]
    return tuple(names) if len(set(names)) == class_count else tuple(map(str, range(class_count)))
