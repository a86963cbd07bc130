"""Sequences of another program's engine, which come and go in the rows of one store."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attention.build import Built
from ..attention.step import Attend, StepStats
from ..cache.memory_plan import MemoryPlan
from ..errors import CapacityError
from ..types import Rope

RopeOf = Callable[[Tensor], Rope]
"""What a query model takes as the place of tokens, of their positions, int64 [T]."""


@dataclass
class Running:
    """A sequence in its row.   prompt: tokens that are read as its prompt.   read: those that were read so far."""

    row: int
    prompt: int
    read: int = 0
    attend: Attend | None = None


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence in a pass.   start: place of the first one among all of the pass.   count: how many."""

    name: Hashable
    start: int
    count: int

    @property
    def places(self) -> slice:
        """Where its tokens are."""
        return slice(self.start, self.start + self.count)


class Rows:
    """The method over one store, for sequences that another engine admits, feeds and ends.

    built: the method.   stats: what all decode steps did.
    """

    def __init__(self, plan: MemoryPlan, built: Built, rope_of: RopeOf) -> None:
        self.plan = plan
        self.built = built
        self.stats = StepStats()
        self.rope_of = rope_of
        self._sequences: dict[Hashable, Running] = {}
        self._free = list(range(plan.rows))[::-1]

    def __contains__(self, name: Hashable) -> bool:
        return name in self._sequences

    def admit(self, name: Hashable, prompt: int) -> None:
        """Give a new sequence a row.   prompt: tokens that come before its first decode step.

        Raises CapacityError where every row is taken, or the prompt is longer than a row.
        """
        if not self._free:
            raise CapacityError(f"{self.plan.rows} sequences run already, as many as max_num_seqs allows")
        if prompt > self.plan.max_len:
            raise CapacityError(f"a prompt of {prompt} tokens is longer than max_model_len={self.plan.max_len}")
        row = self._free.pop()
        self.built.cache.store.admit(row, self.plan.widest, self.plan.quota(self.plan.rows, self.plan.max_len))
        self._sequences[name] = Running(row, prompt)

    def release(self, name: Hashable) -> None:
        """Forget a sequence, if it has a row."""
        sequence = self._sequences.pop(name, None)
        if sequence is not None:
            self.built.cache.store.release(sequence.row)
            self._free.append(sequence.row)

    def length(self, name: Hashable) -> int:
        """Tokens of a sequence that are in the cache, or on their way there."""
        sequence, store = self._sequences[name], self.built.cache.store
        if sequence.read < sequence.prompt:
            return sequence.read
        return store.closed[sequence.row] * store.block_size + store.fill[sequence.row]

    def begin(self, pieces: Sequence[Piece]) -> "Pass":
        """Start a forward pass over tokens of these sequences, which all layers then attend to.

        A sequence whose prompt is not all read gets a piece of it; any other one gets one token.
        Raises CapacityError where one gets more.
        """
        prompts, decoding = [], []
        for piece in pieces:
            sequence = self._sequences[piece.name]
            if sequence.read < sequence.prompt:
                prompts.append((piece, sequence))
                continue
            if piece.count != 1:
                raise CapacityError(
                    f"a sequence gets {piece.count} tokens at once behind its prompt, and scout decodes one: leave "
                    "speculative decoding off"
                )
            decoding.append((piece, sequence))
        return Pass(self, prompts, decoding)


class Pass:
    """One forward pass of a model, as its attention layers call it: pieces of prompts, and a step of the others."""

    def __init__(self, rows: Rows, prompts: list[tuple[Piece, Running]], decoding: list[tuple[Piece, Running]]) -> None:
        self._rows = rows
        self._prompts = prompts
        self._places = [piece.start for piece, _ in decoding]
        self._last = rows.built.cache.store.num_layers - 1
        self._attention = rows.built.attention
        self._step: Any = None
        device = rows.built.cache.store.device
        for piece, sequence in prompts:
            if piece.count + sequence.read > sequence.prompt:
                raise CapacityError(f"a prompt of {sequence.prompt} tokens gets {piece.count + sequence.read}")
            if sequence.attend is None:
                rope = rows.rope_of(torch.arange(sequence.prompt, device=device))
                sequence.attend = rows.built.prompt.begin(sequence.row, rope)
        if decoding:
            positions = [rows.length(piece.name) for piece, _ in decoding]
            self._step = self._attention.prepare([sequence.row for _, sequence in decoding])
            self._attention.start(self._step)
            self._attention.exchange.receive()
            self._decode: Attend = self._attention.begin(
                self._step, rows.rope_of(torch.tensor(positions, device=device))
            )

    @cached_property
    def _index(self) -> slice | Tensor:
        """The places of the tokens that are decoded: a slice where they follow one another."""
        first, count = self._places[0], len(self._places)
        if self._places == list(range(first, first + count)):
            return slice(first, first + count)
        return torch.tensor(self._places, device=self._rows.built.cache.store.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Attention of all tokens in one layer; see `Attend`. The last layer ends the pass."""
        out = torch.empty_like(q)
        if self._step is not None:
            at = self._index
            out[at] = self._decode(layer, *(each[at].contiguous() for each in (q, k, v, x)))
        for piece, sequence in self._prompts:
            at = piece.places
            assert sequence.attend is not None
            out[at] = sequence.attend(layer, *(each[at].contiguous() for each in (q, k, v, x)))
        if layer == self._last:
            self._end()
        return out

    def _end(self) -> None:
        for piece, sequence in self._prompts:
            sequence.read += piece.count
            if sequence.read == sequence.prompt:
                sequence.attend = None
                self._rows.built.prompt.finish(sequence.row, sequence.prompt)
        if self._step is not None:
            self._attention.finish(self._step)
            self._attention.count(self._step)
            self._attention.exchange.tell()
            counts, _ = self._attention.exchange.read()
            self._rows.stats += self._attention.end(self._step, counts)
