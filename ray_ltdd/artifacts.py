"""Content-addressed artifacts: keys, manifests, atomic writes, single flight.

An artifact is a folder `<store>/<stage>/<digest>/` with `payload.safetensors` and `manifest.json`. It appears by one rename, so it is there whole
or not at all; a checksum notices later damage. Its name is a hash of everything it depends on, so one that exists is never computed again.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save, save_file

from ray_ltdd.errors import InputError
from ray_ltdd.kernels.serving import multiply_bfloat16
from ray_ltdd.storage import LOCKS, atomic_file, atomic_folder, readable_os_error

PAYLOAD = "payload.safetensors"
MANIFEST = "manifest.json"
_SETTING = "output.store"
_DIGEST_BYTES = 32
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_DAMAGE = (*_MISSING, ValueError, KeyError)


class BeingComputed(Exception):
    """Another process is computing the artifact asked for."""


@dataclass(frozen=True)
class Key:
    """What an artifact is named by.

    Attributes:
        stage: the stage's name, also the folder in the store.
        version: the stage's version number, raised when its code changes its outcome.
        settings: JSON-able settings the outcome depends on, and no others.
        upstream: digests of the artifacts and fingerprints of the data it reads, by role.
        seed: the seed the stage's random draws derive from.
    """

    stage: str
    version: int
    settings: Mapping[str, Any]
    upstream: Mapping[str, str]
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 (first 24 hex digits) over all attributes in canonical JSON."""
        text = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def describe(self) -> dict[str, Any]:
        """Return the attributes as plain data, the form that is hashed and written to the manifest."""
        return {
            "stage": self.stage,
            "version": self.version,
            "settings": dict(self.settings),
            "upstream": dict(self.upstream),
            "seed": self.seed,
        }


@dataclass
class Payload:
    """What a stage returns: named tensors, and a JSON-able record of what a reader would like to know about them.

    Attributes:
        tensors, record: these.
        made: `seconds` and `provenance()` of the process that computed it; none where that is the one that writes it.
    """

    tensors: dict[str, torch.Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)


class Artifact:
    """A stored artifact, read lazily. Pickles as its folder's path: send this, not the tensors."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any] | None = None) -> None:
        """Args: its folder in the store; the manifest, when it is known already."""
        self.folder = folder
        if manifest is not None:
            self.__dict__["manifest"] = manifest

    def __reduce__(self) -> tuple[object, ...]:
        return Artifact, (self.folder,)

    def __repr__(self) -> str:
        return f"Artifact({str(self.folder)!r})"

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What stands beside the payload."""
        manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
        return manifest

    @property
    def digest(self) -> str:
        """The digest of its key."""
        return self.folder.name

    @property
    def record(self) -> Mapping[str, Any]:
        """What the stage wrote beside its tensors."""
        return dict(self.manifest["record"])

    @property
    def seconds(self) -> float:
        """Wall seconds it took to compute, summed over interrupted attempts."""
        return float(self.manifest["seconds"])

    @property
    def n_bytes(self) -> int:
        """Size of its payload on disk."""
        return (self.folder / PAYLOAD).stat().st_size

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Read the tensors whose names begin with `prefix`, on the CPU; the others are not read from disk."""
        if not prefix:
            return load_file(self.folder / PAYLOAD)
        with safe_open(self.folder / PAYLOAD, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118  the file is no mapping


class CheckpointSlot:
    """Where one computation keeps its last resumable state. It is emptied when the artifact is there."""

    def __init__(self, path: Path, min_seconds: float = 20.0) -> None:
        """Keep the state in the file `path`, written at most every `min_seconds` seconds (0: at every offer)."""
        self._path = path
        self._min_seconds = min_seconds
        self._started_at = self._written_at = time.monotonic()
        self._seconds_before = 0.0

    def load(self) -> dict[str, torch.Tensor] | None:
        """Return the last saved state, or None when there is none or it is damaged."""
        if not self._path.exists():
            return None
        try:
            content = self._path.read_bytes()
            if hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
                raise ValueError("its checksum differs")
            state = load(content[_DIGEST_BYTES:])
            self._seconds_before = float(state.pop("seconds_spent"))
        except (SafetensorError, ValueError, KeyError) as error:
            warnings.warn(f"the checkpoint {self._path} is damaged ({error}); starting that stage again", stacklevel=2)
            return None
        return state

    @property
    def seconds(self) -> float:
        """Wall seconds spent so far, earlier attempts included up to their last saved state."""
        return self._seconds_before + time.monotonic() - self._started_at

    def offer(self, state: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Save `state()` if the last save is old enough."""
        if time.monotonic() - self._written_at < self._min_seconds:
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state().items()}
        tensors["seconds_spent"] = torch.tensor(self.seconds, dtype=torch.float64)
        content = save(tensors)
        with readable_os_error(self._path.parent.parent, _SETTING), atomic_file(self._path) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        self._written_at = time.monotonic()

    def clear(self) -> None:
        """Forget the state, and what a writer killed in the middle left of one."""
        self._path.unlink(missing_ok=True)
        for left in self._path.parent.glob(f".*.partial-{self._path.name}"):
            left.unlink(missing_ok=True)


class ArtifactStore:
    """A folder of artifacts, shared by any number of processes."""

    def __init__(self, root: str | Path, checkpoint_seconds: float = 20.0) -> None:
        """Open the store at `root`, which is made when missing.

        Raises:
            InputError: the folder cannot be written.
        """
        self.root = Path(root).expanduser().absolute()
        self._checkpoint_seconds = checkpoint_seconds
        with readable_os_error(self.root, _SETTING):
            self.root.mkdir(parents=True, exist_ok=True)

    def folder(self, key: Key) -> Path:
        """Where the artifact of `key` is or would be."""
        return self.root / key.stage / key.digest

    def checkpoint(self, key: Key) -> Path:
        """The file a computation of `key` keeps its resumable state in."""
        return self.root / "checkpoints" / f"{key.stage}-{key.digest}.safetensors"

    def find(self, key: Key) -> Artifact | None:
        """Return the artifact of `key`, or None. A damaged one is set aside with a warning.

        Raises:
            InputError: the store cannot be read or written.
        """
        try:
            return self._read(key)
        except _DAMAGE:
            with self._lock(key):
                return self._find_locked(key)

    def get_or_compute(self, key: Key, compute: Callable[[CheckpointSlot], Payload], wait: bool = True) -> tuple[Artifact, bool]:
        """Return the artifact of `key` and whether it was computed now.

        Of several processes that ask for one missing key, one computes and the others wait. `compute` gets the slot for its resumable state.

        Raises:
            InputError: the store cannot be written (read-only, no space left), or what is there cannot be read.
            BeingComputed: another process computes it, and `wait` is false.
        """
        # looked at before the lock is taken, so that what a read-only store holds can be used
        with suppress(*_DAMAGE):
            found = self._read(key)
            if found is not None:
                return found, False
        with self._lock(key, wait):
            found = self._find_locked(key)
            if found is not None:
                return found, False
            slot = CheckpointSlot(self.checkpoint(key), self._checkpoint_seconds)
            payload = compute(slot)
            with readable_os_error(self.root, _SETTING):
                artifact = self._write(key, payload, slot.seconds)
                slot.clear()
        return artifact, True

    @contextmanager
    def _lock(self, key: Key, wait: bool = True) -> Iterator[None]:
        lock = FileLock(self.root / LOCKS / f"{key.stage}-{key.digest}.lock")
        with readable_os_error(self.root, _SETTING):
            (self.root / LOCKS).mkdir(exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                raise BeingComputed(f"{key.stage}-{key.digest}") from None
        try:
            yield
        finally:
            lock.release()

    def _read(self, key: Key) -> Artifact | None:
        folder = self.folder(key)
        if not folder.exists():
            return None
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            found = checksum(folder / PAYLOAD)
        except _MISSING:
            raise
        except OSError as error:
            # it may be sound, and hours of an expert: neither set aside nor computed again
            raise InputError(f"{folder} cannot be read ({error.strerror}): mend that, or remove the folder to have it computed again") from error
        if manifest["checksum"] != found:
            raise ValueError(f"checksum of {PAYLOAD} differs from the manifest's")
        return Artifact(folder, manifest)

    def _find_locked(self, key: Key) -> Artifact | None:
        # only the lock's holder sets aside: another's verdict may be on a folder that has been replaced since
        try:
            return self._read(key)
        except _DAMAGE as error:
            folder = self.folder(key)
            aside = folder.with_name(f"{folder.name}.damaged-{time.time_ns()}")
            with readable_os_error(self.root, _SETTING):
                folder.rename(aside)
            warnings.warn(f"artifact {folder} is damaged ({error}); set aside as {aside.name}, computing it again", stacklevel=2)
            return None

    def _write(self, key: Key, payload: Payload, seconds: float) -> Artifact:
        folder = self.folder(key)
        manifest = {
            "digest": key.digest,
            **key.describe(),
            "record": payload.record,
            "seconds": round(seconds, 3),
            **provenance(),
            **payload.made,
        }
        for left in folder.parent.glob(f".{folder.name}.*.partial"):
            # of a writer that was killed: whoever holds the lock is the only one alive
            shutil.rmtree(left, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in payload.tensors.items()},
                temporary / PAYLOAD,
            )
            manifest["checksum"] = checksum(temporary / PAYLOAD)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        return Artifact(folder, manifest)


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance() -> dict[str, Any]:
    """What made a result: time (UTC), versions, machine, and this process's peak memory so far in MB."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"ray_ltdd": package_version(), "torch": torch.__version__, "python": platform.python_version()},
        "device": device_name(),
        "peak_memory_mb": peak_memory_mb(),
    }


def package_version() -> str:
    """The installed version of this package."""
    from importlib.metadata import version

    return version("ray_ltdd")


def device_name() -> str:
    """The accelerator's name, or the processor's architecture, what it multiplies in, and the number of threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    products = " BF16" if multiply_bfloat16() else ""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}{products} x{torch.get_num_threads()}"


def peak_memory_mb() -> float:
    """This process's peak resident memory so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def free_space_gb(path: Path) -> float:
    """Free disk space at `path` or its nearest existing parent, in GB."""
    while not path.exists():
        path = path.parent
    return round(shutil.disk_usage(os.fspath(path)).free / 1e9, 1)
