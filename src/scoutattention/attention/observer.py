"""Observers: they measure how good scouts are, layer by layer, and change nothing."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor
from typing_extensions import override

from .choose import Choice


class Chosen(NamedTuple):
    """Blocks [B, H, N], of which `valid` were attended to.   resident: bool [B, H, NB], had a slot then."""

    blocks: Tensor
    valid: Tensor
    resident: Tensor


class Attended(NamedTuple):
    """How a layer's parts were put together.

    weight: float32 [B, H, G], the far partial's in the merge.
    guarded: bool [B, H], heads in which the guard found something missed or spoilt; None where it did not.
    """

    weight: Tensor
    guarded: Tensor | None = None


Choose = Callable[[Tensor], Choice]
"""choose(q [B, H, G, D]) -> what a layer's queries want."""


class Observer(Protocol):
    """Gets from each layer of each decode step the scout's choice and the query with which the layer attended.

    All tensors are of the whole batch, and are not written to later.
    """

    def chose(self, layer: int, scout: Tensor | None, chosen: Chosen) -> None:
        """Blocks were chosen for a layer.   scout: the query that did, [B, H, G, D]; None where it was the true one."""
        ...

    def attended(self, layer: int, q: Tensor, choose: Choose, attended: Attended) -> None:
        """A layer has attended with its true query q [B, H, G, D].   choose: says what queries want of the layer."""
        ...


class Observers(Observer):
    """Several observers as one.   seconds: time that they have taken, so that it can be left out of a measurement."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self.seconds = 0.0

    @override
    def chose(self, layer: int, scout: Tensor | None, chosen: Chosen) -> None:
        started = time.perf_counter()
        for observer in self._observers:
            observer.chose(layer, scout, chosen)
        self.seconds += time.perf_counter() - started

    @override
    def attended(self, layer: int, q: Tensor, choose: Choose, attended: Attended) -> None:
        started = time.perf_counter()
        for observer in self._observers:
            observer.attended(layer, q, choose, attended)
        self.seconds += time.perf_counter() - started
