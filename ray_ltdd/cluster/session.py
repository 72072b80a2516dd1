"""A connection to Ray: one of this run's own on this machine, or a cluster's."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from pydantic import ValidationError

from ray_ltdd.errors import InputError, on_one_line
from ray_ltdd.placement import ClusterConfig
from ray_ltdd.yaml_files import override, read_yaml

NAMESPACE = "ray_ltdd"
OBJECT_STORE_BYTES = 256 * 2**20
CONNECT_SECONDS = 5.0


class EarlyConnection:
    """A connection being made in a thread of its own while the program imports torch and reads the data; both take seconds."""

    def __init__(self, address: str) -> None:
        """Begin."""
        self.address = address
        self._made = threading.Event()
        self._over = threading.Event()
        self._error: Exception | None = None
        threading.Thread(target=self._hold, daemon=True).start()

    def _hold(self) -> None:
        try:
            _connect(self.address)
        except Exception as error:
            self._error = error
        self._made.set()
        # Ray's processes are made to die with the thread that started them, not with the program
        self._over.wait()

    def wait(self) -> None:
        """Return when the connection stands.

        Raises:
            InputError: it could not be made.
        """
        self._made.wait()
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Let go of Ray's processes."""
        self._over.set()


_early: list[EarlyConnection] = []


def connect_early(address: str) -> None:
    """Begin to connect; `connected` with the same address takes it over."""
    if not _early and not ray.is_initialized():
        _early.append(EarlyConnection(address))


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect for the body's time. A process that is connected already (a notebook, a test, a sweep's trial) keeps its connection.

    Raises:
        InputError: there is no cluster at the address, or it does not take us.
    """
    early = _early.pop() if _early and _early[0].address == address else None
    if early is None and ray.is_initialized():
        yield
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    try:
        if early is not None:
            early.wait()
        else:
            _connect(address)
        yield
    finally:
        ray.shutdown()
        if early is not None:
            early.end()
        if mode is None:
            # Ray turns it on for a cluster of its own and leaves it on for whatever this process connects to next
            os.environ.pop("RAY_AUTH_MODE", None)


def _connect(address: str) -> None:
    quiet: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            _check_shared_memory()
            ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
            _restrict_token()
        else:
            _check_reachable(address)
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        where = "this machine belongs to no running cluster" if address == "auto" else f"no Ray cluster answers at {address}"
        raise InputError(f"cluster.address={address}: {where} ({on_one_line(error)}); start one, or use cluster.address=local.") from None
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(f"cluster.address={address}: Ray does not start or take this process: {on_one_line(error)}") from None


def _check_reachable(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise InputError(f"cluster.address={address} is no address: give local, auto or HOST:PORT, such as 10.0.0.1:6379.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(str(error)) from None


def _check_shared_memory() -> None:
    # below it, Ray puts the object store on disk; messages are small, so that a part of it is enough
    free = psutil.virtual_memory().available
    if free < 4 * OBJECT_STORE_BYTES:
        raise InputError(f"a Ray on this machine needs about 1 GB of free memory, {free / 1e9:.1f} GB are free: use cluster.executor=inline.")


def _restrict_token() -> None:
    token = Path.home() / ".ray" / "auth_token"
    if token.exists() and token.stat().st_mode & 0o077:
        token.chmod(0o600)


def peek(path: Path, overrides: list[str]) -> ClusterConfig | None:
    """The cluster's settings as a command will use them, before everything else is known; None where they are wrong, which is said later."""
    try:
        values = read_yaml(path)
        for text in overrides:
            override(values, text)
        return ClusterConfig.model_validate(values.get("cluster") or {})
    except (InputError, ValidationError):
        return None


def node_resources() -> list[dict[str, float]]:
    """Resources of every node that is alive, in Ray's names (CPU, GPU, memory in bytes)."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def most_workers(cluster: ClusterConfig, gpus: float, nodes: list[dict[str, float]]) -> int:
    """How many expert hosts fit on the nodes: by GPUs where a host takes some, by CPUs and memory everywhere."""
    request = host_request(cluster, gpus)
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in request.items()) + 1e-6) for node in nodes)


def host_request(cluster: ClusterConfig, gpus: float) -> dict[str, float]:
    """What Ray sets aside for one expert host; amounts of zero are left out."""
    request = {"CPU": cluster.cpus_per_worker, "GPU": gpus, "memory": cluster.memory_gb * 1e9}
    return {name: amount for name, amount in request.items() if amount}


def resolved_gpu_share(cluster: ClusterConfig, nodes: list[dict[str, float]]) -> float:
    """GPUs of one expert host: the setting, or 1 where any node has one."""
    if cluster.gpu_share is not None:
        return cluster.gpu_share
    return 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
