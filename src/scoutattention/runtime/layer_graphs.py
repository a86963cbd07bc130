"""What is done for every layer of a prompt, as a CUDA graph: queued kernel by kernel first, and replayed later."""

from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from .graphs import Captured, Recorder, T, no_collection

GRAPHED = 8192
"""Tokens of a prompt up to which work is captured.

A graph needs as much memory as its work: for Qwen3-8B's shape 0.2 GiB with 8,192 tokens, and by the plan 0.6 with
32,768.
"""

_UNFINISHED: list[object] = []
"""Captures that have not ended, or were broken off, and their memory: PyTorch ends the process when it goes."""

Function = Callable[..., tuple[Tensor, ...]]
"""Makes tensors of tensors. It queues work, and waits for nothing."""

Run = Callable[..., tuple[Tensor, ...]]
"""run(function, *inputs) -> what the function makes of the inputs, valid until any function is run again.

So it must be used or copied at once, on the same stream.
"""


class CudaRecorder(Recorder):
    """Captures into CUDA graphs, which share memory: only one of them runs at a time.

    The current stream must not be the default one. What is queued already need not be done, and other threads may use
    the device meanwhile.
    """

    def __init__(self) -> None:
        self._pool: torch.cuda.MemPool | None = None  # made where it is needed; its memory goes with it

    @override
    def capture(self, work: Callable[[], T]) -> Captured[T]:
        pool, graph = self._pool or torch.cuda.MemPool(), torch.cuda.CUDAGraph()
        self._pool, unfinished = None, (pool, graph)  # unless all goes well, the next capture has memory of its own
        _UNFINISHED.append(unfinished)
        with no_collection():
            graph.capture_begin(pool.id, "thread_local")  # type: ignore[arg-type]  # the id is a handle
            try:
                outputs = work()
            finally:
                graph.capture_end()
        _UNFINISHED.remove(unfinished)
        self._pool = pool
        return Captured(graph.replay, outputs)


class _Kept:
    """A function that has run with inputs of these kinds; the second time it is captured, with inputs in `places`."""

    def __init__(self, kinds: list[tuple[torch.Size, torch.dtype]]) -> None:
        self.kinds = kinds
        self.places: tuple[Tensor, ...] = ()
        self.captured: Captured[tuple[Tensor, ...]] | None = None


class LayerGraphs:
    """Runs functions, and captures one when it comes a second time with inputs of the same shapes and dtypes.

    The first time, a function may compile kernels, and libraries may take memory. Inputs of other shapes begin anew.
    Keep it as long as one prompt is read: graphs take memory, and other prompts have other shapes.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._kept: dict[Function, _Kept] = {}  # goes first: graphs before the memory that the recorder has for them
        self._recorder = recorder

    def run(self, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What `function` makes of the inputs. A later run, of any function, may overwrite it."""
        kinds = [(each.shape, each.dtype) for each in inputs]
        kept = self._kept.get(function)
        if kept is None or kept.kinds != kinds:
            self._kept[function] = _Kept(kinds)
            return function(*inputs)
        if kept.captured is None:
            places = kept.places = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
            kept.captured = self._recorder.capture(lambda: function(*places))
        else:
            for place, each in zip(kept.places, inputs, strict=True):
                place.copy_(each)
        kept.captured.replay()
        return kept.captured.outputs


def at_once(function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The run of a function that is never captured."""
    return function(*inputs)


def run_of_prompt(device: torch.device, tokens: int) -> Run:
    """What runs the functions of one prompt's layers: with graphs where a GPU reads a short prompt."""
    return LayerGraphs(CudaRecorder()).run if device.type == "cuda" and tokens <= GRAPHED else at_once
