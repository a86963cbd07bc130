"""Long prompts for the GPU benchmark: read by a real model, or made up, where the weights are dummies."""

from typing import NamedTuple, Protocol

import torch

from ..attention.recall import first_residents
from ..attention.scout import ScoutAttention
from ..cache.slots import Moves
from ..cache.store import KVStore
from ..config import ScoutConfig
from ..engine.engine import Engine
from ..models.recording import Recording
from .replay import Replay, replay

BANK_BYTES = 64 << 20
"""Keys that are drawn once and written again and again, to other pages."""


class Prompts(Protocol):
    """What puts prompts into engines."""

    def fill(self, store: KVStore) -> None:
        """Prepare a store that has no sequences yet; engines may share it."""
        ...

    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        """Put `batch` prompts of `context` tokens into rows that were admitted; returns each one's next token."""
        ...


class RealPrompts(NamedTuple):
    """Parts of a text, each sequence's its own, that the model reads.   tokens: the text, which goes round."""

    tokens: list[int]

    def fill(self, store: KVStore) -> None:
        """See `Prompts.fill`."""

    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        """See `Prompts.place`."""
        first = []
        for row in range(batch):
            start = row * context % len(self.tokens)
            around = self.tokens[start:] + self.tokens * (context // len(self.tokens) + 1)
            first.append(int(engine.runner.prefill(row, around[:context]).argmax()))
        return first


class DummyPrompts(NamedTuple):
    """Random keys and values that were never computed.

    recording: whose choices are replayed and whose residents are resident; without one the blocks that random queries
    want are chosen, and random ones are resident.
    """

    recording: Recording | None

    def fill(self, store: KVStore) -> None:
        """See `Prompts.fill`: every page gets keys and values, and a digest where choices need one."""
        device = store.near_pool.k.device if store.slots is None else torch.device("cpu")
        pool, digests = store.pages.pool, None if store.slots is None else store.pages.digests
        layers, capacity, heads, size, dim = pool.k.shape
        dtype = store.near_pool.k.dtype
        rows = max(1, min(capacity, BANK_BYTES // (heads * size * dim * dtype.itemsize)))
        generator = torch.Generator(device).manual_seed(0)
        bank = torch.randn((rows, heads, size, dim), generator=generator, dtype=dtype, device=device)
        for layer in range(layers):
            for start in range(0, capacity, rows):
                pages = torch.arange(start, min(start + rows, capacity), device=device)
                pool.k[layer, pages], pool.v[layer, pages] = bank[: len(pages)], bank[: len(pages)].flip(0)
                if digests is not None:
                    digests.put(layer, pages, bank[: len(pages)])

    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        """See `Prompts.place`."""
        attention, shape, store = engine.runner.attention, engine.runner.decoder.shape, engine.store
        if isinstance(attention, ScoutAttention):
            source = None
            if self.recording is not None:
                source = Replay(self.recording.about, self.recording.runs[scout.predictor], shape, context)
                replay(attention, source, store.near_pool.k.device)
            for layer in range(shape.num_layers):
                _seat(store, scout, layer, (batch, context // scout.block_size), source)
        for row in range(batch):
            store.finish_prompt(row, context)
        return list(range(batch))


def _seat(store: KVStore, scout: ScoutConfig, layer: int, sizes: tuple[int, int], source: Replay | None) -> None:
    """Give slots to as many blocks as there are slots: what a recording held, then others.   sizes: B, NB."""
    slots, (batch, closed) = store.slots, sizes
    assert slots is not None
    heads = slots.content.shape[2]
    worth = torch.rand((batch, heads, closed), generator=torch.Generator().manual_seed(layer))
    if source is not None:
        worth += source.residents(layer, batch)
        for row in range(batch):
            store.trust(layer, row, bool(source.run.scouted[source.layer(layer)]))
    blocks = first_residents(worth.flatten(0, 1), slots.quota[0], scout.sink_blocks, scout.recent_blocks)
    count = blocks.shape[1]
    rows, of_heads, seats = torch.cartesian_prod(*(torch.arange(n) for n in (batch, heads, count))).unbind(1)
    store.recall(layer, Moves(rows, of_heads, seats, blocks.flatten()))
