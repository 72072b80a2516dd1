"""The expert hosts of one executor: found or created by name, replaced when they die, ended by whoever created them."""

import hashlib
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.actor import ActorHandle

import ray_ltdd
from ray_ltdd.cluster.host import ExpertHost
from ray_ltdd.cluster.messages import Failure, HostFacts, HostSpec
from ray_ltdd.cluster.session import NAMESPACE, host_request, most_workers, node_resources, resolved_gpu_share
from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.placement import ClusterConfig

PREFIX = "expert-host"
N_IO_THREADS = 2
MOST_DEATHS_AT_START = 5
PROBE_SECONDS = 1.0
"""In which a host that lives says so, while another has just died."""
DEATHS = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
"""What Ray raises for a call to a host that has died; for the one under which its memory monitor ended it, the second."""

RemoteHost: Any = ray.remote(concurrency_groups={"io": N_IO_THREADS})(ExpertHost)  # type: ignore[call-overload]


@dataclass
class Host:
    """One expert host as its executor sees it.

    Attributes:
        name: in Ray.
        actor: handle.
        opening: reference to the answer of its first call.
        created: by this pool; false when it was found.
        facts: None until it has answered.
    """

    name: str
    actor: ActorHandle
    opening: ray.ObjectRef
    created: bool
    facts: HostFacts | None = None


def group_of(*fingerprints: str) -> str:
    """The name of a group of hosts: data, split, experts and compute settings by their fingerprints, and the code's own."""
    text = " ".join((*fingerprints, code_fingerprint()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def code_fingerprint() -> str:
    """A hash of this package's source: a kept host with older code must not be taken for a new one."""
    folder = Path(ray_ltdd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".c")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class HostPool:
    """Grows as work comes in, up to what the cluster can hold.

    Attributes:
        spec: what every host sets up; `gpu_share` is filled in here.
        group: first part of the hosts' names.
        cluster: sizes and limits.
        is_shared: whether others give orders to the hosts as well.
    """

    is_shared: ClassVar[bool] = False
    spec: HostSpec
    group: str
    cluster: ClusterConfig
    hosts: list[Host] = field(default_factory=list)
    size: int = 0
    _deaths: int = 0
    _dead: set[str] = field(default_factory=set)
    _has_told: bool = False

    def __post_init__(self) -> None:
        nodes = node_resources()
        share = resolved_gpu_share(self.cluster, nodes)
        self.spec = replace(self.spec, gpu_share=share)
        self.size = self.cluster.workers or max(most_workers(self.cluster, share, nodes), 1)

    @property
    def ready(self) -> list[Host]:
        """Those that have answered."""
        return [host for host in self.hosts if host.facts is not None]

    def grow(self, n_wanted: int) -> None:
        """Have `n_wanted` hosts, or as many as may be: first those of the group that stand there already."""
        n_missing = min(n_wanted, self.size) - len(self.hosts)
        if n_missing <= 0:
            return
        for name in sorted(self._others())[:n_missing]:
            # it may have died since the list was made
            with suppress(ValueError):
                actor = ray.get_actor(name, NAMESPACE)
                self.hosts.append(Host(name, actor, actor.open.remote(), created=False))
        for _ in range(min(n_wanted, self.size) - len(self.hosts)):
            self.hosts.append(self._created())

    def _others(self) -> set[str]:
        known = self._dead | {host.name for host in self.hosts}
        return {name for name in host_names() if group_in(name) == self.group} - known

    def _created(self) -> Host:
        # a name of its own each time: a dead host's name is not free at once
        name = f"{PREFIX}/{self.group}/{uuid.uuid4().hex[:8]}"
        actor = RemoteHost.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached" if self.cluster.keep_hosts else None,
            num_cpus=self.cluster.cpus_per_worker,
            num_gpus=self.spec.gpu_share,
            memory=self.cluster.memory_gb * 1e9,
            max_restarts=0,
            # not inside the placement group of whoever calls, whose end would be the host's
            scheduling_strategy="DEFAULT",
        ).remote(self.spec)
        return Host(name, actor, actor.open.remote(), created=True)

    def check_placeable(self, waited_seconds: float) -> None:
        """Look whether any node can ever hold a host.

        Raises:
            InputError: none can, and `cluster.wait_seconds` are over.
        """
        nodes, request = node_resources(), host_request(self.cluster, self.spec.gpu_share)
        if any(all(node.get(name, 0.0) >= amount for name, amount in request.items()) for node in nodes):
            if waited_seconds >= self.cluster.wait_seconds:
                self._tell_of_other_groups()
            return
        if waited_seconds >= self.cluster.wait_seconds:
            largest = "; ".join(_describe(node) for node in nodes) or "none"
            raise InputError(
                f"no node of the cluster can hold an expert host of {_describe(request)} (nodes: {largest}): lower cluster.cpus_per_worker, "
                "cluster.gpu_share or cluster.memory_gb, or raise cluster.wait_seconds where an autoscaler has to start the node."
            )

    def _tell_of_other_groups(self) -> None:
        """Say once, while no host starts, which hosts of other experts stand on the cluster: kept ones hold their CPUs and GPUs for ever."""
        groups = sorted({group_in(name) for name in host_names()} - {self.group})
        if groups and not self._has_told:
            self._has_told = True
            warnings.warn(
                f"no expert host has started yet: the cluster's CPUs, GPUs or memory are taken. Hosts of other experts stand on it (groups: "
                f"{', '.join(groups)}): `ray-ltdd hosts list` shows what they do, `ray-ltdd hosts stop GROUP` ends them.",
                stacklevel=2,
            )

    def takers(self, n: int, held: Mapping[str, int], depth: int) -> list[Host]:
        """The hosts that take the next `n` orders, or as many as may be given out: one host several times, until it holds `depth`.

        Args:
            n: orders there are.
            held: orders every host holds already, by name.
            depth: most orders a host may hold.
        """
        # the heaviest tasks come first: they go where a node is not taken away
        by_tier = sorted(self.ready, key=lambda host: host.facts is not None and host.facts.tier == "spot")
        return [host for host in by_tier for _ in range(depth - held[host.name])][:n]

    def opened(self, host: Host) -> None:
        """Take in a host's first answer.

        Raises:
            InputError: its node does not see the data; or hosts die one after the other before they answer.
        """
        try:
            answer = ray.get(host.opening)
        except DEATHS as error:
            self.discard(host)
            self._deaths += 1
            # while others are at work, hosts that die at their start are preempted nodes, and no reason to end
            if self._deaths >= MOST_DEATHS_AT_START and not self.ready:
                raise InputError(f"{self._deaths} expert hosts in a row died while they started; the last: {on_one_line(error)}") from None
            return
        if isinstance(answer, Failure):
            raise InputError(answer.sentence)
        self._deaths = 0
        host.facts = answer

    def discard(self, host: Host, shrink: bool = False) -> None:
        """Forget a dead host, and end what may be left of it; `shrink` keeps it from being replaced while others remain."""
        self.hosts.remove(host)
        self._dead.add(host.name)
        ray.kill(host.actor, no_restart=True)
        if shrink and self.size > 1:
            self.size -= 1

    def discard_dead(self) -> None:
        """Forget all hosts that have died, idle ones too: else a task would be handed from one dead host to the next."""
        asked: dict[ray.ObjectRef, Host] = {host.actor.state.remote(): host for host in self.ready}
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)[0] if asked else []:
            try:
                ray.get(reference)
            except DEATHS:
                self.discard(asked[reference])

    def close(self) -> None:
        """End the hosts this pool created, unless they are to be kept."""
        for host in self.hosts:
            if host.created and not self.cluster.keep_hosts:
                ray.kill(host.actor, no_restart=True)
        self.hosts = []


def host_names() -> list[str]:
    """The names of all expert hosts that stand on the cluster, of every group."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in named if actor["namespace"] == NAMESPACE and actor["name"].startswith(f"{PREFIX}/"))


def group_in(name: str) -> str:
    """The group in a host's name."""
    return name.split("/")[1]


def _describe(resources: dict[str, float]) -> str:
    parts = [f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name == "CPU" or resources.get(name)]
    return ", ".join([*parts, f"{resources.get('memory', 0) / 1e9:.1f} GB"])
