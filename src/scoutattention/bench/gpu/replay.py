"""Replays the blocks that a real model chose, for random weights, which have no attention patterns of their own."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ...attention.choose import Choice, Chooser
from ...attention.predict import Predictor
from ...attention.scout import ScoutAttention
from ...cache.batch import Batch
from ...models.recording import About, Choices, Run
from ...shape import ModelShape
from ...types import Rope


class Replay:
    """A run of a recording, in a model of another shape, batch and context.

    layers: the recorded layer of each layer, int64 [L].

    The recorded layers are stretched over all layers, from the first to the last. The recorded heads repeat, and each
    sequence begins with another head. Blocks of the prompt keep their relative places. Later blocks and recent blocks
    keep their distance from the end.
    """

    def __init__(self, about: About, run: Run, shape: ModelShape, context: int) -> None:
        """`context`: tokens of every prompt, a whole number of blocks, at least as many as were recorded."""
        self.run = run
        self.steps, layers, self._recorded_heads, _ = run.true.blocks.shape
        depth = shape.num_layers
        self.layers = torch.tensor([round(layer * (layers - 1) / max(1, depth - 1)) for layer in range(depth)])
        self._kv_heads = shape.num_kv_heads
        self._block_size = about.block_size
        self._recent = about.recent_blocks
        self._recorded = about.context // about.block_size  # closed blocks of the prompts
        self._closed = context // about.block_size

    def heads(self, batch: int) -> Tensor:
        """The recorded heads of each sequence's heads, int64 [B, H]."""
        return (torch.arange(batch)[:, None] + torch.arange(self._kv_heads)) % self._recorded_heads

    def places(self, step: int, blocks: Tensor, closed: int) -> Tensor:
        """Where blocks of a recorded step are, int64 of any shape, when a sequence has `closed` closed blocks."""
        recorded = self._recorded + step // self._block_size
        stretched = self._prompt_places(blocks)
        placed = torch.where(blocks < self._recorded, stretched, self._closed + blocks - self._recorded)
        return torch.where(blocks >= recorded - self._recent, closed - recorded + blocks, placed)

    def residents(self, layer: int, batch: int) -> Tensor:
        """Which blocks had slots when the recording began: bool [B, H, NB], NB blocks of a prompt."""
        places = self._prompt_places(torch.arange(self._recorded))
        held = self.run.resident[self.layers[layer]][self.heads(batch)]
        stretched = torch.zeros((*held.shape[:2], self._closed), dtype=torch.bool)
        stretched[..., places] = held
        return stretched

    def _prompt_places(self, blocks: Tensor) -> Tensor:
        return blocks * self._closed // self._recorded


class MarkedPredictor(Predictor):
    """Wraps a predictor, so that the last scout of each layer can be told from a true query."""

    def __init__(self, inner: Predictor) -> None:
        self._inner = inner
        self._made: dict[int, Tensor] = {}

    @override
    def predict(self, layer: int, x: Tensor, rope: Rope, rows: slice | Tensor) -> Tensor:
        self._made[layer] = self._inner.predict(layer, x, rope, rows)
        return self._made[layer]

    def made(self, layer: int, q: Tensor) -> bool:
        """Whether q is the layer's scout."""
        return self._made.get(layer) is q


class ReplayChooser(Chooser):
    """Lets another chooser do its work, and then answers with what the recording chose.

    Scouts get what the recorded scouts chose, and true queries what the recorded true queries chose. All sequences of
    a batch are equally long. After the last recorded step the first one follows. The choices of all layers are made
    before a step, so that the step queues nothing for them: they are looked up in two operations, since what is queued
    between two steps is not the engine's. Steps of the same batch and width write them to the same memory, as captured
    graphs need.
    """

    def __init__(
        self,
        source: Replay,
        device: torch.device,
        *,
        chooser: Chooser,
        predictor: MarkedPredictor,
        table: Tensor | None = None,
    ) -> None:
        """chooser: does its work without effect.   device: where choices are made.   table: int32 [R, NB], of pages."""
        self._source = source
        self._chooser = chooser
        self._predictor = predictor
        run = source.run
        both = (torch.stack(parts, 1).to(device) for parts in zip(run.true, run.scouts, strict=True))
        self._recordings = Choices(*(each.flatten(2, 3) for each in both))  # [steps, 2, L * H, N]
        self._placed: tuple[int, Choices] | None = None
        self._made: dict[tuple[int, int], _OfStep] = {}
        self._found: dict[int, Tensor] = {}  # candidates of scouts, for true queries to work on
        self._table = table
        self._pages: dict[tuple[int, int], Tensor] = {}
        self._step = -1
        self._now: _OfStep | None = None

    @override
    def prepare(self, batch: Batch) -> None:
        self._chooser.prepare(batch)
        self._step += 1
        sizes = batch.size, batch.width
        if sizes not in self._made:
            self._made[sizes] = _OfStep.empty(self._source, batch.size, self._recordings)
        self._now = self._made[sizes]
        self._now.write(Choices(*(each[self._step % self._source.steps] for each in self._all_placed(batch.counts[0]))))

    @override
    def takes_all(self, batch: Batch) -> bool:
        return False

    @override
    def scan(self, layer: int, q: Tensor, batch: Batch, closed: Tensor | None = None) -> Choice:
        self._found[layer] = self._chooser.scan(layer, q, batch, closed).candidates
        return self._recorded(layer, q, batch)

    @override
    def judge(
        self, layer: int, q: Tensor, batch: Batch, candidates: Tensor | None = None, pages: Tensor | None = None
    ) -> Choice:
        if candidates is not None:
            candidates = self._found.pop(layer)
            pages = self._some_pages(candidates, batch) if pages is not None else None
        self._chooser.judge(layer, q, batch, candidates, pages)
        return self._recorded(layer, q, batch)

    def _all_placed(self, closed: int) -> Choices:
        """What every recorded step chose, for sequences of `closed` blocks; made anew when a block has closed."""
        if self._placed is None or self._placed[0] != closed:
            blocks, wishes = self._recordings
            steps = [self._source.places(step, chosen, closed) for step, chosen in enumerate(blocks.long())]
            self._placed = closed, Choices(torch.stack(steps), wishes.float())
        return self._placed[1]

    def _some_pages(self, candidates: Tensor, batch: Batch) -> Tensor:
        """Pages of as many candidates, looked up once: a step finds those of its own by the way."""
        sizes = batch.size, batch.width
        if sizes not in self._pages:
            assert self._table is not None
            table = self._table[batch.rows, None].expand(-1, candidates.shape[1], -1)
            self._pages[sizes] = table.gather(-1, candidates)
        return self._pages[sizes]

    def _recorded(self, layer: int, q: Tensor, batch: Batch) -> Choice:
        """What was chosen by a scout or a true query; there was a wish for nothing else."""
        assert self._now is not None  # a step was prepared
        now = self._now.choices[self._predictor.made(layer, q)]
        blocks, wishes = now.blocks[layer], now.wishes[layer]
        return Choice(None, wishes, batch.closed, blocks, wishes)


class _OfStep(NamedTuple):
    """A step's choices in all layers.

    all_choices: blocks, int64 [2, L, B, H, N], of true queries and of scouts, and wishes for them, float32 alike.
    choices: the same by kind.   rows: int64 [L * B * H], the recorded layer and head of each layer, sequence and head.
    """

    all_choices: Choices
    choices: tuple[Choices, Choices]
    rows: Tensor

    @classmethod
    def empty(cls, source: Replay, batch: int, recorded: Choices) -> "_OfStep":
        """Memory for steps of a batch, beside what was recorded."""
        layers, heads = source.layers[:, None, None], source.heads(batch)
        rows = (layers * source.run.true.blocks.shape[2] + heads).to(recorded.blocks.device)
        size = 2, *rows.shape, recorded.blocks.shape[-1]
        whole = Choices(*(recorded.wishes.new_empty(size, dtype=dtype) for dtype in (torch.int64, torch.float32)))
        true, scouts = (Choices(whole.blocks[kind], whole.wishes[kind]) for kind in range(2))
        return cls(whole, (true, scouts), rows.flatten())

    def write(self, placed: Choices) -> None:
        """Take what a step chose, [2, L * H, N] each."""
        for now, all_of_it in zip(self.all_choices, placed, strict=True):
            torch.index_select(all_of_it, 1, self.rows, out=now.flatten(1, 3))


def replay(attention: ScoutAttention, source: Replay, device: torch.device) -> None:
    """Make an attention choose the recorded blocks, on `device`."""
    predictor = MarkedPredictor(attention.parts.predictor)
    parts = attention.parts
    table = parts.store.pages.table
    chooser = ReplayChooser(source, device, chooser=parts.chooser, predictor=predictor, table=table)
    attention.parts = dataclasses.replace(parts, chooser=chooser, predictor=predictor)
