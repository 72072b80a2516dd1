"""Expert hosts that stand on a cluster: list them, end them."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from ray_ltdd.cluster.messages import HostFacts
from ray_ltdd.cluster.pool import group_in, host_names
from ray_ltdd.cluster.session import NAMESPACE, connected
from ray_ltdd.errors import InputError

ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class StandingHost:
    """One host.

    Attributes:
        name: in Ray.
        group: of the hosts with the same experts.
        facts: where it stands and what it serves; None when it does not answer in time.
        label: the task at work, empty when idle.
    """

    name: str
    group: str
    facts: HostFacts | None
    label: str

    @property
    def state(self) -> str:
        """For people."""
        return "no answer" if self.facts is None else self.label or "idle"


def list_hosts(address: str) -> list[StandingHost]:
    """All expert hosts of a cluster, by name.

    Raises:
        InputError: there is no cluster at `address`.
    """
    with connected(address):
        return [_ask(name) for name in host_names()]


def stop_hosts(address: str, group: str | None = None) -> list[str]:
    """End the hosts of a group, or all; return their names.

    Raises:
        InputError: there is no cluster at `address`, or no host of that group on it.
    """
    with connected(address):
        names = [name for name in host_names() if group in (None, group_in(name))]
        if group is not None and not names:
            known = ", ".join(sorted({group_in(name) for name in host_names()})) or "none"
            raise InputError(f"there is no host of the group {group} on the cluster {address} (groups: {known}): `ray-ltdd hosts list` shows them.")
        for name in names:
            # it may have died since the list was made
            with suppress(ValueError):
                ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
        return names


def _ask(name: str) -> StandingHost:
    try:
        actor = ray.get_actor(name, NAMESPACE)
        answers: list[Any] = ray.get([actor.state.remote(), actor.facts.remote()], timeout=ANSWER_SECONDS)
    except (ray.exceptions.RayError, ValueError):
        return StandingHost(name, group_in(name), None, "")
    state, facts = answers
    return StandingHost(name, group_in(name), facts, state.label)
