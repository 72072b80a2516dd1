"""Tiny-ImageNet as Stanford ships it: train/<wnid>/images/*.JPEG, val/images/*.JPEG, val_annotations.txt; also zipped.

Shapes: N images.
"""

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ray_ltdd.data.sources.base import Contents, EncodedImage, Part, check_contents, file_identity
from ray_ltdd.data.sources.image_folder import is_image
from ray_ltdd.errors import InputError

ARCHIVE = "tiny-imagenet-200"


class _Tree(Protocol):
    """The unpacked folder or the zip: names are relative to tiny-imagenet-200, with `/`."""

    def names(self, folder: str) -> list[str]:
        """Return the image files directly in `folder`, sorted."""
        ...

    def exists(self, name: str) -> bool:
        """Return whether there is a file `name`."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        ...


class _FolderTree:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self, folder: str) -> list[str]:
        path = self._root / folder
        return sorted(f"{folder}/{file.name}" for file in path.iterdir() if is_image(file.name)) if path.is_dir() else []

    def exists(self, name: str) -> bool:
        return (self._root / name).is_file()

    def read(self, name: str) -> bytes:
        return (self._root / name).read_bytes()


class _ZipTree:
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise InputError(f"{path} is not a readable zip ({error}): it is damaged or truncated; download it again") from error
        root = next((name for name in self._zip.namelist() if name.endswith("wnids.txt")), "wnids.txt")
        self._prefix = root.removesuffix("wnids.txt")

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        by_folder: dict[str, list[str]] = {}
        for name in sorted(self._zip.namelist()):
            if name.startswith(self._prefix) and is_image(name.rpartition("/")[2]):
                name = name.removeprefix(self._prefix)
                by_folder.setdefault(name.rpartition("/")[0], []).append(name)
        return by_folder

    def names(self, folder: str) -> list[str]:
        return self._by_folder.get(folder, [])

    def exists(self, name: str) -> bool:
        return self._prefix + name in self._zip.NameToInfo

    def read(self, name: str) -> bytes:
        return self._zip.read(self._prefix + name)


@dataclass(frozen=True)
class _TreePart:
    label_N: np.ndarray
    names: Sequence[str]
    tree: _Tree
    where: str

    def images(self, index_N: np.ndarray) -> Iterator[EncodedImage]:
        for i in index_N:
            yield EncodedImage(f"{self.where}/{self.names[i]}", partial(self._open, self.names[i]))

    def _open(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.tree.read(name)))


class TinyImageNetSource:
    """The zip, the unpacked folder, or a folder that holds either.

    Args:
        path: one of them.
        how_to_get: the remedy at the end of an error's sentence.
    """

    def __init__(self, path: Path, how_to_get: str) -> None:
        self._path, self._how_to_get = path, how_to_get
        self.description = f"Tiny-ImageNet in {path}"

    def _locate(self) -> Path:
        candidates = (self._path, self._path / ARCHIVE, self._path / f"{ARCHIVE}.zip")
        for candidate in candidates:
            if (candidate / "wnids.txt").is_file() or (candidate.suffix == ".zip" and candidate.is_file()):
                return candidate
        raise InputError(f"Tiny-ImageNet is not at {self._path}: {self._how_to_get}")

    def identity(self) -> dict[str, object]:
        """Return place, bytes and time of the zip, or of the class folders and the lists.

        Raises:
            InputError: neither is there.
        """
        root = self._locate()
        if root.is_file():
            return {"zip": file_identity([root])}
        names = [root / "wnids.txt", root / "words.txt", root / "val/val_annotations.txt", root / "val/images"]
        folders = sorted((root / "train").glob("*/images"))
        return {
            "files": file_identity([path for path in names if path.exists()]),
            "train": [[f.parent.name, f.stat().st_mtime_ns] for f in folders],
        }

    def load(self) -> Contents:
        """Read lists and names; see `Source.load`. Classes are ordered by wnid and called by their first word.

        Raises:
            InputError: a list is missing or names an unknown class, the zip is damaged, or a class has no images.
        """
        root = self._locate()
        tree: _Tree = _ZipTree(root) if root.is_file() else _FolderTree(root)
        wnids = sorted(_text(tree, "wnids.txt", root).split())
        contents = Contents(_words(tree, wnids, root), _train_part(tree, wnids, root), _validation_part(tree, wnids, root))
        return check_contents(contents, root)


def _text(tree: _Tree, name: str, root: Path) -> str:
    if not tree.exists(name):
        raise InputError(f"{root} has no {name}: it is not a complete {ARCHIVE}; download and unpack it again")
    return tree.read(name).decode()


def _words(tree: _Tree, wnids: list[str], root: Path) -> tuple[str, ...]:
    if not tree.exists("words.txt"):
        return tuple(wnids)
    rows = dict(line.split("\t", 1) for line in _text(tree, "words.txt", root).splitlines() if "\t" in line)
    words = [rows.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    times = Counter(words)
    return tuple(word if times[word] == 1 else f"{word} ({wnid})" for word, wnid in zip(words, wnids, strict=True))


def _train_part(tree: _Tree, wnids: list[str], root: Path) -> Part:
    by_class = [tree.names(f"train/{wnid}/images") for wnid in wnids]
    label_N = np.repeat(np.arange(len(wnids)), [len(names) for names in by_class])
    return _TreePart(label_N, [name for names in by_class for name in names], tree, str(root))


def _validation_part(tree: _Tree, wnids: list[str], root: Path) -> Part:
    class_of = {wnid: k for k, wnid in enumerate(wnids)}
    names, labels = [], []
    for number, line in enumerate(_text(tree, "val/val_annotations.txt", root).splitlines(), start=1):
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in class_of:
            raise InputError(f"line {number} of {root}/val/val_annotations.txt has class {wnid!r}, which is not in wnids.txt")
        names.append(f"val/images/{name}")
        labels.append(class_of[wnid])
    return _TreePart(np.asarray(labels, np.int64), names, tree, str(root))
