"""Which sequences run: first come, first served, each with its memory reserved, so none is ever preempted."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import NamedTuple

from ..cache.memory_plan import MemoryPlan
from ..cache.prefix import NOTHING, Prefix
from ..cache.store import KVStore
from ..config import SamplingParams
from ..models.text import Tokenizer
from .sampler import Draw, Scores, Steering


class Ready(NamedTuple):
    """How much of an answer can be given out: characters, tokens, why it has ended, if it has, and what failed.

    read: how much of the work on the prompt is done, in tokens.
    """

    text: int = 0
    tokens: int = 0
    finish_reason: str | None = None
    error: BaseException | None = None
    read: int = 0


class Reader(NamedTuple):
    """The reader of an answer.   streamed: whether it reads token by token.   tell: called when there is news."""

    streamed: bool
    tell: Callable[[], None]


NOBODY = Reader(streamed=False, tell=lambda: None)


class Logprobs(NamedTuple):
    """Log-probabilities by token id, the token's own first, of tokens for which they are asked.

    prompt: of those that were read; None of the first one.   answer: of those that were drawn.
    """

    prompt: list[dict[int, float] | None]
    answer: list[dict[int, float]]


@dataclass(eq=False)
class Sequence:
    """A request from its arrival to its end; only the engine changes it.

    limit: longest the sequence may become, prompt and answer together.
    prefix: what was kept of the tokens when the sequence was admitted.
    ready: what another thread may read; it is set last, and at once.
    times: when it came, when it was admitted first, and when its first token came, as far as that is so.
    reader: who waits for it.   steering: how its tokens are drawn.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    limit: int
    tokenizer: InitVar[Tokenizer]
    output_ids: list[int] = field(default_factory=list)
    logprobs: Logprobs = field(default_factory=lambda: Logprobs([], []))
    ready: Ready = field(default_factory=Ready)
    prefix: Prefix = NOTHING
    times: list[float] = field(default_factory=lambda: [time.perf_counter()])
    reader: Reader = NOBODY

    def __post_init__(self, tokenizer: Tokenizer) -> None:
        self._said = _Text(tokenizer, self.params)
        self.steering = Steering(self.params, self._said.ends, tokenizer)

    @property
    def num_tokens(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def last_token(self) -> int:
        """The token to be fed next."""
        return self.output_ids[-1] if self.output_ids else self.prompt_ids[-1]

    @property
    def text(self) -> str:
        """The text of the answer so far."""
        return self._said.text

    @property
    def finish_reason(self) -> str | None:
        """Why the answer has ended; None while it has not."""
        return self.ready.finish_reason

    @property
    def ttft_s(self) -> float:
        """Seconds from arrival to the first token."""
        return self.times[-1] - self.times[0]

    def draw(self) -> Draw:
        """How the next token is drawn; the same until there is one."""
        return self.steering.draw(len(self.output_ids))

    def scores(self) -> Scores | None:
        """Where the log-probabilities of the prompt's tokens go as it is read; None where nobody wants them (any more).

        Those of a reading that was broken off are forgotten.
        """
        if self.params.prompt_logprobs is None or self.output_ids:
            return None
        self.logprobs.prompt[:] = [None]
        return Scores(self.prompt_ids, self.params.prompt_logprobs, self.logprobs.prompt)

    def append(self, token: int, logprobs: dict[int, float] | None = None) -> None:
        """Take the next token: extend ids and text, and finish if it ends the answer, or if none is wanted."""
        if not self.output_ids:
            self.times.append(time.perf_counter())
        if not self.params.max_tokens:
            self.ready = Ready(finish_reason="length", read=len(self.prompt_ids))
            return
        self.steering.chances.used()
        self.output_ids.append(token)
        if logprobs is not None:
            self.logprobs.answer.append(logprobs)
        reason, said = None, self._said
        if said.add(token, len(self.output_ids) > self.params.min_tokens):
            reason = "stop"
        elif self.steering.take(token):
            reason = "stop"
            said.end()
        elif len(self.output_ids) == self.params.max_tokens or self.num_tokens == self.limit:
            reason = "length"
            said.end()
        text = said.printable() if reason is None else len(said.text)
        self.ready = Ready(text, len(self.output_ids), reason, read=len(self.prompt_ids))

    def note_read(self, tokens: int) -> None:
        """So much of the work on the prompt is done, in tokens."""
        self.ready = self.ready._replace(read=tokens)

    def fail(self, error: BaseException) -> None:
        """End the sequence with an error. The text so far stays."""
        self.ready = Ready(len(self.text), len(self.output_ids), "error", error, self.ready.read)


class _Text:
    """The text of an answer so far.   ends: tokens that end it."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.text = ""
        self._stream = tokenizer.stream()
        self._stops = params.stops
        ends = frozenset() if params.ignore_eos else tokenizer.eos_token_ids
        self.ends = ends | tokenizer.stop_ids(params.stops)
        self._kept = 0  # characters in which no stop string begins

    def add(self, token: int, may_stop: bool) -> bool:
        """Take a token; whether it ends the text, or a stop string does, of which the text has no part.

        may_stop: whether a stop string ends the text. One that begins before that never does.
        """
        if token in self.ends:
            self.end()
            return True
        self.text += self._stream.step(token)
        if not may_stop:
            self._kept = len(self.text)
        cut = min((at for stop in self._stops if (at := self.text.find(stop, self._kept)) >= 0), default=-1)
        if cut >= 0:
            self.text = self.text[:cut]
        return cut >= 0

    def end(self) -> None:
        """Append the text that the detokenizer still holds back."""
        self.text += self._stream.flush()

    def printable(self) -> int:
        """Characters that are final: the rest may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1)
        for tail in range(min(longest - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-tail:]) for stop in self._stops):
                return len(self.text) - tail
        return len(self.text)


class Scheduler:
    """The waiting, the one that is being read, and the running; `running[i]` is the sequence in row i of the store.

    reading: its prompt is being read, into the last row.
    """

    def __init__(self, store: KVStore, plan: MemoryPlan, max_num_seqs: int, find: Callable[[Sequence], Prefix]) -> None:
        """`find`: says what is kept of a sequence's beginning."""
        self._store = store
        self._plan = plan
        self._find = find
        self._most = plan.max_running(max_num_seqs)
        self._last = store.num_rows - 1
        self.waiting: deque[Sequence] = deque()
        self.reading: Sequence | None = None
        self.running: list[Sequence] = []

    @property
    def sequences(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self.running, *([self.reading] if self.reading is not None else []), *self.waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def admit(self) -> Sequence | None:
        """Let the first waiting sequence be read if its pages and slots are free; returns it.

        Of the device's slots each sequence has an equal part. The others give up what they have above it.
        """
        if self.reading is not None or not self.waiting or len(self.running) == self._most:
            return None
        sequence = self.waiting[0]
        prefix, blocks = self._find(sequence), self._plan.blocks(sequence.limit)
        if blocks - len(prefix.pages) > self._store.pages.available(prefix.pages):
            return None
        sharing = min(self._most, len(self.running) + len(self.waiting))
        quota = self._plan.quota(sharing, sequence.limit)
        slots = self._store.slots
        if slots is not None and slots.pool.available < 1 + quota:
            for row, running in enumerate(self.running):
                self._store.shrink(row, self._plan.quota(sharing, running.limit))
        self._store.admit(self._last, blocks, quota, prefix)
        self.reading, sequence.prefix = self.waiting.popleft(), prefix
        sequence.times += [time.perf_counter()] * (len(sequence.times) == 1)
        return sequence

    @property
    def reading_row(self) -> int:
        """Where prompts are read."""
        return self._last

    def run(self) -> int:
        """Let the sequence that was read run; returns its row."""
        assert self.reading is not None
        row = len(self.running)
        if row != self._last:
            self._store.move(self._last, row)
        self.running.append(self.reading)
        self.reading = None
        return row

    def came_later(self, sequence: Sequence) -> bool:
        """Whether a sequence came when an answer that still runs had begun."""
        return any(sequence.times[0] > one.times[-1] for one in self.running)

    def retire(self) -> None:
        """Release the rows of finished sequences; the last rows move into the gaps, so that rows stay contiguous."""
        if self.reading is not None and self.reading.finish_reason is not None:
            self.forget(self.reading)
        for row in range(len(self.running) - 1, -1, -1):
            if self.running[row].finish_reason is not None:
                self.drop(row)

    def drop(self, row: int) -> None:
        """Release one row."""
        last = len(self.running) - 1
        self.running[row].prefix = self.running[row].prefix.length()
        self._store.release(row)
        if row != last:
            self._store.move(last, row)
            self.running[row] = self.running[last]
        self.running.pop()

    def put_back(self, sequence: Sequence) -> None:
        """Release a sequence's row, and let it wait in front of all others, if it has not ended."""
        self.forget(sequence)
        if sequence.finish_reason is None:
            self.waiting.appendleft(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence, whether it waits, is being read, runs, or has ended."""
        if sequence is self.reading:
            sequence.prefix = sequence.prefix.length()
            self._store.release(self._last)
            self.reading = None
        elif sequence in self.running:
            self.drop(self.running.index(sequence))
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
