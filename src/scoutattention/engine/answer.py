"""Answers that are being generated. A thread or an event loop reads them token by token, or waits for their end."""

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
    """A piece of a streamed answer; the last piece has a finish_reason. `text` may be empty.

    logprobs: see `Output`.   index: the number of the answer, if the prompt has several.
    prompt_logprobs: see `Output`; only in an answer's first piece.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[dict[int, float]] | None = None
    index: int = 0
    prompt_logprobs: list[dict[int, float] | None] | None = None


@dataclass(frozen=True)
class Output:
    """One answer.

    finish_reason: "stop" (end of sequence, or a stop string), "length", or "error".   error: what failed, or None.
    logprobs: for each token, log-probabilities by token id, the token's own first; None unless requested.
    prompt_logprobs: the same for each token of the prompt; None for the first token.
    ttft_s: seconds from the arrival of the request to its first token.
    cached_tokens: prompt tokens that the engine reused from earlier prompts.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: str
    ttft_s: float
    logprobs: list[dict[int, float]] | None = None
    error: BaseException | None = None
    cached_tokens: int = 0
    prompt_logprobs: list[dict[int, float] | None] | None = None


class Answer:
    """The answer to a submitted prompt (or answers, with n above 1), while it is generated.

    `for` and `async for` yield chunks as tokens come. If an answer fails, they raise its error after its last chunk. An
    `Answer` that is garbage-collected is cancelled. `wait` returns the whole outputs instead.

    requests: the requests that are answered, one for each answer.
    """

    def __init__(
        self, thread: EngineThread, requests: Sequence[Request], on_prompt: Progress | None = None, *, streamed: bool
    ) -> None:
        """Send the requests.   on_prompt: called with (done, total) tokens of a prompt, in the thread that waits.

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
        """Tokens of the first prompt that were reused from earlier prompts; known when its prefill begins."""
        return self.requests[0].prefix.tokens

    def waits(self, index: int = 0) -> tuple[float, float]:
        """Seconds in the queue and seconds of prefill, of one answer; known with its first token."""
        came, admitted, first = self.requests[index].times
        return admitted - came, first - admitted

    def cancel(self) -> None:
        """Cancel the answers that have not ended, and free their memory."""
        self._gone()

    def wait(self) -> list[Output]:
        """Wait until all answers have ended, and return their outputs, as `LLM.generate` does.

        Of an answer that failed or was cancelled, the output has an `error`. If all failed, the first error is raised.
        """
        while not self._ended:
            self._news.clear()
            for _ in self._chunks():
                pass
            if not self._ended:
                self._news.wait()
        errors = [request.ready.error for request in self.requests if request.ready.error is not None]
        if errors and len(errors) == len(self.requests):
            raise errors[0]
        return [_output(request) for request in self.requests]

    def __iter__(self) -> Generator[Chunk, None, None]:
        """Chunks as they come. Closing the iterator cancels answers that have not ended."""
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
        """Chunks as they come. Closing the iterator, or cancelling its task, cancels answers that have not ended."""
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
        """Chunks that were not yielded yet, each followed by the error of its answer, if it failed."""
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


def _output(request: Request) -> Output:
    assert request.finish_reason is not None
    return Output(
        request.text,
        request.output_ids,
        len(request.prompt_ids),
        request.finish_reason,
        request.ttft_s,
        None if request.params.logprobs is None else request.logprobs.answer,
        request.ready.error,
        request.prefix.tokens,
        None if request.params.prompt_logprobs is None else request.logprobs.prompt,
    )


def _whole(chunk: Chunk | BaseException) -> Chunk:
    """The chunk itself. An error is raised."""
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
