# SPDX-License-Identifier: Apache-2.0
"""Small batches on a GPU replay a CUDA graph: launching kernels one by one takes longer than running them."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MAX_BATCH = 16  # larger batches keep the GPU busy by themselves
MAX_GRAPHS = 8  # per model; the one that was not used for longest makes room

Function = Callable[[Tensor], Tensor]
Replay = Callable[[Tensor], Tensor]

_GRAPHS: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Replay]] = WeakKeyDictionary()


def run(model: nn.Module, name: Hashable, function: Function, x: Tensor) -> Tensor:
    """``function(x)``, replayed from a graph where that is possible and worth it.

    Args:
        model: whose weights ``function`` uses; its graphs live as long as it does.
        name: tells the functions of one model apart.
        function: works on the model's device without reading values back, in eval mode and without gradients.
        x: [B, 3, h, w]; graphs are for one shape and dtype.
    """
    if not x.is_cuda or not 0 < len(x) <= MAX_BATCH or torch.cuda.is_current_stream_capturing():
        return function(x)
    return _replay(model, name, function, x, capture)


def _replay(
    model: nn.Module,
    name: Hashable,
    function: Function,
    x: Tensor,
    make: Callable[[Function, Tensor], Replay],
) -> Tensor:
    graphs = _GRAPHS.setdefault(model, OrderedDict())
    key = (name, tuple(x.shape), x.dtype, x.device, _settings(), _storage(model))
    replay = graphs.get(key)
    if replay is None:
        # Graphs of weights that have moved will not be asked for again.
        for old in [k for k in graphs if k[-1] != key[-1]]:  # type: ignore[index]
            del graphs[old]
        while len(graphs) >= MAX_GRAPHS:
            graphs.popitem(last=False)
        replay = graphs[key] = make(function, x)
    graphs.move_to_end(key)
    return replay(x)


def _settings() -> tuple[Any, ...]:
    """What else decides which kernels run."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
    )


def _storage(model: nn.Module) -> int:
    """Changes when a weight gets other memory. A graph sees edits in place by itself."""
    return hash(tuple(t.data_ptr() for t in (*model.parameters(), *model.buffers())))


def capture(function: Function, x: Tensor) -> Replay:
    """Record ``function(x)``; the result copies its argument in, replays, and copies the output out."""
    with torch.cuda.device(x.device):
        static_x = x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm up: first calls load kernels and allocate
            for _ in range(2):
                function(static_x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Threads that prepare images may use CUDA meanwhile: only this one's mistakes count.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            static_y = function(static_x)

    def replay(new: Tensor) -> Tensor:
        static_x.copy_(new)
        graph.replay()
        return static_y.clone()

    return replay
