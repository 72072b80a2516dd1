"""Trees of image files with a folder per class: the user's own, and the part of them that ImageNet shares.

Shapes: N images.
"""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from ray_ltdd.data.sources.base import Contents, FilePart, check_contents
from ray_ltdd.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))
TEST_FOLDERS = ("test", "val", "validation")


class ImageFolderSource:
    """`root`/train/<class>/* and, if it is there, `root`/test (or val, validation)/<class>/*; classes ordered by name.

    Args:
        root: the tree's folder.
        each_file: whether the identity looks at every image (the user's data) or the class folders (a published tree).
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
        """List the files; see `Source.load`. What lies there and is no image of a class is warned of, hidden files excepted.

        Raises:
            InputError: a class has no images or a name that is not UTF-8, or train and test differ in their classes.
        """
        train, test = self._folders()
        class_names = class_folders(train)
        if not class_names:
            raise InputError(f"{train} has no class folders: images are expected as {train}/<class>/*.png (or .jpg)")
        if test is not None:
            _check_same_classes(class_names, train, class_folders(test), test)
        train_part, left_out = list_part(train, class_names)
        test_part, also_left_out = (None, []) if test is None else list_part(test, class_names)
        _warn_of(left_out + also_left_out, self._root)
        return check_contents(Contents(class_names, train_part, test_part), self._root, f"add images ({_SUFFIXES})")


def folder_identity(folder: Path, each_file: bool) -> str:
    """Return a SHA-256 over names, places and times of the class folders, with `each_file` also names, sizes and times of all images.

    A folder's time changes when files are added or removed, so the published trees, which nobody edits in place, need
    only the cheap form.
    """
    digest = hashlib.sha256()
    for entry in _visible(folder):
        if entry.is_dir():
            digest.update(os.fsencode(f"{entry.name}/{os.path.realpath(entry.path)}/{entry.stat().st_mtime_ns}\n"))
            for file in filter(_is_image_file, _visible(entry.path)) if each_file else ():
                digest.update(os.fsencode(f"{file.name}/{file.stat().st_size}/{file.stat().st_mtime_ns}\n"))
    return digest.hexdigest()


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of `folder`'s sub-folders in order, hidden ones left out."""
    return tuple(entry.name for entry in _visible(folder) if entry.is_dir())


def list_part(folder: Path, class_names: tuple[str, ...]) -> tuple[FilePart, list[str]]:
    """Return the image files of `folder`/<class> for each class, sorted by class, then by name; and the paths of what else lies there."""
    paths: list[Path] = []
    counts = []
    left_out = [entry.path for entry in _visible(folder) if not entry.is_dir()]
    for name in class_names:
        entries = _visible(folder / name)
        files = [folder / name / entry.name for entry in entries if _is_image_file(entry)]
        counts.append(len(files))
        paths.extend(files)
        left_out.extend(entry.path for entry in entries if not _is_image_file(entry))
    return FilePart(np.repeat(np.arange(len(class_names)), counts), paths), left_out


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image (by suffix; hidden files are none)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    return sorted((entry for entry in os.scandir(folder) if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_image_file(entry: os.DirEntry[str]) -> bool:
    # A link to nothing is one, so that reading it says which: what is lost must not be passed over.
    return is_image(entry.name) and not entry.is_dir()


def _warn_of(left_out: list[str], root: Path) -> None:
    if left_out:
        what = "1 file or folder is" if len(left_out) == 1 else f"{len(left_out)} files or folders are"
        warnings.warn(
            f"{what} left out of {root}, such as {left_out[0]}: images are files directly in a class's folder that end in {_SUFFIXES}",
            stacklevel=2,
        )


def _check_same_classes(train_names: tuple[str, ...], train: Path, test_names: tuple[str, ...], test: Path) -> None:
    for name in sorted(set(train_names) ^ set(test_names)):
        there, missing = (train, test) if name in train_names else (test, train)
        raise InputError(f"class {name!r} is in {there} but not in {missing}: both need a folder for every class")
