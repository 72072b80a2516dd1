"""The executor that has tasks computed by expert hosts; see `ray_ltdd.executor.Executor`."""

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import ray

from ray_ltdd.artifacts import Artifact, ArtifactStore, CheckpointSlot, Payload
from ray_ltdd.cluster.dispatch import Dispatcher
from ray_ltdd.cluster.messages import HostSpec, StageInputs
from ray_ltdd.cluster.pool import HostPool, group_of
from ray_ltdd.cluster.session import connected, node_resources
from ray_ltdd.cluster.shared import SharedPool
from ray_ltdd.config import ExperimentConfig
from ray_ltdd.errors import InputError
from ray_ltdd.executor import Advance, Executor, Reporter, StageRecord, Task, stage_of
from ray_ltdd.runs import RunParts, in_this_process
from ray_ltdd.sharding import heaviest_first
from ray_ltdd.tasks.distil import expert_task
from ray_ltdd.workbench import WorkbenchSpec

N_READERS = 4


@dataclass
class RayExecutor:
    """Connects to Ray when the first task is missing in the store, and not before.

    Attributes:
        store: where artifacts are.
        bench: dataset, split, device of the tasks.
        spec: what every expert host sets up.
        group: name of the hosts' group.
        config: the experiment; its `cluster` and `compute` settings are used.
        reporter: told the progress.
        errors: folder for tracebacks.
        is_guest: the hosts are somebody else's: they are found, and shared with others.
    """

    store: ArtifactStore
    bench: WorkbenchSpec
    spec: HostSpec
    group: str
    config: ExperimentConfig
    reporter: Reporter
    errors: Path
    is_guest: bool = False
    _records: dict[str, StageRecord] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)
    _pool: HostPool | None = None

    def compute(self, title: str, tasks: Sequence[Task], part: str = "") -> list[Artifact]:
        """Compute the tasks on the hosts; see `Executor`."""
        with stage_of(tasks, title, part, self._records, self.reporter) as (record, advance):
            artifacts = self._find(tasks, record, advance)
            missing = {task.key.digest: task for task in tasks if task.key.digest not in artifacts}
            together = [task for task in missing.values() if task.n_workers > 1]
            alone = [task for task in missing.values() if task.n_workers == 1]
            for task in together:
                artifacts[task.key.digest] = self._compute_together(task, record, advance)
            if alone:
                artifacts |= self._dispatcher(title, alone, record, advance).run(heaviest_first(alone, [task.n_images for task in alone]))
        return [artifacts[task.key.digest] for task in tasks]

    def _find(self, tasks: Sequence[Task], record: StageRecord, advance: Advance) -> dict[str, Artifact]:
        # hashing what exists takes longer than looking for what does not: several at a time
        with ThreadPoolExecutor(N_READERS) as readers:
            found = list(readers.map(lambda task: self.store.find(task.key), tasks))
        artifacts = {}
        for task, artifact in zip(tasks, found, strict=True):
            if artifact is not None:
                artifacts[task.key.digest] = artifact
                record.add(artifact, task.n_images, computed=False)
                advance(task.n_images)
        return artifacts

    def _dispatcher(self, title: str, tasks: Sequence[Task], record: StageRecord, advance: Advance) -> Dispatcher:
        pool = self._hosts()
        first = tasks[0].inputs
        common = {name: value for name, value in first.items() if all(task.inputs.get(name) is value for task in tasks)} if len(tasks) > 1 else {}
        stage = StageInputs(self.bench, common)
        record.n_bytes += len(pickle.dumps(stage))
        threads = self._threads(pool, len(tasks))
        return Dispatcher(title, pool, self.store, record, self.reporter, advance, threads, self.errors, stage, ray.put(stage))

    def _threads(self, pool: HostPool, n_tasks: int) -> int | None:
        """The setting; or, on CPUs, a node's threads shared out over the hosts that will be busy: few tasks get more each."""
        if self.config.compute.threads is not None or pool.spec.gpu_share:
            return self.config.compute.threads
        nodes = [node["CPU"] for node in node_resources() if node.get("CPU")]
        n_busy = pool.size if self.is_guest else min(n_tasks, pool.size)
        busy_per_node = -(-n_busy // max(len(nodes), 1))
        return max(int(min(nodes, default=1) // busy_per_node), 1)

    def _compute_together(self, task: Task, record: StageRecord, advance: Advance) -> Artifact:
        if self.is_guest:
            raise InputError(
                f"{task.label} is to be trained by cluster.expert_workers={task.n_workers} processes together, which a sweep's hosts leave no room "
                "for: have `ray-ltdd run` train it first, with the same store."
            )
        # the group's workers need what the hosts hold
        self._hosts().close()
        artifact, computed = self.store.get_or_compute(task.key, partial(self._train_together, task, advance))
        record.add(artifact, task.n_images, computed)
        if computed:
            record.n_workers = max(record.n_workers, task.n_workers)
            record.busy_seconds += artifact.seconds * task.n_workers
        return artifact

    def _train_together(self, task: Task, advance: Advance, slot: CheckpointSlot) -> Payload:
        # Ray Train takes two seconds to import, which most runs need not wait for
        from ray_ltdd.cluster.data_parallel import train_together

        seconds = self.config.output.checkpoint_seconds
        return train_together(task, self.bench, self.store.checkpoint(task.key), seconds, self.config.cluster, advance)

    def _hosts(self) -> HostPool:
        if self._pool is None:
            self._stack.enter_context(connected(self.config.cluster.address))
            self._pool = (SharedPool if self.is_guest else HostPool)(self.spec, self.group, self.config.cluster)
            self._stack.callback(self._pool.close)
        return self._pool

    def records(self) -> list[StageRecord]:
        """See `Executor`."""
        return list(self._records.values())

    def close(self) -> None:
        """End the hosts this executor created, and the connection."""
        self._stack.close()


def make_executor(parts: RunParts) -> Executor:
    """The executor the settings ask for: Ray's, or the one of this process."""
    if parts.config.cluster.executor == "inline":
        return in_this_process(parts)
    config, bench = parts.config, parts.bench
    keys = [expert_task(config, bench, expert).key.digest for expert in (config.observer, *config.teachers)]
    compute = config.compute.model_dump_json()
    group = group_of(bench.prepared.fingerprint, bench.split.fingerprint, compute, str(parts.store.root), *keys)
    title = f"{bench.split.name}, experts {', '.join(dict.fromkeys(key[:8] for key in keys))}"
    spec = HostSpec(parts.store.root, bench.spec.split.folder, config.output.checkpoint_seconds, 0.0, title)
    return RayExecutor(parts.store, bench.spec, spec, group, config, parts.reporter, parts.folder / "errors")


def guest_executor(parts: RunParts, group: str) -> Executor:
    """An executor on the hosts of a group that somebody else keeps."""
    spec = HostSpec(parts.store.root, parts.bench.spec.split.folder, parts.config.output.checkpoint_seconds, 0.0, "")
    return RayExecutor(parts.store, parts.bench.spec, spec, group, parts.config, parts.reporter, parts.folder / "errors", is_guest=True)
