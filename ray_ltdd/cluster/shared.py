"""The hosts of a group that somebody else keeps: a sweep's trials find them, reserve one for every order, and follow those that replace dead ones."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import ray

from ray_ltdd.cluster.pool import DEATHS, Host, HostPool
from ray_ltdd.cluster.session import NAMESPACE
from ray_ltdd.errors import InputError

LOOK_SECONDS = 2.0
ANSWER_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
"""How long a group may be without any host, ready or not, before a trial gives up; `cluster.wait_seconds` where that is longer."""


@dataclass
class SharedPool(HostPool):
    """Hosts that are found, and never created or ended; see `HostPool`."""

    is_shared: ClassVar[bool] = True
    _looked_at: float = float("-inf")
    _last_used: str = ""

    def grow(self, n_wanted: int) -> None:
        """Take in the group's hosts that are not known yet, whatever is wanted."""
        if self.hosts and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        for name in sorted(self._others()):
            try:
                actor = ray.get_actor(name, NAMESPACE)
            except ValueError:
                # it died since the list was made
                continue
            # `open` would be answered after the task at work
            self.hosts.append(Host(name, actor, actor.facts.remote(), created=False))

    def check_placeable(self, waited_seconds: float) -> None:
        """Look whether to go on waiting for a host. One that waits for its place is waited for, and so is whoever replaces one that died.

        Raises:
            InputError: nobody has kept a host of the group for too long.
        """
        if self.hosts or self._others():
            return
        if waited_seconds >= max(self.cluster.wait_seconds, PATIENCE_SECONDS):
            raise InputError(f"for {waited_seconds:.0f} s there was no expert host of the group {self.group}: whoever keeps them has ended.")

    def takers(self, n: int, held: Mapping[str, int], depth: int) -> list[Host]:
        """Reserve up to `n` idle hosts: the one used last comes first, since it holds what this executor's tasks read."""
        waiting = sorted(self.ready, key=lambda host: (host.name != self._last_used, host.facts is not None and host.facts.tier == "spot"))
        taken: list[Host] = []
        while waiting and len(taken) < n:
            asked, waiting = waiting[: n - len(taken)], waiting[n - len(taken) :]
            answers: list[ray.ObjectRef] = [host.actor.reserve.remote() for host in asked]
            taken += [host for host, answer in zip(asked, answers, strict=True) if self._is_yes(host, answer)]
        if taken:
            self._last_used = taken[0].name
        return taken

    def _is_yes(self, host: Host, answer: ray.ObjectRef) -> bool:
        try:
            return bool(ray.get(answer, timeout=ANSWER_SECONDS))
        except DEATHS:
            self.discard(host)
        except ray.exceptions.GetTimeoutError:
            pass
        return False

    def opened(self, host: Host) -> None:
        """Take in a found host's facts, or forget it for now where it is still starting. Whether deaths are too many is for its keeper to say."""
        try:
            host.facts = ray.get(host.opening)
        except DEATHS:
            self.discard(host)
            return
        if host.facts is None:
            self.hosts.remove(host)

    def discard(self, host: Host, shrink: bool = False) -> None:
        """Forget a dead host; its keeper replaces it."""
        self.hosts.remove(host)
        self._dead.add(host.name)

    def close(self) -> None:
        """Forget the hosts, which others use."""
        self.hosts = []
