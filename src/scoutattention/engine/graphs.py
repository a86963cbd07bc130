"""Decode steps as CUDA graphs: what is queued kernel by kernel once is replayed for every step with an equal plan."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 32
"""Graphs that are kept; the one that was not used for longest goes."""
FIRST_SEEN = 2
"""A plan is captured when it comes up so often: one that never comes again is not worth it."""

Step = Callable[[Tensor, Tensor], Tensor]
"""step(tokens int64 [B], positions int64 [B]) -> logits [B, vocab]: queues work, and waits for nothing."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    logits: Tensor


class Graphs:
    """Runs steps, and captures those whose plan comes again. All share one pool of memory: only one runs at a time."""

    def __init__(self, step: Step, rows: int, device: torch.device) -> None:
        self._step = step
        self._inputs = torch.zeros((2, rows), dtype=torch.int64, device=device)
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: dict[Hashable, int] = {}
        self._captured: OrderedDict[Hashable, _Captured] = OrderedDict()

    def run(self, plan: Hashable, tokens: list[int], positions: list[int]) -> Tensor:
        """The logits of a step; they stay valid until the next one."""
        inputs = self._inputs[:, : len(tokens)]
        inputs.copy_(torch.tensor([tokens, positions]).pin_memory(), non_blocking=True)
        captured = self._captured.get(plan)
        if captured is None:
            self._seen[plan] = self._seen.get(plan, 0) + 1
            if self._seen[plan] < FIRST_SEEN:
                return self._step(inputs[0], inputs[1])
            captured = self._captured[plan] = self._capture(inputs)
            if len(self._captured) > MOST:
                self._captured.popitem(last=False)
        self._captured.move_to_end(plan)
        captured.graph.replay()
        return captured.logits

    def _capture(self, inputs: Tensor) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._step(inputs[0], inputs[1])
        return _Captured(graph, logits)
