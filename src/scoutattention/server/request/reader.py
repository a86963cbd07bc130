"""How the bodies of requests are read."""

import asyncio
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from ...config.fields import format_bytes
from ..errors import ApiError, refused
from .refusals import refuse_unsupported

MOST_BYTES = 32 << 20
"""Of a request's body: some 8 million tokens of text."""
SMALL_BYTES = 1 << 16
"""A body that is read faster than another thread is asked to."""
MOST_SECONDS = 60.0
"""In which a client has to send its whole request."""
WANTED = {
    "prompt": "be a text, token ids, or a list of either",
    "stop": "be a text, or a list of at most 64 texts",
    "messages": 'be a list of {"role": ..., "content": ...}, with texts, or texts as parts of a content',
    "tool_choice": "be 'auto' or 'none', because no call can be forced",
}
"""What fields of several types have to be."""

T = TypeVar("T")


class Reader(Generic[T]):
    """Reads the bodies of one kind of requests.   needed: fields of which a request has exactly one."""

    def __init__(self, kind: type[T], *needed: str) -> None:
        self.adapter: TypeAdapter[T] = TypeAdapter(kind)
        self._needed = needed
        self._known = tuple(self.adapter.json_schema(ref_template="{model}")["properties"])

    async def __call__(self, request: Request) -> T:
        """The request. Raises ApiError, and ClientDisconnect."""
        data = await body_of(request)
        if len(data) <= SMALL_BYTES:
            return self.read(data)
        return await asyncio.to_thread(self.read, data)

    def read(self, data: bytes) -> T:
        """The request that a body is. Raises ApiError."""
        try:
            read: Any = self.adapter.validate_json(data)
        except ValidationError as error:
            raise _refusal(error) from None
        given = [name for name in self._needed if name in read]
        if not given:
            raise refused(f"the request has no {' and no '.join(self._needed)}: give one", self._needed[0])
        if len(given) > 1:
            raise refused(f"the request has both {' and '.join(given)}: give one of them", given[1])
        refuse_unsupported(read, self._known)
        return read  # type: ignore[no-any-return]


async def body_of(request: Request) -> bytes:
    """A request's body. Raises ApiError where it is too large, or takes too long, and ClientDisconnect."""
    too_large = ApiError(413, f"the request is larger than {format_bytes(MOST_BYTES)}: send fewer or shorter prompts")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > MOST_BYTES:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for piece in request.stream():
                data += piece
                if len(data) > MOST_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the request was not sent within {MOST_SECONDS:g} s") from None
    return bytes(data)


def _refusal(error: ValidationError) -> ApiError:
    """The fault that was found deepest in the request."""
    faults = error.errors(include_url=False, include_context=False)
    fault = max(faults, key=lambda one: len(one["loc"]))
    name = str(fault["loc"][0]) if fault["loc"] else None
    if fault["type"] == "json_invalid":
        return refused(f"the request is no JSON: {fault['msg'].partition(': ')[2]}")
    if name is None:
        return refused("the request is no JSON object: send one")
    where = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"][1:] if _is_place(part)
    )
    value = repr(fault["input"])
    shown = value if len(value) <= 80 else f"{value[:80]}..."
    said = fault["msg"].removeprefix("Input ").removeprefix("should ")
    wanted = said if where else WANTED.get(name, said)
    return refused(f"{name}{where}={shown} has to {wanted}", name)


def _is_place(part: int | str) -> bool:
    """Whether a part of a fault's place is one of the request, and not a type's name."""
    return isinstance(part, int) or (part.isidentifier() and part not in ("str", "int", "float", "bool"))
