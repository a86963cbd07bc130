"""A decode step as a value: its work, its counts, and the protocol between engine and attention."""

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..cache.batch import Batch
from ..cache.exchange import StepExchange
from ..cache.store import KVStore
from ..runtime.ranks import Ranks
from ..types import Rope

Attend = Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor]
"""attend(layer, q [T, H, G, D], k [T, H, D], v [T, H, D], x [T, E]) -> [T, H, G, D]: the only door to the cache.

q and k are normalised and rotated; x is the layer's input residual stream, from which scouts for later layers are made.
All are contiguous.
"""

AttendInTurns = Callable[[int, Tensor, Tensor, Tensor, Tensor], Generator[None, None, Tensor]]
"""The same in short turns: it yields where other sequences may run, and returns what an `Attend` does."""


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
        others = vars(other)  # `dataclasses.astuple` copies deeply, and takes ten times as long
        return StepStats(**{name: mine + others[name] for name, mine in vars(self).items()})

    def of_all(self, ranks: Ranks) -> "StepStats":
        """With all ranks' blocks, heads and bytes; the seconds and the recalls are this one's."""
        if ranks.size == 1:
            return self
        names = ("chosen_blocks", "far_blocks", "guarded_heads", "recalled_bytes")
        totals = ranks.sum(torch.tensor([getattr(self, name) for name in names])).tolist()
        return replace(self, **dict(zip(names, totals, strict=True)))


COUNTERS: dict[str, tuple[str, Callable[[StepStats], float]]] = {
    "blocks_resident_hits": (
        "Chosen blocks that the device held.",
        lambda stats: stats.chosen_blocks - stats.far_blocks,
    ),
    "blocks_far": ("Chosen blocks that the device did not hold.", lambda stats: stats.far_blocks),
    "guarded_heads": ("KV heads in which the guard found something.", lambda stats: stats.guarded_heads),
    "cpu_attention_seconds": ("Seconds of the CPU's attention.", lambda stats: stats.hidden_s + stats.unhidden_s),
    "cpu_hidden_seconds": ("Those of them behind other work.", lambda stats: stats.hidden_s),
    "cpu_wait_seconds": ("Those of them that were waited for.", lambda stats: stats.unhidden_s),
    "recalls": ("Times that a layer of a sequence recalled.", lambda stats: stats.recalls),
    "host_to_device_bytes": ("Bytes of recalled blocks.", lambda stats: stats.recalled_bytes),
}
"""Counters for Prometheus, by their names without `scout:` and `_total`: what each tells, and its value in totals."""


S = TypeVar("S", bound=Step)


class Attention(Protocol[S]):
    """One way to attend during decoding.

    A step is `prepare`, `start`, `exchange.receive`, `begin`, the layers, `finish`, `exchange.tell`, `count`,
    `exchange.read` and `end`. `count` may come before `tell` where no graph is captured. `prepare` decides on the host,
    perhaps while the device works on the step before, which was queued and counted. Everything from `receive` to `tell`
    only queues work for the device.
    """

    exchange: StepExchange
    """What the host and the device tell each other of a step."""

    def prepare(self, rows: Sequence[int], real: int | None = None) -> S:
        """Decide how the sequences in these rows attend in the next step, in the order of the step's inputs.

        real: see `KVStore.prepare`.
        """
        ...

    def start(self, step: S) -> None:
        """Send the inputs of a step that was prepared. Its tokens must be in `exchange` by then."""
        ...

    def begin(self, step: S, rope: Rope) -> Attend:
        """Start a step that was prepared; `rope` has the rotary tables of its tokens."""
        ...

    def finish(self, step: S) -> None:
        """Queue what follows from the layers: full blocks are closed, blocks that have become important recalled."""
        ...

    def count(self, step: S) -> None:
        """Let the host count the tokens that a step appends, and the blocks that it closes: it is queued."""
        ...

    def residency(self) -> Sequence[float]:
        """Of each layer, the part of a recent step's chosen blocks that the device held.

        Empty before anybody has asked, and where the device holds every block. The step that ends next is the one of
        the next answer: nothing is summed for nobody.
        """
        return ()

    def end(self, step: S, counts: Sequence[int]) -> StepStats:
        """Let the host take note of the step, whose work is done.   counts: of `exchange.read`."""
        ...


class Masks(NamedTuple):
    """Which sequences of a step, bool [L, B] (within_budget, all_resident: [1, B]).

    scouted: a scout chooses ahead, and the CPU attends ahead. These sequences have absent blocks and more blocks than
        the budget, and this layer's scouts are trusted.
    true_query: the true query chooses, and the CPU attends with it. These sequences have absent blocks; either this
        layer's scouts are not trusted, or all blocks are chosen, and the result is exact.
    asked: the true query is asked for its choice.   scanning: and finds its candidates itself, for want of a scout.
    interesting: asked, and recall goes by its wishes.
    within_budget: have no more blocks than the budget.
    all_resident: have every block in a slot, and more blocks than the budget: the true query chooses among the slots.
    All other sequences have every block in a slot, and attend to all of them.
    """

    scouted: Tensor
    true_query: Tensor
    asked: Tensor
    scanning: Tensor
    interesting: Tensor
    within_budget: Tensor
    all_resident: Tensor


class Decision(NamedTuple):
    """What every layer of a step does for which sequences, and what that follows from.

    follows_from: equal where the decision is.   masks: on the device.
    scouted, true_query, asked, scanning, all_resident: see `Work`.
    """

    follows_from: tuple[object, ...]
    masks: Masks
    scouted: tuple[bool, ...]
    true_query: tuple[bool, ...]
    asked: tuple[bool, ...]
    scanning: tuple[bool, ...]
    all_resident: bool


@dataclass(frozen=True)
class Work:
    """What a step's work is made of: two steps of equal work queue the same kernels.

    sequences: of the step.   consecutive: whether their rows follow one another.   width: columns of its tables.
    near: entries that the device attends to.   closes: whether the step fills a block.
    scouted, true_query, asked, scanning: layers where any sequence is.
    all_resident: whether any sequence is.
    """

    sequences: int
    consecutive: bool
    width: int
    near: int
    closes: bool
    scouted: tuple[bool, ...]
    true_query: tuple[bool, ...]
    asked: tuple[bool, ...]
    scanning: tuple[bool, ...]
    all_resident: bool


def sort_sequences(has_absent: Tensor, within_budget: Tensor, trusted: Tensor, *, guarded: bool) -> Masks:
    """Sort a step's sequences.

    has_absent: bool [B], have absent blocks.   within_budget: bool [B], see `Masks`.   trusted: bool [L, B], have
    scouts that are trusted.   guarded: whether the true query's choice is compared with the scouts'.
    """
    over = has_absent & ~within_budget
    scouted, true_query = over & trusted, has_absent & (within_budget | ~trusted)
    all_resident = ~has_absent & ~within_budget
    asked = true_query | all_resident | (scouted & guarded)
    scanning, interesting = asked & ~scouted, asked & ~within_budget
    return Masks(scouted, true_query, asked, scanning, interesting, within_budget[None], all_resident[None])


class Tally(NamedTuple):
    """Blocks that a step's layers attended to, and absent ones among them; every layer fills in its own.

    scouted, asked: int64 [L, 2, B, H], of scouts' choices and of true queries'.
    guarded: int64 [L, 2, B, H], whether the guard found anything, and blocks that it had attended to late.
    counts: int64 [3, L, 2, B, H], these three.
    """

    scouted: Tensor
    asked: Tensor
    guarded: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class ScoutStep(Step):
    """A step with its work, the masks that its layers read, and the counts that they fill in."""

    work: Work
    masks: Masks
    tally: Tally


def residency(step: ScoutStep) -> list[float]:
    """Of each layer, the part of a step's chosen blocks that the device held; 1 of none. Waits for the device."""
    scouted, asked, guarded = step.tally.counts
    attended = (step.masks.true_query | step.masks.all_resident)[:, None, :, None]
    late = guarded[:, 1].sum((1, 2))  # absent blocks that the guard had attended to
    chosen, far = ((scouted + asked * attended).sum((2, 3)) + late[:, None]).unbind(1)
    shares: list[float] = (1 - far / chosen.clamp(min=1)).tolist()
    return shares


class StepMemory:
    """Device memory for the masks and tallies of steps, at fixed addresses, as CUDA graphs need."""

    def __init__(self, store: KVStore) -> None:
        layers, self._heads = store.num_layers, store.heads
        self._exchange = store.exchange
        self._sizes = [layers, layers, layers, layers, layers, 1, 1]
        self._tallies: dict[int, Tally] = {}  # views, made once
        self._counts = torch.zeros(
            (3, layers, 2 * store.num_rows * self._heads), dtype=torch.int64, device=store.device
        )

    def put(self, masks: Masks) -> Masks:
        """Write the host's masks to the exchange buffer; returns the views on the device to which they are copied."""
        exchange, size = self._exchange, masks.within_budget.shape[1]
        torch.cat(masks, out=exchange.host.masks[:, :size])
        return Masks(*torch.split(exchange.device.masks[:, :size], self._sizes))

    def clear(self) -> None:
        """Set every tally to zero."""
        self._counts.zero_()
        self._exchange.counts.zero_()

    def tally(self, sequences: int) -> Tally:
        """The tally of a step, with the numbers of the last one until they are set to zero."""
        if sequences not in self._tallies:
            used = self._counts[:, :, : 2 * sequences * self._heads]
            counts = used.view(*used.shape[:2], 2, sequences, self._heads)
            scouted, asked, guarded = counts
            self._tallies[sequences] = Tally(scouted, asked, guarded, counts)
        return self._tallies[sequences]


def telling(done: int, turns: Generator[None, None, Tensor]) -> Generator[int, None, Tensor]:
    """Work in turns that says at each how much is done, in tokens; returns what comes of it."""
    try:
        while True:
            next(turns)
            yield done
    except StopIteration as end:
        out: Tensor = end.value
        return out
