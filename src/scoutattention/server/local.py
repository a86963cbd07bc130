"""An `LLM` as the server's engine."""

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from ..config import SamplingParams
from ..engine.llm import LLM, Chunk
from ..engine.prompts import PromptReader, of_each_answer
from ..engine.stats import Stats
from ..errors import ScoutError
from .engine import Memory


class LocalEngine:
    """An `LLM` in this process; see `Engine`."""

    def __init__(self, llm: LLM) -> None:
        plan, shape = llm.engine.plan, llm.engine.runner.decoder.shape
        self._llm = llm
        self.tokenizer = llm.tokenizer
        self.max_len = plan.max_len
        self.capacity = min(plan.max_len, plan.pages * plan.block_size)
        self.max_running = plan.max_running(llm.engine_config.max_num_seqs)
        self._reader = PromptReader(llm.tokenizer, shape.vocab_size, self.max_len, llm.model)

    def check_ids(self, ids: Sequence[int]) -> list[int]:
        """The ids, if they are a prompt. Raises PromptError."""
        return self._reader.read([ids], chat=False)[0]

    def submit(self, ids: list[int], params: SamplingParams) -> "ThreadAnswer":
        """Queue a prompt, and return at once. Raises PromptError, ConfigError and CapacityError."""
        return ThreadAnswer(self._llm, ids, params)

    def stats(self) -> Stats:
        """Totals since the model was loaded."""
        return self._llm.stats()

    def memory(self) -> Memory:
        """How much there is of both tiers, and how much of it is in use."""
        store = self._llm.engine.store
        pages, slots = store.pages.pool, store.slots
        used = 1 - pages.available / pages.capacity
        if slots is None:
            return Memory(pages.capacity * pages.entry_bytes, used, 0, 0.0)
        pool = slots.pool
        return Memory(
            pages.capacity * pages.entry_bytes,
            used,
            pool.capacity * pool.entry_bytes,
            1 - pool.available / pool.capacity,
        )


@dataclass(frozen=True)
class ThreadChunk:
    """A piece of one answer."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, float]] | None
    index: int


class ThreadAnswer:
    """The answers to one prompt, each read by a thread of its own."""

    cached_tokens = 0

    def __init__(self, llm: LLM, ids: list[int], params: SamplingParams) -> None:
        self.prompt_tokens = len(ids)
        self._cancelled = threading.Event()
        self._queue: SimpleQueue[ThreadChunk | ScoutError | None] = SimpleQueue()
        self._told: threading.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._left = params.n
        for index, one in enumerate(of_each_answer(params)):
            stream = llm.stream(ids, one, on_prompt=self._on_prompt)
            threading.Thread(target=self._read, args=(stream, index), daemon=True).start()

    def cancel(self) -> None:
        """Stop."""
        self._cancelled.set()

    def _on_prompt(self, done: int, total: int) -> None:
        if self._cancelled.is_set():
            raise ScoutError("the request was cancelled")

    def _read(self, stream: Generator[Chunk, None, None], index: int) -> None:
        last: ScoutError | None = None
        try:
            for chunk in stream:
                if self._cancelled.is_set():
                    stream.close()
                    break
                self._put(ThreadChunk(chunk.text, chunk.token_ids, chunk.finish_reason, chunk.logprobs, index))
        except ScoutError as error:
            last = error
        self._put(last)

    def _put(self, item: ThreadChunk | ScoutError | None) -> None:
        self._queue.put(item)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news.set)

    async def __aiter__(self) -> AsyncIterator[ThreadChunk]:
        """The pieces."""
        self._loop = asyncio.get_running_loop()
        left = self._left
        while left:
            self._news.clear()
            while True:
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    left -= 1
                elif isinstance(item, ScoutError):
                    raise item
                else:
                    yield item
            if left:
                await self._news.wait()
