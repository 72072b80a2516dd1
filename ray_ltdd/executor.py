"""What a pipeline asks of whoever runs it, and the executor that runs it in this process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

from ray_ltdd.artifacts import Artifact, ArtifactStore, CheckpointSlot, Key, Payload
from ray_ltdd.errors import InputError
from ray_ltdd.sharding import heaviest_first

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """One computation that yields one artifact. Picklable: a module-level function, plain settings and artifact handles.

    Attributes:
        key: names the artifact.
        function: called as function(context, slot, advance, **inputs), returns the payload.
        inputs: settings and upstream artifacts.
        n_images: how much it advances the progress, and its weight when tasks are ordered.
        label: what an error message calls it.
        n_workers: processes that compute it together; with more than one, each calls the function with `ranks=` its place among them.
    """

    key: Key
    function: Callable[..., Payload]
    inputs: Mapping[str, Any]
    n_images: int
    label: str
    n_workers: int = 1


@dataclass
class StageRecord:
    """What one stage cost.

    Attributes:
        title: the stage.
        wall_seconds: in this run.
        compute_seconds: that its artifacts took when they were computed, now or earlier.
        reused_seconds: the part of them that was spent earlier, or for another run.
        n_computed, n_reused: artifacts.
        n_images: images passed.
        n_workers: processes at work; 0 for this one.
        busy_seconds: that they worked, added up.
        n_bytes: written to the store by workers, and sent to all of them.
    """

    title: str
    wall_seconds: float = 0.0
    compute_seconds: float = 0.0
    reused_seconds: float = 0.0
    n_computed: int = 0
    n_reused: int = 0
    n_images: int = 0
    n_workers: int = 0
    busy_seconds: float = 0.0
    n_bytes: int = 0

    @property
    def utilisation(self) -> float | None:
        """Share of the workers' time in which they worked; None without workers."""
        return min(self.busy_seconds / (self.n_workers * self.wall_seconds), 1.0) if self.n_workers and self.wall_seconds else None

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return {**{name: value for name, value in asdict(self).items() if name != "title"}, "utilisation": self.utilisation}

    def add(self, artifact: Artifact, n_images: int, computed: bool) -> None:
        """Take in one artifact."""
        self.n_computed += computed
        self.n_reused += not computed
        self.compute_seconds += artifact.seconds
        self.reused_seconds += 0.0 if computed else artifact.seconds
        self.n_images += n_images


class Reporter(Protocol):
    """Who is told that a stage moves."""

    def stage(self, title: str, n_images: int) -> AbstractContextManager[Advance]:
        """Enter a stage of `n_images`; the context gives the function to advance it."""
        ...

    def workers(self, lines: Sequence[str]) -> None:
        """Say what every worker is doing now, one line each."""
        ...

    def note(self, sentence: str) -> None:
        """Say between two stages what the user should know before the next one."""
        ...


class SilentReporter:
    """Tells nobody."""

    def stage(self, title: str, n_images: int) -> AbstractContextManager[Advance]:
        """Give a function that does nothing."""
        return nullcontext(lambda _: None)

    def workers(self, lines: Sequence[str]) -> None:
        """Do nothing."""

    def note(self, sentence: str) -> None:
        """Do nothing."""


class Executor(Protocol):
    """Computes tasks somewhere and returns their artifacts."""

    store: ArtifactStore

    def compute(self, title: str, tasks: Sequence[Task], part: str = "") -> list[Artifact]:
        """Return the tasks' artifacts in the tasks' order, computing what is missing.

        Args:
            title: the stage, under which costs are added up.
            tasks: of any number.
            part: which part of a stage computed in several, as progress shows it.

        Raises:
            InputError: a task cannot be done; names it.
        """
        ...

    def records(self) -> list[StageRecord]:
        """What each stage has cost so far, in the order of first use."""
        ...

    def close(self) -> None:
        """End what it started for the tasks: processes, connections."""
        ...


@dataclass
class StoredExecutor:
    """Computes nothing: gives what the store holds, for commands that only show what there is.

    Attributes:
        store: where artifacts are.
    """

    store: ArtifactStore

    def compute(self, title: str, tasks: Sequence[Task], part: str = "") -> list[Artifact]:
        """Return the tasks' artifacts in the tasks' order; see `Executor`."""
        return [self._found(title, task) for task in tasks]

    def _found(self, title: str, task: Task) -> Artifact:
        found = self.store.find(task.key)
        if found is None:
            raise InputError(
                f"{title}, {task.label}: the store {self.store.root} does not hold it, as this version computes it; "
                "`ray-ltdd run RUN/settings.yaml` computes what is missing."
            )
        return found

    def records(self) -> list[StageRecord]:
        """See `Executor`; nothing costs anything."""
        return []

    def close(self) -> None:
        """See `Executor`; there is nothing to end."""


@contextmanager
def stage_of(
    tasks: Sequence[Task], title: str, part: str, records: dict[str, StageRecord], reporter: Reporter
) -> Iterator[tuple[StageRecord, Advance]]:
    """Enter what an executor computes at one time: gives the stage's record, made at its first use, and the function that advances its progress.

    The seconds until the context is left are added to the record; an error leaves them out.
    """
    record = records.setdefault(title, StageRecord(title))
    started = time.monotonic()
    with reporter.stage(f"{title} {part}".rstrip(), sum(task.n_images for task in tasks)) as advance:
        yield record, advance
    record.wall_seconds += time.monotonic() - started


@dataclass
class InlineExecutor:
    """Runs tasks one after another in this process.

    Attributes:
        store: where artifacts are.
        context: what task functions get first: the process's experts and images.
        reporter: told the progress.
    """

    store: ArtifactStore
    context: Any
    reporter: Reporter = field(default_factory=SilentReporter)
    _records: dict[str, StageRecord] = field(default_factory=dict)

    def compute(self, title: str, tasks: Sequence[Task], part: str = "") -> list[Artifact]:
        """Compute the tasks, heaviest first; see `Executor`."""
        artifacts: dict[str, Artifact] = {}
        with stage_of(tasks, title, part, self._records, self.reporter) as (record, advance):
            for task in heaviest_first(tasks, [task.n_images for task in tasks]):
                artifact, computed = self.store.get_or_compute(task.key, partial(self._run, task, advance))
                if not computed:
                    advance(task.n_images)
                artifacts[task.key.digest] = artifact
                record.add(artifact, task.n_images, computed)
        return [artifacts[task.key.digest] for task in tasks]

    def _run(self, task: Task, advance: Advance, slot: CheckpointSlot) -> Payload:
        if task.n_workers > 1:
            raise InputError(
                f"{task.label} is to be computed by cluster.expert_workers={task.n_workers} processes together, which needs cluster.executor=ray."
            )
        return task.function(self.context, slot, advance, **task.inputs)

    def records(self) -> list[StageRecord]:
        """See `Executor`."""
        return list(self._records.values())

    def close(self) -> None:
        """See `Executor`; there is nothing to end."""
