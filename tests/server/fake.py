"""An engine that answers as it is told, with a byte-level tokenizer."""

import asyncio
import threading
from dataclasses import dataclass

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from scoutattention.attention.step import StepStats
from scoutattention.engine.prompts import PromptReader
from scoutattention.engine.stats import Stats, StepCounts
from scoutattention.models.templates.chat import ChatTemplate
from scoutattention.models.text import Tokenizer
from scoutattention.server.engine import Memory, Tier

TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% if loud %}!{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
)


def byte_tokenizer(template=TEMPLATE):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, template and ChatTemplate(template, {}, "here"), frozenset())


@dataclass
class FakeChunk:
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, float]] | None
    index: int
    prompt_logprobs: list[dict[int, float] | None] | None = None


class FakeAnswer:
    cached_tokens = 3

    def __init__(self, engine, ids, params, streamed):
        self.engine, self.ids, self.params, self.streamed = engine, ids, params, streamed
        self.prompt_tokens = len(ids)
        self.cancelled = threading.Event()

    def waits(self, index=0):
        return 0.25, 0.5

    def cancel(self):
        self.cancelled.set()

    async def __aiter__(self):
        given, left = self.engine.pieces, self.params.max_tokens
        pieces, cut = given[:left], len(given) > left
        if not left:
            yield FakeChunk("", [], "length", self.params.logprobs and [], 0, self._of_prompt())
        for place, text in enumerate(pieces):
            last = place == len(pieces) - 1
            for index in range(self.params.n):
                while not self.engine.go.is_set() or self.engine.most <= place:
                    await asyncio.sleep(0.005)
                if self.engine.raises is not None and place == self.engine.raises_at:
                    raise self.engine.raises
                if self.cancelled.is_set():
                    return
                ids = self.engine.tokenizer.encode(text)[:1]
                top = None if self.params.logprobs is None else [{ids[0]: -0.5, 7: -1.5, 8: float("-inf")}]
                of_prompt = None if place else self._of_prompt()
                yield FakeChunk(text, ids, ("length" if cut else "stop") if last else None, top, index, of_prompt)

    def _of_prompt(self):
        if self.params.prompt_logprobs is None:
            return None
        return [None, *({token: -0.25, 7: -2.5} for token in self.ids[1:])]


class FakeEngine:
    """pieces: of every answer.   go: answers wait for it.   most: pieces after which an answer waits for ever.

    raises, raises_at: what an answer fails with, before which piece.   refuses: what `submit` raises.
    """

    def __init__(self, pieces=("Hi", " there", "!"), template=TEMPLATE, max_len=500):
        self.pieces = pieces
        self.tokenizer = byte_tokenizer(template)
        self.max_len = self.capacity = max_len
        self.max_running = 2
        self.go = threading.Event()
        self.go.set()
        self.most = 1 << 30
        self.raises, self.raises_at, self.refuses = None, 0, None
        self.answers = []
        self._reader = PromptReader(self.tokenizer, 256, max_len, "fake")

    def check_ids(self, ids):
        return self._reader.read([ids], chat=False)[0]

    def submit(self, ids, params, *, streamed):
        if self.refuses is not None:
            raise self.refuses
        self.answers.append(FakeAnswer(self, ids, params, streamed))
        return self.answers[-1]

    def stats(self):
        return Stats(prompt_tokens=9, cached_tokens=4, steps=StepStats(4, 1, 2, 2.0, 2.0, 1, 2))

    def steps(self):
        counts = StepCounts()
        for tokens in (17, 0, 32):
            counts.add(tokens)
        return counts

    def queue(self):
        return 2, 1

    def memory(self):
        return Memory(32, Tier(4, 2, 4096), Tier(8, 2, 1024))

    def reading(self):
        return None

    def residency(self):
        return 1.0, 0.25, 0.5

    def prompt(self, number=-1):
        """The text of a prompt that was asked for."""
        return self.tokenizer.decode(self.answers[number].ids)
