"""The server's process: its socket, its signals, and its shutdown."""

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import override

from ..errors import ConfigError
from .app import Server
from .errors import ApiError, error_response

LOG = logging.getLogger(__name__)
FINISH_S = 30.0
"""Seconds in which answers may be finished when the server is told to end."""
LEAVE_S = 5
"""Seconds more in which clients may read why their answers ended."""
NOW_S = 1.0
"""Seconds for the same when the server is told to end at once."""
TICKS = 10
"""Of uvicorn, in a second."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOO_LONG = "the server is closing, and this answer took too long: ask another one"
AT_ONCE = "the server was told to end at once: ask another one"


def bind(host: str, port: int) -> socket.socket:
    """A socket with an address, at which nobody listens yet. Raises ConfigError where the address cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen at {host}, port {port}: {reason}: give another --host or --port") from error
    return made


def url_of(bound: socket.socket) -> str:
    """Where a client on this computer finds a server."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Ending:
    """Answers requests that the server's end cuts off, where nothing of their answer was sent."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Requests are cancelled by the server's end alone."""
        begun = False

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:
            if begun:
                return
            with suppress(TimeoutError):  # of a client that reads nothing
                async with asyncio.timeout(NOW_S):
                    await error_response(ApiError(503, AT_ONCE))(scope, receive, send)


class Process(uvicorn.Server):
    """Serves until SIGINT or SIGTERM comes, then finishes the answers that are under way, and returns.

    A second SIGINT ends it, and the answers, at once. `run([bound])` serves at a socket that has an address.
    """

    def __init__(
        self, server: Server, started: Callable[[], None] = lambda: None, look: Callable[[], None] = lambda: None
    ) -> None:
        """started: called once requests are taken.   look: called every second."""
        config = uvicorn.Config(
            Ending(server.app),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=int(FINISH_S) + LEAVE_S,
        )
        super().__init__(config)
        self._server = server
        self._on_start = started
        self._look = look
        self._interrupted = False

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    @override
    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            self._look()
        return await super().on_tick(counter)

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._server.close()
        count = self._server.places.taken
        if count and self._interrupted:
            answers = "1 answer is" if count == 1 else f"{count} answers are"
            LOG.warning("%s under way: waiting up to %.0f s; Ctrl-C again ends now", answers, FINISH_S)
        asyncio.get_running_loop().call_later(FINISH_S, self._server.end_all, TOO_LONG)
        ending = asyncio.ensure_future(self._end_at_once())
        await super().shutdown(sockets)
        if self.force_exit:
            await ending
        else:
            ending.cancel()

    async def _end_at_once(self) -> None:
        """Wait until the server is told to, and end all requests: clients read why."""
        while not self.force_exit:
            await asyncio.sleep(1 / TICKS)
        self._server.end_all(AT_ONCE)
        if tasks := set(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=NOW_S)
            for task in late:
                task.cancel()
            await asyncio.wait(tasks, timeout=NOW_S)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._interrupted = sig == signal.SIGINT
        super().handle_exit(sig, frame)

    @override
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals end the server, and nothing else: the command goes on to its end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
