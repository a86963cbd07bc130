"""Answers that are under way: read token by token, by a thread or by an event loop, or waited for."""

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from .runner import Progress
from .scheduler import Reader, Ready
from .scheduler import Sequence as Request
from .thread import EngineThread


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed answer; the last one has a finish_reason. `text` may be empty.

    logprobs: see `Output`.   index: which of a prompt's answers.
    prompt_logprobs: see `Output`; in an answer's first piece.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, float]] | None = None
    index: int = 0
    prompt_logprobs: list[dict[int, float] | None] | None = None


class Answer:
    """The answers to one prompt, or to several, which are under way.

    Chunks come as tokens do, in `for` and in `async for`; both raise the error of an answer that failed, after what
    there is of it. An answer that nobody holds any more is cancelled.

    requests: what is asked; each has an answer.
    """

    def __init__(
        self, thread: EngineThread, requests: Sequence[Request], on_prompt: Progress | None = None, *, streamed: bool
    ) -> None:
        """Send them to the engine.   on_prompt: told (done, total) tokens of a prompt as it is read, while one waits.

        streamed: see `LLM.submit`.
        """
        self.requests = requests
        self._on_prompt = on_prompt
        self._sent = [Ready() for _ in requests]
        self._news = _News()
        for request in requests:
            request.reader = Reader(streamed, self._news.tell)
        self._gone = weakref.finalize(self, _give_up, thread, requests)
        self._gone.atexit = False
        thread.submit(requests)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the first prompt."""
        return len(self.requests[0].prompt_ids)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the first prompt that were kept of earlier prompts; known once it begins to be read."""
        return self.requests[0].prefix.tokens

    def waits(self, index: int = 0) -> tuple[float, float]:
        """Seconds that an answer waited for its turn, and that its prompt was read; known with its first token."""
        came, admitted, first = self.requests[index].times
        return admitted - came, first - admitted

    def cancel(self) -> None:
        """Give the answers up, and free what they hold; of answers that have ended there is nothing left to free."""
        self._gone()

    def wait(self) -> None:
        """Wait until all have ended."""
        while not self._ended:
            self._news.clear()
            for _ in self._chunks():
                pass
            if not self._ended:
                self._news.wait()

    def __iter__(self) -> Generator[Chunk, None, None]:
        """Chunks as they come. Closing the iterator cancels what has not ended."""
        try:
            while not self._ended:
                self._news.clear()
                for chunk in self._chunks():
                    yield _whole(chunk)
                if not self._ended:
                    self._news.wait()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Chunk, None]:
        """Chunks as they come. Closing the iterator, or its task, cancels what has not ended."""
        event_loop, wake = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # an event loop that was closed waits for nothing
                event_loop.call_soon_threadsafe(wake.set)

        self._news.also = tell
        try:
            while not self._ended:
                wake.clear()
                for chunk in self._chunks():
                    yield _whole(chunk)
                if not self._ended:
                    await wake.wait()
        finally:
            self.cancel()

    @property
    def _ended(self) -> bool:
        return all(state.finish_reason for state in self._sent)

    def _chunks(self) -> Iterator[Chunk | BaseException]:
        """What is ready and was not given out yet, and what failed after it."""
        for index, request in enumerate(self.requests):
            before, ready = self._sent[index], request.ready
            self._sent[index] = ready
            if ready.read != before.read and self._on_prompt is not None:
                self._on_prompt(ready.read, len(request.prompt_ids))
            if ready.tokens > before.tokens or (
                ready.finish_reason and ready.error is None and not before.finish_reason
            ):
                text, tokens = slice(before.text, ready.text), slice(before.tokens, ready.tokens)
                logprobs = None if request.params.logprobs is None else request.logprobs.answer[tokens]
                end = ready.finish_reason if ready.error is None else None
                scored = request.params.prompt_logprobs is not None and not before.tokens
                of_prompt = request.logprobs.prompt if scored else None
                yield Chunk(request.text[text], request.output_ids[tokens], end, logprobs, index, of_prompt)
            if ready.error is not None and before.error is None:
                yield ready.error


def _whole(chunk: Chunk | BaseException) -> Chunk:
    """A chunk; raises what is an error."""
    if isinstance(chunk, BaseException):
        raise chunk
    return chunk


class _News:
    """Wakes the thread that waits for news, or an event loop.   also: called as well."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.also: Callable[[], None] = lambda: None
        self.clear, self.wait = self._event.clear, self._event.wait

    def tell(self) -> None:
        """There is news."""
        self._event.set()
        self.also()


def _give_up(thread: EngineThread, requests: Sequence[Request]) -> None:
    thread.cancel([request for request in requests if request.finish_reason is None])
