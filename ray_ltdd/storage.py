"""Writing to disk so that nothing is ever half-written, and saying plainly when it cannot be done."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_ltdd.errors import InputError

_REMEDY = {
    errno.ENOSPC: "no space left on the disk: free some, or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EACCES: "permission denied: make the folder writable, or choose another one",
    errno.EPERM: "permission denied: make the folder writable, or choose another one",
    errno.ENOTDIR: "a file stands where a folder is needed: choose another folder",
    errno.EEXIST: "a file stands where a folder is needed: choose another folder",
}


@contextmanager
def readable_os_error(place: Path) -> Iterator[None]:
    """Turn an operating-system error about the disk into an `InputError` that names `place` and the remedy; let others pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDY:
            raise
        raise InputError(f"cannot write to {error.filename or place}: {_REMEDY[error.errno]}.") from error
    except Exception as error:
        # safetensors reports the operating system's errors as text in a class of its own
        if "No space left on device" in str(error):
            raise InputError(f"cannot write to {place}: {_REMEDY[errno.ENOSPC]}.") from error
        raise


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
            _flush(path)
        if not final.exists():
            temporary.rename(final)
            _flush(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(final: Path) -> Iterator[Path]:
    """Give a temporary path beside `final`; when the block ends well the file there is flushed to disk and takes the place of `final`."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{uuid.uuid4().hex[:8]}.partial-{final.name}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
