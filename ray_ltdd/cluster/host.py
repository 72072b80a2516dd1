"""The expert host: an actor that keeps the experts on its device and computes tasks. It holds no maths: it decodes, calls, encodes."""

import os
import threading
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch

from ray_ltdd.artifacts import Artifact, ArtifactStore, BeingComputed, CheckpointSlot, Payload
from ray_ltdd.cluster.messages import Elsewhere, Failure, HostFacts, HostSpec, HostState, Order, Receipt, StageInputs
from ray_ltdd.errors import InputError
from ray_ltdd.workbench import Workbench, WorkbenchSpec

N_REMEMBERED = 4
N_BENCHES = 3
"""Kept open at a time: a sweep's trials on several splits take turns on one host."""
RESERVED_SECONDS = 30.0
"""After which a host is free again when no order follows: whoever reserved it is dead."""


class ExpertHost:
    """One process with the workbenches it was last asked for. Calls of the group `io` are answered while it computes."""

    def __init__(self, spec: HostSpec) -> None:
        """Args: what to set up, at the first call of `open`."""
        self._spec = spec
        self._store: ArtifactStore | None = None
        self._facts: HostFacts | None = None
        self._inputs: tuple[str, StageInputs] | None = None
        self._benches: OrderedDict[str, Workbench] = OrderedDict()
        self._done: OrderedDict[str, int] = OrderedDict()
        self._label = ""
        self._lock = threading.Lock()
        self._reserved_until = 0.0

    def open(self) -> HostFacts | Failure:
        """Say where it stands; a failure where its node does not see the store."""
        node, spec = ray.util.get_node_ip_address(), self._spec
        has_gpu = _has_gpu()
        try:
            if not spec.probe.exists():
                raise InputError(
                    f"the node {node} does not see the artifact store {spec.store_root}: "
                    "put output.root and data.root on storage that every node mounts at the same path."
                )
            if has_gpu and spec.gpu_share < 1:
                torch.cuda.set_per_process_memory_fraction(spec.gpu_share)
            self._store = ArtifactStore(spec.store_root, spec.checkpoint_seconds)
        except InputError as error:
            return Failure(str(error), None, False, 0.0)
        except (OSError, RuntimeError) as error:
            # a mount that refuses, a GPU that is broken
            return Failure(f"the expert host on {node} cannot start: {type(error).__name__}: {error}.", None, False, 0.0)
        context = ray.get_runtime_context()
        device = torch.cuda.get_device_name() if has_gpu else "cpu"
        self._facts = HostFacts(node, context.get_node_id(), os.getpid(), device, str(context.get_node_labels().get("tier", "")), spec.title)
        return self._facts

    def compute(self, order: Order, stage: list[ray.ObjectRef]) -> Receipt | Failure | Elsewhere:
        """Compute one task, or find its artifact in the store; a host does not wait for one that another process computes.

        Args:
            order: the task.
            stage: holds the reference to what its stage's tasks have in common; in a list, so that it is fetched once and not with every call.
        """
        started = time.monotonic()
        if order.threads is not None:
            torch.set_num_threads(order.threads)
        self._label, self._reserved_until = order.label, float("inf")
        self._start_counting(order.key.digest)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                artifact, computed = self._get_or_compute(order, self._stage(stage[0]))
            seconds = time.monotonic() - started
            told = tuple(str(w.message) for w in caught if issubclass(w.category, UserWarning))
            return Receipt(artifact.folder, artifact.manifest, computed, seconds, artifact.n_bytes if computed else 0, told)
        except BeingComputed:
            return Elsewhere(time.monotonic() - started)
        except Exception as error:
            return self._failure(order, error, time.monotonic() - started)
        finally:
            self._label, self._reserved_until = "", 0.0

    def _get_or_compute(self, order: Order, stage: StageInputs) -> tuple[Artifact, bool]:
        if self._store is None:
            raise RuntimeError("an expert host was given work before it was opened")
        run = partial(_run, order, self._bench(stage.bench), partial(self._advance, order.key.digest), {**stage.common, **order.inputs})
        return self._store.get_or_compute(order.key, run, wait=False)

    def _stage(self, reference: ray.ObjectRef) -> StageInputs:
        if self._inputs is None or self._inputs[0] != reference.hex():
            self._inputs = (reference.hex(), ray.get(reference))
        return self._inputs[1]

    def _bench(self, spec: WorkbenchSpec) -> Workbench:
        name = f"{spec.prepared.folder} {spec.split.digest} {spec.compute.model_dump_json()}"
        if name not in self._benches:
            compute = spec.compute
            if compute.device == "auto" and not _has_gpu():
                # an actor without a GPU of its own still sees those of others
                compute = compute.model_copy(update={"device": "cpu"})
            self._benches[name] = WorkbenchSpec(spec.prepared, spec.split, compute).open()
        self._benches.move_to_end(name)
        while len(self._benches) > N_BENCHES:
            self._benches.popitem(last=False)[1].release()
        return self._benches[name]

    def _start_counting(self, digest: str) -> None:
        self._done[digest] = 0
        self._done.move_to_end(digest)
        while len(self._done) > N_REMEMBERED:
            self._done.popitem(last=False)

    def _advance(self, digest: str, n: int) -> None:
        self._done[digest] += n

    def _failure(self, order: Order, error: Exception, seconds: float) -> Failure:
        out_of_memory = _is_out_of_memory(error)
        if out_of_memory:
            while self._benches:
                self._benches.popitem()[1].release()
        sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Failure(sentence, _write_traceback(order, error), out_of_memory, seconds)

    @ray.method(concurrency_group="io")
    def reserve(self) -> bool:
        """Promise the next order to the caller, if the host is idle and promised to nobody: for hosts that several executors share."""
        with self._lock:
            is_free = time.monotonic() >= self._reserved_until
            if is_free:
                self._reserved_until = time.monotonic() + RESERVED_SECONDS
            return is_free

    @ray.method(concurrency_group="io")
    def state(self) -> HostState:
        """What it is doing now."""
        return HostState(dict(self._done), self._label)

    @ray.method(concurrency_group="io")
    def facts(self) -> HostFacts | None:
        """Where it stands; None before it was opened."""
        return self._facts


def _has_gpu() -> bool:
    return bool(ray.get_gpu_ids()) and torch.cuda.is_available()


def _run(order: Order, bench: Workbench, advance: Any, inputs: Mapping[str, Any], slot: CheckpointSlot) -> Payload:
    return order.function(bench, slot, advance, **inputs)


def _is_out_of_memory(error: Exception) -> bool:
    # on a CPU torch has no class of its own for it
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _write_traceback(order: Order, error: Exception) -> Path | None:
    path = order.errors / f"{order.key.stage}-{order.key.digest}.txt"
    where = f"{order.label}, process {os.getpid()} on {ray.util.get_node_ip_address()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("\n".join([where, *traceback.format_exception(error), ""]))
    except OSError:
        return None
    return path
