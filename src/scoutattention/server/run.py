"""The server's process: its socket, its signals, and its shutdown."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from typing_extensions import override

from ..errors import ConfigError
from .app import Server

FINISH_S = 30.0
"""Seconds in which answers may be finished when the server is told to end."""
LEAVE_S = 5
"""Seconds more in which clients may read why their answers ended."""
TICKS = 10
"""Of uvicorn, in a second."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


class Process(uvicorn.Server):
    """Serves until SIGINT or SIGTERM comes, then finishes the answers that are under way, and returns.

    A second SIGINT ends it at once. `run([bound])` serves at a socket that has an address.
    """

    def __init__(
        self, server: Server, started: Callable[[], None] = lambda: None, look: Callable[[], None] = lambda: None
    ) -> None:
        """started: called once requests are taken.   look: called every second."""
        config = uvicorn.Config(
            server.app,
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
        asyncio.get_running_loop().call_later(FINISH_S, self._server.end_all)
        await super().shutdown(sockets)

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
