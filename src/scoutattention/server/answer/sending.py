"""Responses that end when the client has left."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
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
        """Send the events; an error that came before any of them is returned."""
        begun = False
        coming = asyncio.ensure_future(_next(self._events))
        try:
            while True:
                done, _ = await asyncio.wait((coming,), timeout=SILENT_S)
                data = ALIVE
                if done:
                    try:
                        data = coming.result()
                    except ApiError as error:
                        if not begun:
                            return error
                        data = event(error_body(error)) + DONE
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": data, "more_body": bool(data)})
                if not data:
                    return None
                if done:
                    coming = asyncio.ensure_future(_next(self._events))
        finally:
            coming.cancel()
            await asyncio.wait((coming,))
            await self._events.aclose()


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    """The next event; nothing at the end."""
    return await anext(events, b"")
