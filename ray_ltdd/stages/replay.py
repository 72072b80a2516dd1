"""A function of tensors that a GPU replays as one CUDA graph: small steps are bound by the launches of their kernels, not by the kernels."""

from collections.abc import Callable

import torch

WARM_UP_CALLS = 3
"""Calls that run kernel by kernel before one is recorded: libraries make their handles, optimisers their state."""


class Replayed:
    """`function` as it is on a CPU; on a GPU its kernels are recorded once and from then on launched together.

    What is called with must keep its shapes and types, and `function` may decide nothing by values: it is run a few times only. Every call does the
    function's work exactly once, those that warm up and the one that records included. The result is overwritten by the next call. A tensor that the
    last call was given in the same place is taken to hold the same values: an epoch's draws are handed over once.

    Args:
        function: takes and returns tensors of one device; may change others in place (weights, optimiser state, buffers).
    """

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self._function = function
        self._n_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._given: tuple[torch.Tensor, ...] = ()
        self._output = torch.empty(0)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return function(*inputs)."""
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        self._n_calls += 1
        if self._n_calls <= WARM_UP_CALLS:
            return self._aside(inputs)
        if self._graph is None:
            self._graph = self._record(inputs)
        for own, last, given in zip(self._inputs, self._given, inputs, strict=True):
            if given is not last:
                own.copy_(given)
        self._given = inputs
        self._graph.replay()
        return self._output

    def _aside(self, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Run on another stream, as recording does: what autograd remembers of streams must fit."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._function(*inputs)
        torch.cuda.synchronize()
        return output

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> torch.cuda.CUDAGraph:
        """Record one call; nothing is computed meanwhile."""
        self._inputs, self._given = [given.clone() for given in inputs], inputs
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may go on using the device
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._output = self._function(*self._inputs)
        return graph
