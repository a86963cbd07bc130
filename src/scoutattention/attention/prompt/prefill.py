"""A prompt's attention: exact, in pieces."""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...cache.digests.basis import Seen
from ...cache.digests.stages import Stages
from ...cache.store import KVStore
from ...cache.work_memory import layers_together
from ...config import ScoutConfig
from ...kernels.products import product
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
        self._cosines: dict[int, list[Tensor]] = {}  # by row, of the layers so far, of prompts that are being read

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
        layer gets any, and only the keys of a few layers stand beside the cache; or a piece goes through all layers
        before the next piece, and all keys do. The row's closed blocks hold the first tokens already: those come in no
        piece, and have no tables.
        record: gets what was placed, layer by layer.
        """
        total = self.known(row) + rope.cos.shape[0]
        every = sample_every(total)
        tried = Rope(rope.cos[::every], rope.sin[::every])
        unfinished: dict[int, _Seen] = {}
        waiting: list[PromptLayer] = []
        fitted = self._digests.fitted or not self._store.resident
        together = 1 if self._in_turns else layers_together(total, fitted=fitted)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Generator[None, None, Tensor]:
            if layer not in unfinished:
                unfinished[layer] = _Seen(total, every, *self._store.read_prefix(layer, row))
            known = unfinished[layer].add(q, k, v, x)
            out = yield from self._causal(layer, q, *known)
            if len(known[0]) == total:
                prompt = unfinished.pop(layer).layer(tried)
                waiting.append(prompt)
                if record is not None:
                    record.append(prompt)
                ends = len(waiting) == together or layer == self._store.num_layers - 1
                yield from self._place(row, layer, waiting, ends=ends)
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
        for _ in self._place(row, layer, [prompt], ends=True):
            pass

    def _place(self, row: int, layer: int, waiting: list[PromptLayer], *, ends: bool) -> Turns:
        """`place` in turns, of the last of the layers that wait; if that ends them, they are looked into together.

        What runs beside the device's work is at most so many layers behind it, and so is its memory.
        """
        if ends:
            self._store.side.join()
        prompt = waiting[-1]
        for at, end in self._turns(row, prompt):
            self._store.write_prompt(layer, row, prompt.k[at:end], prompt.v[at:end], at // self._store.block_size)
            yield from self._pause()
        if ends:
            yield from self._look_into(row, layer + 1 - len(waiting), waiting)
            waiting.clear()

    def _turns(self, row: int, prompt: PromptLayer) -> Iterator[tuple[int, int]]:
        """The tokens that are stored in each turn."""
        total = len(prompt.k)
        turn = TURN_BLOCKS * self._store.block_size if self._in_turns else total
        for at in range(self.known(row), total, turn):
            yield at, min(at + turn, total)

    def _look_into(self, row: int, first: int, prompts: Sequence[PromptLayer]) -> Turns:
        """Find what decoding needs beside the pages, of layers that follow one another."""
        if first == 0:
            self._cosines[row] = []  # those of a prompt that was broken off are gone
        start, samples = self.known(row), [prompt.sample for prompt in prompts]
        if not start:
            seen = [Seen(prompt.sample.q, prompt.k) for prompt in prompts]
            with self._store.side.after(*(each for one in seen for each in one)):  # where digests are written by it
                self._digests.fit(row, first, seen)
            yield from self._pause()
        for layer, prompt in enumerate(prompts, first):
            for at, end in self._turns(row, prompt):
                self._store.digest_prompt(layer, row, prompt.k[at:end], at // self._store.block_size)
                yield from self._pause()
        if self._store.resident:
            return
        with self._store.side.after(*(part for each in prompts for part in (each.voters, each.k, each.v))):
            self._fill_slots(row, first, prompts)
        if start:
            return
        yield from self._pause()
        with self._store.side.after(*(each for x, q, rope in samples for each in (x, q, *rope))):
            self._cosines[row].append(self._trial.cosines(row, first, samples))
        yield from self._pause()

    def _pause(self) -> Turns:
        """Let other sequences run; a device that works through a queue is not kept waiting."""
        if self._in_turns:
            yield

    def finish(self, row: int, num_tokens: int) -> None:
        """Declare every layer of a prompt done, and decide which layers' scouts are trusted."""
        self._store.finish_prompt(row, num_tokens)
        tried = self._cosines.pop(row, [])
        for layer, cosine in enumerate(torch.cat(tried).tolist() if tried else ()):
            if math.isnan(cosine):
                logger.warning(
                    "layer %d: the prompt's inputs are not finite; this sequence uses the true query there", layer
                )
            if self._config.ablation.true_query_layers is None:
                self._trusted[layer, row] = cosine >= self._config.ablation.min_scout_cosine

    def _fill_slots(self, row: int, first: int, prompts: Sequence[PromptLayer]) -> None:
        """Give slots to the blocks that the last queries of each layer attended to most."""
        slots, size = self._store.slots, self._store.block_size
        transfers = self._store.transfers
        assert slots is not None
        assert transfers is not None
        mass = torch.stack([block_mass(each.voters, each.k, size, self._softmax.scale) for each in prompts])
        layers, heads, count = mass.shape
        voters, _, group, _ = prompts[0].voters.shape
        slots.interest[first : first + layers, row, :, :count] = mass / (voters * group)
        always = self._config.sink_blocks, self._config.recent_blocks
        blocks = first_residents(mass.flatten(0, 1), slots.quota[row], *always).view(layers, heads, -1)
        whole = [(self._store.whole_blocks(each.k), self._store.whole_blocks(each.v)) for each in prompts]
        transfers.fill(first, row, blocks, whole)


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
        if self._end > len(self._known[0]) - VOTERS:
            self._voters.append(q[-VOTERS:].clone())
        known_k, known_v = self._known
        return known_k[: self._end], known_v[: self._end]

    def layer(self, rope: Rope) -> PromptLayer:
        """The whole layer.   rope: of the positions that are tried."""
        inputs, queries = (torch.cat(parts) for parts in zip(*self._samples, strict=True))
        voters = torch.cat(self._voters)[-VOTERS:]
        return PromptLayer(voters, *self._known, TrialSample(inputs, queries, rope))


def block_mass(q: Tensor, k: Tensor, block_size: int, scale: float) -> Tensor:
    """Attention that a prompt's last queries gave to each of its full blocks.

    q: [W, H, G, D], the last W positions.   k: [T, H, D].   Returns float32 [H, T // block_size].
    """
    (T, H, _), (W, _, G, _) = k.shape, q.shape
    future = torch.ones(W, W, dtype=torch.bool, device=k.device).triu(1)
    full, mass = T // block_size, []
    together = 1 if k.device.type == "cpu" else max(1, SCORED_BYTES // (4 * G * W * T))
    for some in (slice(first, first + together) for first in range(0, H, together)):
        queries, keys = q[:, some].permute(1, 2, 0, 3).flatten(1, 2), k[:, some].permute(1, 2, 0)
        scores = product(queries, keys).mul_(scale).view(-1, G, W, T)
        scores[..., T - W :].masked_fill_(future, -torch.inf)
        weights = scores.softmax(-1).sum((1, 2))
        mass.append(weights[:, : full * block_size].reshape(len(weights), full, block_size).sum(-1))
    return mass[0] if len(mass) == 1 else torch.cat(mass)
