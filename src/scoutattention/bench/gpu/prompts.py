"""Long prompts for the GPU benchmark: a real model reads them; with dummy weights they are random."""

from dataclasses import dataclass
from typing import Protocol

import torch
from typing_extensions import override

from ...attention.recall import first_residents
from ...attention.scout import ScoutAttention
from ...cache.store import KVStore
from ...config import ScoutConfig
from ...engine.engine import Engine
from ...kernels.reference_recall import Moves
from ...models.recording import Recording
from .replay import Replay, replay


class Prompts(Protocol):
    """What puts prompts into engines."""

    def fill(self, store: KVStore) -> None:
        """Prepare a store that has no sequences yet; engines may share it. Nothing to do where a model reads."""

    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        """Put `batch` prompts of `context` tokens into admitted rows; returns the next token of each."""
        ...


@dataclass(frozen=True)
class RealPrompts(Prompts):
    """Parts of a text that the model reads, another part for each sequence.   tokens: of the text, which repeats."""

    tokens: list[int]

    @override
    def fill(self, store: KVStore) -> None:
        return

    @override
    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        first = []
        for row in range(batch):
            start = row * context % len(self.tokens)
            around = self.tokens[start:] + self.tokens * (context // len(self.tokens) + 1)
            first.append(int(engine.runner.prefill(row, around[:context]).argmax()))
        return first


@dataclass(frozen=True)
class DummyPrompts(Prompts):
    """Random keys and values, which no model computed.

    recording: its choices are replayed, and its resident blocks are resident. Without a recording random queries choose
        the blocks, and random blocks are resident.
    """

    recording: Recording | None

    @override
    def fill(self, store: KVStore) -> None:
        layers, _, heads, size, dim = store.pages.pool.k.shape
        rows, blocks = store.pages.table.shape
        generator = torch.Generator(store.device).manual_seed(0)
        dtype = store.near_pool.k.dtype  # in float32 they would take twice as much memory
        k, v = torch.randn((2, blocks, heads, size, dim), generator=generator, device=store.device, dtype=dtype)
        for row in range(rows):
            store.pages.admit(row, blocks)
            for layer in range(layers):
                store.pages.write_prompt(layer, row, k, v)
                store.pages.digest_prompt(layer, row, k)
        for row in range(rows):
            store.pages.release(row)  # what is written stays in the pages when other rows take them

    @override
    def place(self, engine: Engine, scout: ScoutConfig, context: int, batch: int) -> list[int]:
        attention, shape, store = engine.runner.attention, engine.runner.decoder.shape, engine.store
        if isinstance(attention, ScoutAttention):
            source = None
            if self.recording is not None:
                source = Replay(self.recording.about, self.recording.runs[scout.ablation.predictor], shape, context)
                replay(attention, source, store.device)
            for layer in range(shape.num_layers):
                _fill_slots(store, scout, layer, (batch, context // scout.block_size), source)
                if source is not None:
                    attention.trusted[layer, :batch] = source.run.scouted[source.layers[layer]]
        for row in range(batch):
            store.finish_prompt(row, context)
        return list(range(batch))


def _fill_slots(store: KVStore, scout: ScoutConfig, layer: int, sizes: tuple[int, int], source: Replay | None) -> None:
    """Give slots to as many blocks as there are slots: what a recording held, then others.   sizes: B, NB."""
    slots, (batch, closed) = store.slots, sizes
    assert slots is not None
    assert store.transfers is not None
    heads = slots.content.shape[2]
    worth = torch.rand((batch, heads, closed), generator=torch.Generator().manual_seed(layer))
    if source is not None:
        worth += source.residents(layer, batch)
    blocks = first_residents(worth.flatten(0, 1), slots.quota[0], scout.sink_blocks, scout.recent_blocks)
    every = (torch.arange(count) for count in (batch, heads, blocks.shape[1]))
    rows, of_heads, places = torch.cartesian_prod(*every).T.contiguous().to(store.device)
    moves = Moves(rows, of_heads, places, blocks.flatten().to(store.device))
    store.transfers.copy_now(torch.full_like(rows, layer), moves)
