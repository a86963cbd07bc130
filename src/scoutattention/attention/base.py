"""What the engine and the decoder know of attention."""

from collections.abc import Callable, Hashable
from dataclasses import astuple, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..runtime.ranks import Ranks
from ..types import Rope

Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q [T, H, G, D], k [T, H, D], v [T, H, D], x [T, E]) -> [T, H, G, D]: the only door to the cache.

q and k are normalised and rotated; x is the layer's input residual stream, from which scouts for later layers are made.
All are contiguous.
"""


@dataclass(frozen=True)
class StepStats:
    """What one decode step did.

    chosen_blocks, far_blocks: closed blocks attended to, and those of them that the device did not hold, summed over
        sequences, layers and KV heads; in both, what the guard had attended to again counts again.
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


class Attention(Protocol):
    """One way to attend during decoding. A step is `plan`, `begin`, the layers, and `end`.

    `plan` decides what is done from `begin` to the last layer: where two plans are equal it is the same, with other
    numbers in the same memory, so that a graph of one step can be replayed for the other. A plan of None can not.
    """

    def plan(self, batch: int) -> Hashable:
        """Decide how the sequences in rows 0 to batch - 1 attend in the next step."""
        ...

    def begin(self, rope: Rope) -> Attend:
        """Start the step that was planned."""
        ...

    def end(self) -> StepStats:
        """Finish the step: close full blocks, recall drifted ones."""
        ...
