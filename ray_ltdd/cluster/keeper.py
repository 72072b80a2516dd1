"""Whoever keeps a group of expert hosts for others: creates them, watches them, replaces those that die."""

import threading
import time
import warnings
from types import TracebackType

import ray

from ray_ltdd.cluster.dispatch import OUT_OF_MEMORY
from ray_ltdd.cluster.messages import HostState
from ray_ltdd.cluster.pool import DEATHS, Host, HostPool
from ray_ltdd.errors import InputError, on_one_line

WATCH_SECONDS = 1.0
MOST_ERRORS = 20
"""Looks in a row that may fail before the sweep ends."""


class HostKeeper:
    """Has as many hosts as fit, while the body of `with` runs; a thread of its own watches them.

    Attributes:
        failure: why there can be no hosts, once that is known.
        labels: the task at work on every ready host, by name; empty text when idle.
    """

    def __init__(self, pool: HostPool) -> None:
        """Args: the pool, which nobody else may use from now on."""
        self._pool = pool
        self._asked: dict[str, ray.ObjectRef] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="host-keeper", daemon=True)
        self._without_since = time.monotonic()
        self.failure: InputError | None = None
        self.labels: dict[str, str] = {}

    @property
    def group(self) -> str:
        """Under which others find the hosts."""
        return self._pool.group

    def __enter__(self) -> "HostKeeper":
        """Create the hosts; they get ready in the background."""
        self._pool.grow(self._pool.size)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the hosts."""
        self._ended.set()
        self._thread.join()
        self._pool.close()

    def raise_failure(self) -> None:
        """Raise what keeps the hosts from being there, if anything does.

        Raises:
            InputError: no node can hold a host, does not see the store, or hosts die one after the other as they start.
        """
        if self.failure is not None:
            raise self.failure

    def _watch(self) -> None:
        n_errors = 0
        while not self._ended.wait(WATCH_SECONDS) and self.failure is None:
            try:
                self._look()
                n_errors = 0
            except InputError as error:
                self.failure = error
            except Exception as error:
                # Ray's head may be slow to answer for a moment; hosts nobody watches would be a sweep whose every trial fails
                n_errors += 1
                if n_errors >= MOST_ERRORS:
                    self.failure = InputError(f"the expert hosts cannot be watched any more: {type(error).__name__}: {on_one_line(error)}")

    def _look(self) -> None:
        for host in [host for host in self._pool.hosts if host.facts is None]:
            if ray.wait([host.opening], timeout=0, fetch_local=False)[0]:
                self._pool.opened(host)
        for host in self._pool.ready:
            self._ask(host)
        self.labels = {name: label for name, label in self.labels.items() if any(host.name == name for host in self._pool.hosts)}
        if self._pool.ready:
            self._without_since = time.monotonic()
        else:
            self._pool.check_placeable(time.monotonic() - self._without_since)
        self._pool.grow(self._pool.size)

    def _ask(self, host: Host) -> None:
        """Take in the last answer of a ready host, if it has come, and ask again."""
        answer = self._asked.get(host.name)
        if answer is not None and not ray.wait([answer], timeout=0, fetch_local=False)[0]:
            return
        try:
            if answer is not None:
                state: HostState = ray.get(answer)
                self.labels[host.name] = state.label
            self._asked[host.name] = host.actor.state.remote()
        except DEATHS as error:
            self._asked.pop(host.name, None)
            # of several hosts that fill a machine's memory, one less may fit
            self._pool.discard(host, shrink=OUT_OF_MEMORY in str(error))
            warnings.warn(f"an expert host on {host.facts.node if host.facts else '?'} died; another takes its place", stacklevel=2)
