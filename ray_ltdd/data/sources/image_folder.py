"""Trees of image files with a folder per class: the user's own, and the part of them that ImageNet shares.

Shapes: N images.
"""

import os
from pathlib import Path

import numpy as np

from ray_ltdd.data.sources.base import Contents, FilePart, check_contents, folder_identity
from ray_ltdd.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
TEST_FOLDERS = ("test", "val", "validation")


class ImageFolderSource:
    """`root`/train/<class>/* and, if it is there, `root`/test (or val, validation)/<class>/*; classes ordered by name.

    Args:
        root: the tree's folder.
        each_file: whether the identity looks at every file (the user's data) or the class folders (a published tree).
    """

    def __init__(self, root: Path, each_file: bool = True) -> None:
        self._root, self._each_file = root, each_file
        self.description = f"image folder {root}"

    def _folders(self) -> tuple[Path, Path | None]:
        if not (self._root / "train").is_dir():
            raise InputError(f"{self._root} has no folder train: images are expected as {self._root}/train/<class>/*.png (or .jpg)")
        return self._root / "train", next((self._root / name for name in TEST_FOLDERS if (self._root / name).is_dir()), None)

    def identity(self) -> dict[str, object]:
        """Return a hash per part.

        Raises:
            InputError: there is no folder train.
        """
        folders = [folder for folder in self._folders() if folder is not None]
        return {folder.name: folder_identity(folder, self._each_file) for folder in folders}

    def load(self) -> Contents:
        """List the files; see `Source.load`.

        Raises:
            InputError: a class has no images, or train and test differ in their classes.
        """
        train, test = self._folders()
        class_names = class_folders(train)
        if not class_names:
            raise InputError(f"{train} has no class folders: images are expected as {train}/<class>/*.png (or .jpg)")
        if test is not None:
            _check_same_classes(class_names, train, class_folders(test), test)
        contents = Contents(class_names, list_part(train, class_names), None if test is None else list_part(test, class_names))
        return check_contents(contents, self._root)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of `folder`'s sub-folders in order, hidden ones left out."""
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))


def list_part(folder: Path, class_names: tuple[str, ...]) -> FilePart:
    """Return the image files of `folder`/<class> for each class, sorted by class, then by name."""
    paths: list[Path] = []
    counts = []
    for name in class_names:
        files = sorted(entry.name for entry in os.scandir(folder / name) if is_image(entry.name))
        counts.append(len(files))
        paths.extend(folder / name / file for file in files)
    return FilePart(np.repeat(np.arange(len(class_names)), counts), paths)


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image (by suffix; hidden files are none)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _check_same_classes(train_names: tuple[str, ...], train: Path, test_names: tuple[str, ...], test: Path) -> None:
    for name in sorted(set(train_names) ^ set(test_names)):
        there, missing = (train, test) if name in train_names else (test, train)
        raise InputError(f"class {name!r} is in {there} but not in {missing}: both need a folder for every class")
