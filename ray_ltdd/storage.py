"""Writing to disk so that nothing is ever half-written, and saying plainly when it cannot be done."""

import errno
import glob
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ray_ltdd.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# ENOENT: below /proc no folder can be made
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP}
_UNWRITABLE = _FULL | _NO_FOLDER | {errno.EACCES, errno.EPERM, errno.EROFS}


LOCKS = "locks"
SECONDS_OF_A_WRITER = 3600.0


def is_store(folder: Path) -> bool:
    """Whether a folder is an artifact store, which holds thousands of folders and no results: every one has the folder of its locks."""
    return (folder / LOCKS).is_dir()


def absolute(place: str) -> str:
    """A path as a process that stands in another folder needs it."""
    return str(Path(place).absolute())


@contextmanager
def readable_os_error(place: Path, setting: str = "output.root") -> Iterator[None]:
    """Turn the body's errors about a full or unwritable disk into an `InputError`; let others pass.

    Args:
        place: the folder or file written to.
        setting: which setting names another folder.
    """
    try:
        yield
    except IsADirectoryError as error:
        raise InputError(f"{setting}={place} is a folder: set {setting} to a file") from error
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise _unwritable(place, setting, error.errno) from error
    except SafetensorError as error:
        # safetensors reports the operating system's errors as text in a class of its own
        found = re.search(r"os error (\d+)", str(error))
        if found is None or int(found[1]) not in _UNWRITABLE:
            raise
        raise _unwritable(place, setting, int(found[1])) from error


def _unwritable(place: Path, setting: str, number: int) -> InputError:
    remedy = "free space there" if number in _FULL else "make it a writable folder"
    return InputError(f"{setting}={place} cannot be written ({os.strerror(number)}): {remedy} or set {setting} to another folder")


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Give a temporary folder beside `final`; when the block ends well it is flushed to disk and renamed to `final`.

    A folder that already stands at `final` stays: it was written whole by somebody else, under the same name and so with the same content.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            _publish(path)
        if not final.exists():
            temporary.rename(final)
            _flush(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Give a temporary path beside `final`; when the block ends well the file there is flushed to disk and takes the place of `final`.

    What a writer of `final` that was killed has left is removed once it is older than any writer at work.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".????????.partial-{glob.escape(final.name)}"):
        # one that others remove at the same time, or that is not ours to remove, is no reason not to write
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > SECONDS_OF_A_WRITER:
                left.unlink()
    temporary = final.with_name(f".{uuid.uuid4().hex[:8]}.partial-{final.name}")
    try:
        yield temporary
        _publish(temporary)
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(path: Path) -> None:
    # safetensors makes its files readable by their owner alone, which shuts out the others of a shared store: who may read the folder may read them
    path.chmod(path.parent.stat().st_mode & 0o644)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
