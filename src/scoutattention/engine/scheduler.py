"""Which sequences run: first come, first served, each with its memory reserved, so none is ever preempted."""

import time
from collections import deque
from dataclasses import dataclass, field

import torch

from ..cache.memory_plan import MemoryPlan
from ..cache.store import KVStore
from ..config import SamplingParams
from ..models.text import Tokenizer


@dataclass
class Sequence:
    """A request from its arrival to its end; only the engine changes it.

    limit: longest the sequence may become, prompt and answer together.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    limit: int
    tokenizer: Tokenizer
    output_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    arrived: float = field(default_factory=time.perf_counter)
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self._stream = self.tokenizer.stream()
        self.generator = torch.Generator()
        if self.params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.params.seed)

    @property
    def num_tokens(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_token(self) -> int:
        """The token to be fed next."""
        return self.output_ids[-1] if self.output_ids else self.prompt_ids[-1]

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token."""
        return 0.0 if self.first_token_at is None else self.first_token_at - self.arrived

    def append(self, token: int) -> None:
        """Take the next token: extend ids and text, and finish if it ends the answer."""
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        self.output_ids.append(token)
        ends = frozenset() if self.params.ignore_eos else self.tokenizer.eos_token_ids
        if token in ends | self.tokenizer.stop_ids(self.params.stop):
            self._finish("stop")
            return
        self.text += self._stream.step(token)
        cut = min((at for s in self.params.stop if (at := self.text.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.text, self.finish_reason = self.text[:cut], "stop"
        elif len(self.output_ids) == self.params.max_tokens or self.num_tokens == self.limit:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self.text += self._stream.flush()
        self.finish_reason = reason

    def printable(self) -> int:
        """Characters of `text` that no later token can take back, as the beginning of a stop string might be."""
        if self.finish_reason is not None:
            return len(self.text)
        longest = max((len(s) for s in self.params.stop), default=1)
        for tail in range(min(longest - 1, len(self.text)), 0, -1):
            if any(s.startswith(self.text[-tail:]) for s in self.params.stop):
                return len(self.text) - tail
        return len(self.text)


class Scheduler:
    """The waiting and the running sequences; `running[i]` is the sequence in row i of the store."""

    def __init__(self, store: KVStore, plan: MemoryPlan, max_num_seqs: int) -> None:
        self._store = store
        self._plan = plan
        self._max_num_seqs = max_num_seqs
        self._most = plan.max_running(1)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def admit(self) -> Sequence | None:
        """Move the first waiting sequence into the next row if its pages and slots are free; returns it."""
        if not self.waiting:
            return None
        if not self.running:  # the device's slots are shared anew
            self._most = self._plan.max_running(min(self._max_num_seqs, len(self.waiting)))
        sequence = self.waiting[0]
        blocks = self._plan.blocks(sequence.limit)
        if len(self.running) == self._most or blocks > self._store.pages.pool.available:
            return None
        self._store.admit(len(self.running), blocks, self._plan.quota(self._most, sequence.limit))
        self.running.append(self.waiting.popleft())
        return sequence

    def retire(self) -> None:
        """Release the rows of finished sequences; the last rows move into the gaps, so that rows stay contiguous."""
        for row in range(len(self.running) - 1, -1, -1):
            if self.running[row].finish_reason is not None:
                self.drop(row)

    def drop(self, row: int) -> None:
        """Release one row."""
        last = len(self.running) - 1
        self._store.release(row)
        if row != last:
            self._store.move(last, row)
            self.running[row] = self.running[last]
        self.running.pop()

    def clear(self) -> None:
        """Forget every sequence, as after an interruption."""
        self.waiting.clear()
        while self.running:
            self.drop(len(self.running) - 1)
