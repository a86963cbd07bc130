"""A decode step as a value, and what the engine knows of attention."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..runtime.ranks import Ranks
from ..types import Rope

Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q [T, H, G, D], k [T, H, D], v [T, H, D], x [T, E]) -> [T, H, G, D]: the only door to the cache.

q and k are normalised and rotated; x is the layer's input residual stream, from which scouts for later layers are made.
All are contiguous.
"""


@dataclass(frozen=True, eq=False)
class Step:
    """One decode step: its sequences, and the key of its work.

    key: steps of equal keys queue the same work on the same memory, so that a captured graph of one can be replayed for
        the other. None where that is never so.
    """

    batch: Batch
    key: Hashable


@dataclass(frozen=True)
class StepStats:
    """What one decode step did.

    chosen_blocks, far_blocks: closed blocks attended to, and those of them that the device did not hold, summed over
        sequences, layers and KV heads; blocks that the guard had attended to again count again.
    guarded_heads: KV heads in which the guard found something missed or spoilt, summed over sequences and layers.
    hidden_s, unhidden_s: seconds of the CPU's attention that ran behind the device's work, and that it waited for.
    recalls: times that a layer of a sequence recalled.   recalled_bytes: bytes copied from host pages to device slots.
    """

    chosen_blocks: int = 0
    far_blocks: int = 0
    guarded_heads: int = 0
    hidden_s: float = 0.0
    unhidden_s: float = 0.0
    recalls: int = 0
    recalled_bytes: int = 0

    def __add__(self, other: "StepStats") -> "StepStats":
        return StepStats(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))

    def of_all(self, ranks: Ranks) -> "StepStats":
        """With all ranks' blocks, heads and bytes; the seconds and the recalls are this one's."""
        names = ("chosen_blocks", "far_blocks", "guarded_heads", "recalled_bytes")
        totals = ranks.sum(torch.tensor([getattr(self, name) for name in names])).tolist()
        return replace(self, **dict(zip(names, totals, strict=True)))


S = TypeVar("S", bound=Step)


class Attention(Protocol[S]):
    """One way to attend during decoding. A step is `prepare`, `begin`, the layers, and `end`.

    `prepare` decides on the host. Everything from `begin` to the last layer only queues work for the device.
    """

    def prepare(self, rows: Sequence[int]) -> S:
        """Decide how the sequences in these rows attend in the next step, in the order of the step's inputs."""
        ...

    def begin(self, step: S, rope: Rope) -> Attend:
        """Start a step that was prepared; `rope` has the rotary tables of its tokens."""
        ...

    def end(self, step: S) -> StepStats:
        """Finish the step: close full blocks, recall blocks that have become important."""
        ...
