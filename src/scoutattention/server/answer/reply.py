"""The answers to one request, while they are made."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from ...errors import ScoutError
from ..engine import Answer, Chunk
from ..errors import ApiError, api_error, error_body
from .forms import DONE, Choice, Form, Prompt, event, usage

Watch = Callable[[int, Chunk], None]


class Reply:
    """The answers to the prompts of one request, in the order of the prompts, `n` for each.

    watch: told each chunk of an answer, with the answer's number.   failed: whether an error has ended them.
    """

    def __init__(self, answers: Sequence[Answer], n: int, prompts: Sequence[Prompt], watch: Watch) -> None:
        self._answers = answers
        self._n = n
        self._watch = watch
        self._coming: asyncio.Queue[tuple[int, Chunk] | asyncio.Future[None] | ScoutError] = asyncio.Queue()
        self.failed = False
        self.choices = [Choice(place, prompts[place // n]) for place in range(n * len(answers))]

    def fail(self, error: ScoutError) -> None:
        """End all answers that are under way with an error."""
        self._coming.put_nowait(error)

    def cancel(self) -> None:
        """End all answers that are under way."""
        for answer in self._answers:
            answer.cancel()

    async def chunks(self) -> AsyncGenerator[tuple[Choice, Chunk], None]:
        """The pieces of all answers as they come, each with the choice that has taken it.

        Raises ScoutError where an answer fails; then the others end as well.
        """
        tasks = [asyncio.ensure_future(self._read(place)) for place in range(len(self._answers))]
        for task in tasks:
            task.add_done_callback(self._coming.put_nowait)
        left = len(tasks)
        try:
            while left:
                came = await self._coming.get()
                if isinstance(came, ScoutError):
                    raise came
                if isinstance(came, asyncio.Future):
                    came.result()
                    left -= 1
                    continue
                number, chunk = came
                self.choices[number].add(chunk)
                self._watch(number, chunk)
                yield self.choices[number], chunk
            if any(choice.finish_reason is None for choice in self.choices):
                raise ApiError(503, "the answer ended before it was whole: ask again")
        except ScoutError:
            self.failed = True
            raise
        finally:
            for task in tasks:
                task.cancel()
            self.cancel()

    async def _read(self, place: int) -> None:
        """Take in the pieces of the answers to one prompt, as they come."""
        async for chunk in self._answers[place]:
            self._coming.put_nowait((place * self._n + chunk.index, chunk))

    def usage(self) -> dict[str, Any]:
        """Tokens of all prompts and answers so far."""
        prompt = sum(answer.prompt_tokens for answer in self._answers)
        cached = sum(answer.cached_tokens for answer in self._answers)
        return usage(prompt, cached, sum(choice.tokens for choice in self.choices))

    async def whole(self, form: Form) -> dict[str, Any]:
        """The body of a response that comes at once. Raises ApiError."""
        try:
            async with aclosing(self.chunks()) as chunks:
                async for _ in chunks:
                    pass
        except ScoutError as error:
            raise api_error(error, begun=True) from error
        choices = [form.whole(choice) for choice in self.choices]
        return {**form.head(streamed=False), "choices": choices, "usage": self.usage()}

    async def events(self, form: Form, *, at_end: bool, with_each: bool) -> AsyncGenerator[bytes, None]:
        """The events of a stream.

        at_end: whether it ends with the number of tokens.   with_each: whether each piece tells it.
        Raises ApiError where nothing was sent yet; a later error is an event.
        """
        head, sent = form.head(streamed=True), False
        try:
            async with aclosing(self.chunks()) as chunks:
                async for choice, chunk in chunks:
                    tokens = {"usage": self.usage() if with_each else None} if at_end or with_each else {}
                    yield event({**head, "choices": [form.piece(choice, chunk)], **tokens})
                    sent = True
        except ScoutError as error:
            refusal = api_error(error, begun=True)
            if not sent:
                raise refusal from error
            yield event(error_body(refusal))
        else:
            if at_end:
                yield event({**head, "choices": [], "usage": self.usage()})
        yield DONE
