"""The expert host: an actor that keeps the experts on its device and computes tasks. It holds no maths: it decodes, calls, encodes."""

import os
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

from ray_ltdd.artifacts import ArtifactStore, CheckpointSlot, Payload
from ray_ltdd.cluster.messages import Failure, HostFacts, HostSpec, HostState, Order, Receipt
from ray_ltdd.errors import InputError
from ray_ltdd.workbench import Workbench, WorkbenchSpec

N_REMEMBERED = 4
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class ExpertHost:
    """One process with a workbench. Calls of the group `io` are answered while it computes."""

    def __init__(self, spec: HostSpec) -> None:
        """Args: what to set up, at the first call of `open`."""
        self._spec = spec
        self._store: ArtifactStore | None = None
        self._bench: Workbench | None = None
        self._common: tuple[str, Mapping[str, Any]] = ("", {})
        self._done: OrderedDict[str, int] = OrderedDict()
        self._label = ""

    def open(self) -> HostFacts | Failure:
        """Set up the workbench and say where it stands; a failure where this node does not see the data or the store."""
        node = ray.util.get_node_ip_address()
        try:
            self._store, self._bench = self._set_up(node)
        except (InputError, OSError) as error:
            return Failure(str(error), None, False, 0.0)
        context = ray.get_runtime_context()
        tier = str(context.get_node_labels().get("tier", ""))
        device = str(self._bench.backend.device)
        return HostFacts(node, context.get_node_id(), os.getpid(), device, tier, self._spec.creator, self._spec.title)

    def _set_up(self, node: str) -> tuple[ArtifactStore, Workbench]:
        spec = self._spec
        if not spec.bench.split.folder.exists():
            raise InputError(
                f"the node {node} does not see the artifact store {spec.store_root}: "
                "put output.root and data.root on storage that every node mounts at the same path."
            )
        has_gpu = bool(ray.get_gpu_ids()) and torch.cuda.is_available()
        if has_gpu and spec.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(spec.gpu_share)
        compute = spec.bench.compute
        if compute.device == "auto" and not has_gpu:
            # an actor without a GPU of its own still sees those of others
            compute = compute.model_copy(update={"device": "cpu"})
        bench = WorkbenchSpec(spec.bench.prepared, spec.bench.split, compute).open()
        return ArtifactStore(spec.store_root, spec.checkpoint_seconds), bench

    def compute(self, order: Order, common: list[ray.ObjectRef]) -> Receipt | Failure:
        """Compute one task, or find its artifact in the store.

        Args:
            order: the task.
            common: holds the reference to the inputs it shares with others of its stage; in a list, so that they are fetched once, not per call.
        """
        started = time.monotonic()
        if order.threads is not None:
            torch.set_num_threads(order.threads)
        self._label = order.label
        self._start_counting(order.key.digest)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                inputs = {**self._shared(common), **order.inputs}
                artifact, computed = self._get_or_compute(order, inputs)
            seconds = time.monotonic() - started
            told = tuple(str(w.message) for w in caught if issubclass(w.category, UserWarning))
            return Receipt(artifact.folder, artifact.manifest, computed, seconds, artifact.n_bytes if computed else 0, told)
        except Exception as error:
            return self._failure(order, error, time.monotonic() - started)
        finally:
            self._label = ""

    def _get_or_compute(self, order: Order, inputs: Mapping[str, Any]) -> Any:
        if self._store is None or self._bench is None:
            raise RuntimeError("an expert host was given work before it was opened")
        run = partial(_run, order, self._bench, partial(self._advance, order.key.digest), inputs)
        return self._store.get_or_compute(order.key, run)

    def _shared(self, common: list[ray.ObjectRef]) -> Mapping[str, Any]:
        name = common[0].hex() if common else ""
        if name != self._common[0]:
            self._common = (name, ray.get(common[0]) if common else {})
        return self._common[1]

    def _start_counting(self, digest: str) -> None:
        self._done[digest] = 0
        self._done.move_to_end(digest)
        while len(self._done) > N_REMEMBERED:
            self._done.popitem(last=False)

    def _advance(self, digest: str, n: int) -> None:
        self._done[digest] += n

    def _failure(self, order: Order, error: Exception, seconds: float) -> Failure:
        out_of_memory = isinstance(error, OUT_OF_MEMORY)
        if out_of_memory and self._bench is not None:
            self._bench.release()
        sentence = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Failure(sentence, _write_traceback(order, error), out_of_memory, seconds)

    @ray.method(concurrency_group="io")
    def state(self) -> HostState:
        """What it is doing now."""
        return HostState(dict(self._done), self._label)


def _run(order: Order, bench: Workbench, advance: Any, inputs: Mapping[str, Any], slot: CheckpointSlot) -> Payload:
    return order.function(bench, slot, advance, **inputs)


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
