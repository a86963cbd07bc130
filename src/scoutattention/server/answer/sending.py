"""Responses that end when the client has left."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..errors import ApiError, error_body, error_response
from .forms import DONE, event

SILENT_S = 10.0
"""Seconds after which a stream tells its client, and what lies between, that it still goes on."""
ALIVE = b": the prompt is being read\n\n"

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None where the client has left before. Then `work` is cancelled."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((doing, gone), return_when=asyncio.FIRST_COMPLETED)
        return doing.result() if doing.done() else None
    finally:
        for task in (doing, gone):
            task.cancel()
        await asyncio.wait((doing, gone))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events.

    Its head is sent with the first event, or when that is late; an ApiError before that is a response of its own.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], ended: Callable[[], None]) -> None:
        """ended: called once, however the stream ends."""
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events = events
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, unless the client leaves."""
        try:
            refusal = await unless_gone(receive, self._send(send))
            if refusal is not None:
                await error_response(refusal)(scope, receive, send)
        finally:
            self._ended()

    async def _send(self, send: Send) -> ApiError | None:
        """Send the events; an error that came before anything was sent is returned."""
        line = _Line(send, self.raw_headers)
        alive = asyncio.ensure_future(line.keep_alive())
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    await line.send(data)
        except ApiError as error:
            if not line.begun:
                return error
            await line.send(event(error_body(error)) + DONE)
        finally:
            alive.cancel()
        await line.send(b"")
        return None


class _Line:
    """The connection to a client.   begun: whether the head of the response was sent, or is about to be."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._lock = asyncio.Lock()  # the head comes first
        self._last = time.monotonic()
        self.begun = False

    async def send(self, data: bytes) -> None:
        """Send a piece of the body, and the head before the first one; nothing ends the body."""
        self._last = time.monotonic()
        async with self._lock:
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": bool(data)})

    async def keep_alive(self) -> None:
        """Show that the answer goes on, where it is silent."""
        while True:
            await asyncio.sleep(max(0.0, self._last + SILENT_S - time.monotonic()))
            if time.monotonic() >= self._last + SILENT_S:
                await self.send(ALIVE)
