"""What driver and expert hosts tell each other. Small: settings, paths and receipts, never pixels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_ltdd.artifacts import Artifact, Key, Payload
from ray_ltdd.executor import Task
from ray_ltdd.workbench import WorkbenchSpec


@dataclass(frozen=True)
class HostSpec:
    """What an expert host needs to set itself up.

    Attributes:
        store_root: the artifact store's folder, the same path on every node.
        probe: a path below it that exists, to tell whether a node sees the store.
        checkpoint_seconds: between saves of a resumable state.
        gpu_share: of the device's memory; 0 without a GPU.
        title: what it serves, for people.
    """

    store_root: Path
    probe: Path
    checkpoint_seconds: float
    gpu_share: float
    title: str


@dataclass(frozen=True)
class StageInputs:
    """What all tasks of a stage have in common; travels once to every host.

    Attributes:
        bench: dataset, split, device.
        common: inputs by name.
    """

    bench: WorkbenchSpec
    common: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """One task, less the inputs it has in common with its stage's others, which travel once.

    Attributes:
        key, function, inputs, label: as in `Task`.
        threads: CPU threads to compute it with; None leaves torch's own number.
        errors: folder for the traceback, should it fail.
    """

    key: Key
    function: Callable[..., Payload]
    inputs: Mapping[str, Any]
    label: str
    threads: int | None
    errors: Path

    @classmethod
    def of(cls, task: Task, common: Mapping[str, Any], threads: int | None, errors: Path) -> "Order":
        """Leave out what is in `common`."""
        own = {name: value for name, value in task.inputs.items() if name not in common}
        return cls(task.key, task.function, own, task.label, threads, errors)


@dataclass(frozen=True)
class Receipt:
    """A task's artifact is in the store.

    Attributes:
        folder, manifest: of the artifact.
        computed: by this order; false when it was there already.
        seconds: the host was busy with it.
        n_bytes: written to the store.
        warnings: what the task warned of.
    """

    folder: Path
    manifest: Mapping[str, Any]
    computed: bool
    seconds: float
    n_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def artifact(self) -> Artifact:
        """The artifact, its manifest known."""
        return Artifact(self.folder, self.manifest)


@dataclass(frozen=True)
class Failure:
    """A task failed for its own reasons.

    Attributes:
        sentence: what went wrong.
        traceback: file that holds the traceback; None when it could not be written.
        out_of_memory: the device's or the machine's memory was the reason.
        seconds: the host was busy with it.
    """

    sentence: str
    traceback: Path | None
    out_of_memory: bool
    seconds: float


@dataclass(frozen=True)
class Elsewhere:
    """Another process computes a task's artifact: ask again later.

    Attributes:
        seconds: the host was busy with finding out.
    """

    seconds: float


@dataclass(frozen=True)
class HostFacts:
    """What a ready host says of itself.

    Attributes:
        node: its node's address.
        node_id: Ray's name of the node.
        pid: its process.
        device: what it computes on.
        tier: the node's label `tier` (on-demand, spot), or empty.
        title: what it serves.
    """

    node: str
    node_id: str
    pid: int
    device: str
    tier: str
    title: str


@dataclass(frozen=True)
class HostState:
    """What a host is doing.

    Attributes:
        done: images done of each order it holds or held last, by digest.
        label: the task at work, or empty.
    """

    done: Mapping[str, int] = field(default_factory=dict)
    label: str = ""
