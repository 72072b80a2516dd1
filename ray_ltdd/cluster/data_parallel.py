"""Several processes train one expert together: Ray Train starts them and joins them in a process group.

When one dies, all are started again and go on from the last checkpoint, as if nothing had happened. Only settings travel: the first process
leaves the trained weights in a file beside the checkpoint. Ray Train's own retries are not used: they count a death like a failure of the training.
"""

import json
import os
import shutil
import time
from concurrent.futures import wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.train import ControllerError, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError, get_context
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_ltdd.artifacts import CheckpointSlot, Payload, provenance
from ray_ltdd.cluster.background import in_background
from ray_ltdd.cluster.dispatch import MOST_DEATHS
from ray_ltdd.cluster.pool import DEATHS
from ray_ltdd.cluster.session import host_request, node_resources, resolved_gpu_share
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.executor import Advance, Task
from ray_ltdd.placement import ClusterConfig
from ray_ltdd.stages.ranks import Ranks
from ray_ltdd.workbench import WorkbenchSpec

POLL_SECONDS = 1.0
# Ray Train does not export these; the first two: a node was lost, or its place taken, between our look and its own
_DEATHS = ("WorkerGroupStartupFailedError", "WorkerGroupStartupTimeoutError", "WorkerHealthCheckTimeoutError")


@dataclass(frozen=True)
class Assignment:
    """What every process is told.

    Attributes:
        task: what to compute.
        spec: the workbench to set up.
        checkpoint: file of the resumable state, which all of them read.
        checkpoint_seconds: between saves.
        threads: CPU threads of each.
    """

    task: Task
    spec: WorkbenchSpec
    checkpoint: Path
    checkpoint_seconds: float
    threads: int

    def outcome(self) -> CheckpointSlot:
        """Where the first process leaves what was computed."""
        return CheckpointSlot(self.checkpoint.with_name(f"{self.checkpoint.stem}-trained.safetensors"), min_seconds=0)


def train_together(task: Task, spec: WorkbenchSpec, checkpoint: Path, checkpoint_seconds: float, cluster: ClusterConfig, advance: Advance) -> Payload:
    """Compute `task` by `task.n_workers` processes that Ray places; Ray must be connected.

    Args:
        task: its function takes `ranks`.
        spec: the workbench each process sets up.
        checkpoint: file of the resumable state, on storage that every node sees.
        checkpoint_seconds: between saves, see `CheckpointSlot`.
        cluster: CPUs, GPU and memory of each process, and how often to try.
        advance: told the images done, about every second.

    Raises:
        InputError: the task's own, at once; or it failed otherwise, or its processes died, too often without reaching another checkpoint; or no node
            has a place for the processes within `cluster.wait_seconds`.
    """
    share = 0.0 if spec.compute.device == "cpu" else resolved_gpu_share(cluster, node_resources())
    if not share and spec.compute.device == "auto":
        # a process without a GPU of its own still sees those of others
        spec = replace(spec, compute=spec.compute.model_copy(update={"device": "cpu"}))
    assignment = Assignment(task, spec, checkpoint, checkpoint_seconds, max(int(cluster.cpus_per_worker), 1))
    # two processes of one group cannot share a GPU
    request = host_request(cluster, 1.0 if share else 0.0)
    return Training(assignment, cluster, request, advance).run()


@dataclass
class Training:
    """The driver's side of one training.

    Attributes:
        assignment: what the processes are told.
        cluster: how often to try.
        request: what Ray sets aside for each process.
        advance: told the progress.
        n_failures, n_deaths: attempts that ended so since the checkpoint last moved.
    """

    assignment: Assignment
    cluster: ClusterConfig
    request: dict[str, float]
    advance: Advance
    n_failures: int = 0
    n_deaths: int = 0
    _checkpoint_time: float = 0.0
    _told: int = 0

    def run(self) -> Payload:
        """Try until the outcome is there; see `train_together`."""
        outcome = self.assignment.outcome()
        state = outcome.load()
        while state is None:
            self._require_place()
            error = self._attempt()
            state = outcome.load()
            if state is None:
                self._settle(error)
        self._advance_to(self.assignment.task.n_images)
        outcome.clear()
        return _unpacked(state)

    def _require_place(self) -> None:
        """Wait until the processes would find room; asking for it also makes an autoscaler start nodes.

        Raises:
            InputError: they did not within `cluster.wait_seconds`.
        """
        task, seconds = self.assignment.task, self.cluster.wait_seconds
        group = placement_group([self.request] * task.n_workers)
        try:
            if group.wait(seconds):
                return
        finally:
            remove_placement_group(group)
        wanted = ", ".join(f"{amount / 1e9:g} GB" if name == "memory" else f"{amount:g} {name}" for name, amount in self.request.items())
        raise InputError(
            f"{task.label}: within cluster.wait_seconds={seconds:g} there was no room for its {task.n_workers} processes of {wanted} each: lower "
            "cluster.expert_workers, cluster.cpus_per_worker or cluster.memory_gb, or raise cluster.wait_seconds where an autoscaler has to start "
            "nodes or others have to finish."
        )

    def _attempt(self) -> BaseException | None:
        """Let Ray Train run the processes once; return how it failed."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        counter: Any = ray.remote(Counter).options(num_cpus=0, scheduling_strategy=here).remote()
        self.assignment.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        for left in self.assignment.checkpoint.parent.glob(f".{self.assignment.checkpoint.stem}-*"):
            # of a driver that was killed: whoever holds the expert's lock is the only one alive
            shutil.rmtree(left, ignore_errors=True)
        try:
            with TemporaryDirectory(
                prefix=f".{self.assignment.checkpoint.stem}-", dir=self.assignment.checkpoint.parent, ignore_cleanup_errors=True
            ) as folder:
                fitting = in_background(self._trainer(counter, folder).fit, "ray-train")
                while not wait([fitting], timeout=POLL_SECONDS).done:
                    self._advance_to(_count(counter))
                if fitting.exception() is None:
                    self._advance_to(_count(counter))
                return fitting.exception()
        finally:
            # also ends the processes, should this be left before they are done
            ray.kill(counter)

    def _trainer(self, counter: Any, folder: str) -> TorchTrainer:
        _configure_ray_train()
        has_gpus = "GPU" in self.request
        n_workers = self.assignment.task.n_workers
        return TorchTrainer(
            partial(_work, self.assignment, counter),
            torch_config=TorchConfig(backend="nccl" if has_gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=n_workers, use_gpu=has_gpus, resources_per_worker=self.request),
            # mypy sees the classes of Ray Train's first version
            run_config=RunConfig(  # type: ignore[call-arg]
                name="ray_train",
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )

    def _advance_to(self, n_done: int) -> None:
        # a new attempt counts from the checkpoint, which may lie behind what has been told
        if n_done > self._told:
            self.advance(n_done - self._told)
            self._told = n_done

    def _settle(self, error: BaseException | None) -> None:
        """Return if another attempt shall be made.

        Raises:
            InputError: none, with the reason.
        """
        label, causes = self.assignment.task.label, _causes(error)
        for cause in causes:
            if isinstance(cause, InputError):
                raise cause from None
        self._forget_failures_before_a_checkpoint()
        own = [cause for cause in causes if not _lost_connection(cause)]
        if not own or any(_is_death(cause) for cause in own):
            self.n_deaths += 1
            if self.n_deaths >= MOST_DEATHS:
                last = on_one_line((own or causes)[0])
                raise InputError(f"{label}: its processes died {self.n_deaths} times without reaching another checkpoint; the last: {last}")
            return
        self.n_failures += 1
        if self.n_failures >= self.cluster.attempts:
            raise InputError(f"{label}: {type(own[0]).__name__}: {on_one_line(own[0])} (tried {self.n_failures} times)") from error

    def _forget_failures_before_a_checkpoint(self) -> None:
        try:
            written = self.assignment.checkpoint.stat().st_mtime
        except OSError:
            written = 0.0
        if written != self._checkpoint_time:
            self._checkpoint_time, self.n_failures, self.n_deaths = written, 0, 0


class Counter:
    """An actor that holds how many images the current attempt has done, what the checkpoint holds included."""

    def __init__(self) -> None:
        self._n_done = 0

    def put(self, n_done: int) -> None:
        """Take over a new count."""
        self._n_done = n_done

    def get(self) -> int:
        """The last count."""
        return self._n_done


class CountingAdvance:
    """A progress callback that tells a `Counter` about every second."""

    def __init__(self, counter: Any) -> None:
        self._counter = counter
        self._n_done = 0
        self._told_at = 0.0
        self._answer = ray.put(None)

    def __call__(self, n: int) -> None:
        """Count `n` more images."""
        self._n_done += n
        if time.monotonic() - self._told_at >= POLL_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Send the count; an error, and with it the end of the training, where the driver has ended the counter."""
        ray.get(self._answer)
        self._answer = self._counter.put.remote(self._n_done)
        self._told_at = time.monotonic()


def _work(assignment: Assignment, counter: Any) -> None:
    """What Ray Train runs in every process."""
    context = get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(assignment.threads)
    slot = CheckpointSlot(assignment.checkpoint, assignment.checkpoint_seconds)
    advance = CountingAdvance(counter)
    task = assignment.task
    payload = task.function(assignment.spec.open(), slot, advance, **task.inputs, ranks=ranks)
    if ranks.is_first:
        payload.made = {"seconds": round(slot.seconds, 3), **provenance()}
        assignment.outcome().offer(partial(_packed, payload))
        advance.tell()


def _packed(payload: Payload) -> dict[str, torch.Tensor]:
    told = torch.frombuffer(bytearray(json.dumps({"record": payload.record, "made": payload.made}).encode()), dtype=torch.uint8)
    return {f"tensor/{name}": tensor for name, tensor in payload.tensors.items()} | {"told": told}


def _unpacked(state: dict[str, torch.Tensor]) -> Payload:
    tensors = {name.removeprefix("tensor/"): tensor for name, tensor in state.items() if name.startswith("tensor/")}
    return Payload(tensors, **json.loads(bytes(state["told"].tolist())))


def _configure_ray_train() -> None:
    """Set what Ray Train reads from the environment only, and hands on to its own processes."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(POLL_SECONDS / 2)
    # a process less: a node that is taken away is noticed by its death
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    # paths of data and store may be relative
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"


def _count(counter: Any) -> int:
    try:
        return int(ray.get(counter.get.remote()))
    except DEATHS:
        # the processes notice as well, and the attempt ends
        return 0


def _causes(error: BaseException | None) -> list[BaseException]:
    """What went wrong in the processes, or before they started."""
    if isinstance(error, WorkerGroupError):
        return [getattr(failure, "health_check_failure", failure) for failure in error.worker_failures.values()]
    if isinstance(error, ControllerError):
        return [error.controller_failure]
    return [error or RuntimeError("its first process left no result")]


def _is_death(cause: BaseException) -> bool:
    return isinstance(cause, DEATHS) or type(cause).__name__ in _DEATHS


def _lost_connection(cause: BaseException) -> bool:
    """Whether a process only noticed that another one had stopped."""
    return isinstance(cause, torch.distributed.DistError) or (isinstance(cause, RuntimeError) and "gloo" in str(cause))
