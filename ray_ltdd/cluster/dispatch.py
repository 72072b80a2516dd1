"""One stage's tasks on the expert hosts: heaviest first, a bounded number in flight, tried again when a host dies under them."""

import time
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray

from ray_ltdd.artifacts import Artifact, ArtifactStore
from ray_ltdd.cluster.messages import Elsewhere, Failure, HostState, Order, Receipt, StageInputs
from ray_ltdd.cluster.pool import DEATHS, Host, HostPool
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.executor import Advance, Reporter, StageRecord, Task

POLL_SECONDS = 0.5
ELSEWHERE_SECONDS = 0.5
"""Until a task is asked for again whose artifact another process computes."""
SHARED_SECONDS = 0.1
"""Until hosts that others have reserved are asked again."""
MOST_DEATHS = 10
OUT_OF_MEMORY = "low on memory"
"""What Ray says when its memory monitor ended a worker; a worker that died of anything else may have, it adds, been killed for its memory."""
LESS_MEMORY = (
    ": memory ran out: raise cluster.gpu_share or lower cluster.workers, so that fewer expert hosts share a device, "
    "or lower experts.batch_size, calibrate.batch_size, recover.batch_size or relabel.views.batch_size."
)
DEEP_QUEUE = 4
"""Tasks waiting for every host from which a host gets its next one before it has finished the last, so that it never waits for the driver."""


@dataclass(eq=False)
class Attempt:
    """A task on its way.

    Attributes:
        task: what is to be done.
        n_failures: times it failed for its own reasons.
        n_deaths: hosts that died under it since its checkpoint last moved.
        checkpoint_time: of its resumable state when it was last given out, seconds; 0 without one.
        done: images reported so far.
        not_before: when it may be given out, on the monotonic clock.
    """

    task: Task
    n_failures: int = 0
    n_deaths: int = 0
    checkpoint_time: float = 0.0
    done: int = 0
    not_before: float = 0.0


@dataclass
class Dispatcher:
    """Runs the tasks of one stage to their ends.

    Attributes:
        title: the stage.
        pool: the hosts.
        store: where checkpoints are looked at.
        record: told the costs.
        reporter, advance: told the progress.
        threads: CPU threads of a task; None leaves torch's own number.
        errors: folder for tracebacks.
        stage: what all tasks have in common, and the reference to it.
    """

    title: str
    pool: HostPool
    store: ArtifactStore
    record: StageRecord
    reporter: Reporter
    advance: Advance
    threads: int | None
    errors: Path
    stage: StageInputs
    reference: ray.ObjectRef
    _queue: deque[Attempt] = field(default_factory=deque)
    _flying: dict[ray.ObjectRef, tuple[Attempt, Host]] = field(default_factory=dict)
    _asked: dict[ray.ObjectRef, Host] = field(default_factory=dict)
    _labels: dict[str, str] = field(default_factory=dict)
    _artifacts: dict[str, Artifact] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> dict[str, Artifact]:
        """Compute the tasks, which are in the order they are to start in; return artifacts by digest.

        Raises:
            InputError: a task failed for its own reasons as often as it may, its hosts kept dying, or no node can hold a host.
        """
        self._queue = deque(Attempt(task) for task in tasks)
        idle_since, polled = time.monotonic(), 0.0
        while self._queue or self._flying:
            self.pool.grow(len(self._queue) + len(self._flying))
            self._give_out()
            if self.pool.ready:
                idle_since = time.monotonic()
            else:
                self.pool.check_placeable(time.monotonic() - idle_since)
            self._collect()
            if time.monotonic() - polled >= POLL_SECONDS:
                polled = time.monotonic()
                self._poll()
        self.record.n_workers = max(self.record.n_workers, len(self.pool.hosts))
        return self._artifacts

    def _give_out(self) -> None:
        held = {host.name: 0 for host in self.pool.ready}
        for _, host in self._flying.values():
            held[host.name] = held.get(host.name, 0) + 1
        depth = 2 if len(self._queue) >= DEEP_QUEUE * self.pool.size else 1
        due = deque(attempt for attempt in self._queue if attempt.not_before <= time.monotonic())
        for host in self.pool.takers(len(due), held, depth):
            attempt = due.popleft()
            self._queue.remove(attempt)
            attempt.checkpoint_time = self._checkpoint_time(attempt)
            order = Order.of(attempt.task, self.stage.common, self.threads, self.errors)
            self._flying[host.actor.compute.remote(order, [self.reference])] = (attempt, host)

    def _collect(self) -> None:
        opening = {host.opening: host for host in self.pool.hosts if host.facts is None}
        waited = [*self._flying, *opening]
        seconds = SHARED_SECONDS if self.pool.is_shared and self._queue else POLL_SECONDS
        if not waited:
            # all hosts are others', or the artifact is
            time.sleep(seconds)
            return
        ray.wait(waited, num_returns=1, timeout=seconds, fetch_local=False)
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0, fetch_local=False)
        for reference in ready:
            if reference in opening:
                self.pool.opened(opening[reference])
            elif reference in self._flying:
                self._settle(reference)

    def _settle(self, reference: ray.ObjectRef) -> None:
        attempt, host = self._flying.pop(reference)
        try:
            answer = ray.get(reference)
        except (*DEATHS, ray.exceptions.ObjectLostError) as error:
            self._host_died(attempt, host, error)
            return
        except ray.exceptions.RayTaskError as error:
            answer = Failure(on_one_line(error), None, False, 0.0)
        self.record.busy_seconds += answer.seconds
        if isinstance(answer, Failure):
            self._failed(attempt, host, answer)
        elif isinstance(answer, Elsewhere):
            attempt.not_before = time.monotonic() + ELSEWHERE_SECONDS
            self._queue.append(attempt)
        else:
            self._finished(attempt, answer)

    def _finished(self, attempt: Attempt, receipt: Receipt) -> None:
        for sentence in receipt.warnings:
            warnings.warn(sentence, stacklevel=2)
        self._artifacts[attempt.task.key.digest] = receipt.artifact
        self.record.add(receipt.artifact, attempt.task.n_images, receipt.computed)
        self.record.n_bytes += receipt.n_bytes
        self._advance_to(attempt, attempt.task.n_images)

    def _failed(self, attempt: Attempt, host: Host, failure: Failure) -> None:
        attempt.n_failures += 1
        if attempt.n_failures >= self.pool.cluster.attempts:
            where = f"; traceback: {failure.traceback}" if failure.traceback else ""
            node = host.facts.node if host.facts else "?"
            times = f"{attempt.n_failures} times, last on {node}" if attempt.n_failures > 1 else f"on {node}"
            remedy = LESS_MEMORY if failure.out_of_memory else ""
            raise InputError(f"{self.title}, {attempt.task.label}: {failure.sentence} (tried {times}{where}){remedy}")
        if failure.out_of_memory:
            self._make_room(attempt, host)
        self._queue.appendleft(attempt)

    def _make_room(self, attempt: Attempt, host: Host) -> None:
        """Have one host less on a device or machine whose memory several fill; the only one, and one that others use too, stays."""
        if self.pool.is_shared or self.pool.size == 1 or host not in self.pool.hosts:
            return
        self.pool.discard(host, shrink=True)
        where = host.facts.node if host.facts else "?"
        warnings.warn(
            f"memory ran out on {where}, where one expert host is ended ({self.pool.size} left); {attempt.task.label} is tried again", stacklevel=2
        )

    def _host_died(self, attempt: Attempt, host: Host, error: Exception) -> None:
        if host in self.pool.hosts:
            # of several hosts that fill a machine's memory, one less may fit
            self.pool.discard(host, shrink=OUT_OF_MEMORY in str(error))
            where = host.facts.node if host.facts else "?"
            warnings.warn(f"an expert host on {where} died; {attempt.task.label} goes to another", stacklevel=2)
            self.pool.discard_dead()
        attempt.n_deaths = attempt.n_deaths + 1 if self._checkpoint_time(attempt) == attempt.checkpoint_time else 1
        if attempt.n_deaths >= MOST_DEATHS:
            raise InputError(f"{self.title}, {attempt.task.label}: {attempt.n_deaths} expert hosts died under it; the last: {on_one_line(error)}")
        self._queue.appendleft(attempt)

    def _checkpoint_time(self, attempt: Attempt) -> float:
        try:
            return self.store.checkpoint(attempt.task.key).stat().st_mtime
        except OSError:
            return 0.0

    def _poll(self) -> None:
        for reference in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)[0] if self._asked else []:
            host = self._asked.pop(reference)
            try:
                self._take_in(host, ray.get(reference))
            except ray.exceptions.RayError:
                # that it died is learnt from its task
                self._labels.pop(host.name, None)
        asked = {host.name for host in self._asked.values()}
        for host in {host.name: host for _, host in self._flying.values()}.values():
            if host.name not in asked:
                self._asked[host.actor.state.remote()] = host
        self.reporter.workers([self._line(host) for host in self.pool.hosts])

    def _line(self, host: Host) -> str:
        if host.facts is None:
            return "an expert host is starting"
        return f"{host.facts.node}, process {host.facts.pid}, {host.facts.device}: {self._labels.get(host.name) or 'idle'}"

    def _take_in(self, host: Host, state: HostState) -> None:
        self._labels[host.name] = state.label
        for attempt, holder in self._flying.values():
            if holder is host and attempt.task.key.digest in state.done:
                self._advance_to(attempt, min(state.done[attempt.task.key.digest], attempt.task.n_images))

    def _advance_to(self, attempt: Attempt, done: int) -> None:
        if done != attempt.done:
            self.advance(done - attempt.done)
            attempt.done = done
