"""The check of the API key, and which addresses need one."""

import hashlib
import hmac
import ipaddress

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError, error_response

OPEN = frozenset(("/", "/health"))
"""Paths that need no key: the dashboard, which has no numbers in itself, and the question whether the server lives."""


class ApiKey:
    """Lets requests through that bear the key.

    Every request with a key takes the same time to be judged, whatever part of the key is right.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._right(Request(scope)):
            await self._app(scope, receive, send)
            return
        refusal = ApiError(
            401,
            "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(refusal)(scope, receive, send)

    def _right(self, request: Request) -> bool:
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), self._key)


def is_local(host: str) -> bool:
    """Whether an address to listen at can be reached from this computer alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
