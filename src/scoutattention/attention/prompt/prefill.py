"""A prompt's attention: exact, in pieces."""

import logging
import math
from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from ...cache.digests.stages import Stages
from ...cache.store import KVStore
from ...config import ScoutConfig
from ...kernels.reference_recall import Moves
from ...runtime.layer_graphs import Run, at_once, run_of_prompt
from ...types import Rope
from ..recall import first_residents
from ..softmax import Softmax
from ..step import Attend, AttendInTurns
from .trial import ScoutTrial, TrialSample, sample_every

logger = logging.getLogger(__name__)

VOTERS = 32
"""Last prompt positions whose attention decides which blocks get the first slots."""

SCORED_BYTES = 64 << 20
"""Scores of several KV heads that a GPU holds at once. A CPU takes heads one by one: finding memory takes it long."""

TURN_PAIRS, LEAST_TURN = 1 << 19, 32
"""Pairs of a position and a key of one head that a CPU attends to in a turn, and positions of a turn at least.

So many pairs take two cores some 10 ms where a layer has 9 heads of 64 channels.
"""

TURN_BLOCKS = 16
"""Blocks of a layer that a CPU stores, with their digests, in a turn: the system may have to find memory for them."""

Turns = Generator[None, None, None]
"""Work in short turns: where it yields, other sequences may run."""


class PromptLayer(NamedTuple):
    """What decoding needs to know of one layer of a prompt.

    voters: [W, H, G, D], the last positions' queries, which choose the first residents.   k, v: [T, H, D].
    sample: what scouts are tried on.
    """

    voters: Tensor
    k: Tensor
    v: Tensor
    sample: TrialSample


class PromptAttention:
    """Causal attention of one prompt, whose keys and values go to the store as each layer has made them."""

    def __init__(
        self,
        config: ScoutConfig,
        store: KVStore,
        digests: Stages,
        softmax: Softmax,
        trial: ScoutTrial,
        trusted: Tensor,
    ) -> None:
        """`trusted`: bool [L, R], filled in: whether scouts of a layer are good enough for the sequence in a row."""
        self._config = config
        self._store = store
        self._digests = digests
        self._softmax = softmax
        self._trial = trial
        self._trusted = trusted
        self._in_turns = store.device.type == "cpu"
        self._cosines: dict[int, dict[int, Tensor]] = {}  # by row and layer, of prompts that are being read

    def known(self, row: int) -> int:
        """Tokens of a row's prompt that need not be read."""
        return self._store.closed[row] * self._store.block_size

    def begin(self, row: int, rope: Rope, record: list[PromptLayer] | None = None) -> Attend:
        """Start a prompt as `begin_in_turns` does, for callers whose pieces are short enough."""
        in_turns = self.begin_in_turns(row, rope, record)
        return lambda *piece: _ended(in_turns(*piece))

    def begin_in_turns(self, row: int, rope: Rope, record: list[PromptLayer] | None = None) -> AttendInTurns:
        """Start a prompt whose positions have these rotary tables, for a row that was admitted.

        Each layer gets the prompt's tokens in order, in any number of pieces. Either it has them all before the next
        layer gets any, and only its keys stand beside the cache; or a piece goes through all layers before the next
        piece, and all keys do. The row's closed blocks hold the first tokens already: those come in no piece, and have
        no tables.
        record: gets what was placed, layer by layer.
        """
        self._cosines.pop(row, None)  # of a prompt that was broken off
        total = self.known(row) + rope.cos.shape[0]
        every = sample_every(total)
        tried = Rope(rope.cos[::every], rope.sin[::every])
        unfinished: dict[int, _Seen] = {}
        run = run_of_prompt(self._store.device, total)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Generator[None, None, Tensor]:
            if layer not in unfinished:
                unfinished[layer] = _Seen(total, every, *self._store.read_prefix(layer, row))
            known = unfinished[layer].add(q, k, v, x)
            out = yield from self._causal(layer, q, *known)
            if len(known[0]) == total:
                prompt = unfinished.pop(layer).layer(tried)
                yield from self._place(row, layer, prompt, run)
                if record is not None:
                    record.append(prompt)
            return out

        return attend

    def _causal(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Generator[None, None, Tensor]:
        """A piece's attention to all keys so far."""
        before, count, outs = len(k) - len(q), len(q), []
        turn = max(LEAST_TURN, TURN_PAIRS // len(k)) if self._in_turns else count
        for start in range(0, count, turn):
            yield from self._pause()
            end = min(start + turn, count)
            outs.append(self._softmax.causal(layer, q[start:end], k[: before + end], v[: before + end]))
        yield from self._pause()
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def place(self, row: int, layer: int, prompt: PromptLayer) -> None:
        """Store one layer's keys and values; where blocks may be absent, fill the slots and try the scouts.

        Behind blocks that the row has already, bases are theirs, and so is what was found when scouts were tried.
        """
        for _ in self._place(row, layer, prompt, at_once):
            pass

    def _place(self, row: int, layer: int, prompt: PromptLayer, run: Run) -> Turns:
        """`place` in turns. What runs beside the device's work is at most one layer behind it, and so is its memory."""
        start = self.known(row)
        self._store.side.join()
        if not start:
            with self._store.side.after(prompt.sample.q, prompt.k):  # where digests are written by it
                self._digests.fit(layer, row, prompt.sample.q, prompt.k, run)
            yield from self._pause()
        total, size = len(prompt.k), self._store.block_size
        turn = TURN_BLOCKS * size if self._in_turns else total
        for at in range(start, total, turn):
            k, v = (part[at : at + turn] for part in (prompt.k, prompt.v))
            self._store.write_prompt(layer, row, k, v, at // size)
            yield from self._pause()
        if self._store.resident:
            return
        with self._store.side.after(prompt.voters, prompt.k):  # behind the pages that it reads
            self._fill_slots(row, layer, prompt.voters, prompt.k)
        if start:
            return
        yield from self._pause()
        sample = prompt.sample
        with self._store.side.after(sample.x, sample.q, *sample.rope):
            self._cosines.setdefault(row, {})[layer] = self._trial.cosine(row, layer, sample, run)
        yield from self._pause()

    def _pause(self) -> Turns:
        """Let other sequences run; a device that works through a queue is not kept waiting."""
        if self._in_turns:
            yield

    def finish(self, row: int, num_tokens: int) -> None:
        """Declare every layer of a prompt done, and decide which layers' scouts are trusted."""
        self._store.finish_prompt(row, num_tokens)
        tried = self._cosines.pop(row, {})
        for layer, cosine in zip(tried, torch.stack([*tried.values()]).tolist() if tried else (), strict=True):
            if math.isnan(cosine):
                logger.warning(
                    "layer %d: the prompt's inputs are not finite; this sequence uses the true query there", layer
                )
            if self._config.ablation.true_query_layers is None:
                self._trusted[layer, row] = cosine >= self._config.ablation.min_scout_cosine

    def _fill_slots(self, row: int, layer: int, q: Tensor, k: Tensor) -> None:
        """Give slots to the blocks that the prompt's last queries q [<= VOTERS, H, G, D] attended to most."""
        slots, size = self._store.slots, self._store.block_size
        transfers = self._store.transfers
        assert slots is not None
        assert transfers is not None
        mass = block_mass(q, k, size, self._softmax.scale)
        slots.interest[layer, row, :, : mass.shape[1]] = mass / (q.shape[0] * q.shape[2])
        blocks = first_residents(mass, slots.quota[row], self._config.sink_blocks, self._config.recent_blocks)
        heads, count = blocks.shape
        place = torch.arange(heads * count, device=blocks.device)
        moves = Moves(torch.full_like(place, row), place // count, place % count, blocks.flatten())
        transfers.copy_now(layer, moves)


def _ended(work: Generator[None, None, Tensor]) -> Tensor:
    """What comes of work in turns, done at once."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        out: Tensor = end.value
        return out


class _Seen:
    """What the pieces of a layer were so far, of a prompt of `total` tokens, of which one in `every` is tried."""

    def __init__(self, total: int, every: int, k: Tensor, v: Tensor) -> None:
        """k, v: [n, H, D], of the first tokens, which come in no piece."""
        self._known = k.new_empty(total, *k.shape[1:]), v.new_empty(total, *v.shape[1:])
        self._every = every
        self._end = len(k)
        for known, first in zip(self._known, (k, v), strict=True):
            known[: self._end] = first
        self._voters: list[Tensor] = []
        self._samples: list[tuple[Tensor, Tensor]] = []

    def add(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next piece; returns the keys and values of all pieces so far, [T, H, D] each."""
        start, self._end = self._end, self._end + len(k)
        for known, new in zip(self._known, (k, v), strict=True):
            known[start : self._end] = new
        tried = slice(-start % self._every, None, self._every)
        self._samples.append((x[tried].clone(), q[tried].clone()))
        self._voters = [torch.cat((*self._voters, q[-VOTERS:]))[-VOTERS:]]
        known_k, known_v = self._known
        return known_k[: self._end], known_v[: self._end]

    def layer(self, rope: Rope) -> PromptLayer:
        """The whole layer.   rope: of the positions that are tried."""
        (voters,), (inputs, queries) = self._voters, (torch.cat(parts) for parts in zip(*self._samples, strict=True))
        return PromptLayer(voters.clone(), *self._known, TrialSample(inputs, queries, rope))


def block_mass(q: Tensor, k: Tensor, block_size: int, scale: float) -> Tensor:
    """Attention that a prompt's last queries gave to each of its full blocks.

    q: [W, H, G, D], the last W positions.   k: [T, H, D].   Returns float32 [H, T // block_size].
    """
    (T, H, _), (W, _, G, _) = k.shape, q.shape
    future = torch.ones(W, W, dtype=torch.bool, device=k.device).triu(1)
    full, mass = T // block_size, []
    together = 1 if k.device.type == "cpu" else max(1, SCORED_BYTES // (4 * G * W * T))
    for some in (slice(first, first + together) for first in range(0, H, together)):
        keys = k[:, some].float().permute(1, 2, 0)
        queries = (q[:, some].float() * scale).permute(1, 2, 0, 3).flatten(1, 2)
        scores = (queries @ keys).view(-1, G, W, T)
        scores[..., T - W :].masked_fill_(future, -torch.inf)
        weights = scores.softmax(-1).sum((1, 2))
        mass.append(weights[:, : full * block_size].reshape(len(weights), full, block_size).sum(-1))
    return mass[0] if len(mass) == 1 else torch.cat(mass)
