"""How the bodies of requests are read."""

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from ...config.fields import format_bytes
from ..errors import ApiError, refused
from .fields import LARGEST
from .refusals import refuse_unsupported

MOST_BYTES = 32 << 20
"""Of a request's body: some 8 million tokens of text."""
SMALL_BYTES = 1 << 16
"""A body that is read faster than another thread is asked to."""
MOST_SECONDS = 60.0
"""In which a client has to send its whole request."""
WANTED = {
    "prompt": "has to be a text, token ids, or a list of either",
    "stop": "has to be a text, or a list of at most 64 texts",
    "messages": 'has to be a list of {"role": ..., "content": ...}, with texts, or texts as parts of a content',
    "content": 'has to be a text, or a list of {"type": "text", "text": ...}',
    "tool_choice": "has to be 'auto' or 'none', because no call can be forced",
    "max_tokens": f"has to be a whole number from 1 to {LARGEST}, or 0 with echo (/v1/completions)",
}
"""What is said of fields of several types, and of those that need a reason."""
SHOULD = re.compile(r"\w+ should ")
"""How pydantic begins to say what a value has to be."""
WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid list": "a list",
    "a valid dictionary": "an object",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""Words of pydantic, and what they are here."""
KINDS = {str: "texts", int: "numbers", float: "numbers", bool: "numbers", list: "lists"}
"""What the entries of a prompt are called."""
OTHER = "other things"

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
    if name == "prompt" and (odd := _odd_kinds(faults)):
        return refused(odd, name)
    path = [part for part in fault["loc"] if part == name or _is_place(part)]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    if fault["type"] == "missing":
        return refused(f"{where} is missing: give it", name)
    if fault["loc"][-1] == "[key]":
        return refused(f"{name} has the key {_shown(fault['input'])}: give token ids, which are whole numbers", name)
    return refused(f"{where}={_shown(fault['input'])} {WANTED.get(str(path[-1])) or _wanted(fault['msg'])}", name)


def _shown(value: object) -> str:
    """A value, or its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _wanted(said: str) -> str:
    """What a value has to be, of what pydantic says about it."""
    has_to = SHOULD.match(said)
    if has_to is None:
        return f"cannot be: {said}"
    wanted = said[has_to.end() :]
    for theirs, ours in WORDS.items():
        wanted = wanted.replace(theirs, ours)
    return f"has to {wanted}"


def _odd_kinds(faults: Iterable[ErrorDetails]) -> str | None:
    """What to say of a prompt that is a list of several kinds, or of none that can be; None where it is not."""
    prompt = next((fault["input"] for fault in faults if len(fault["loc"]) == 2 and fault["loc"][0] == "prompt"), None)
    if not isinstance(prompt, list):
        return None
    kinds = list(dict.fromkeys(KINDS.get(type(item), OTHER) for item in prompt))
    if len(kinds) < 2 and kinds != [OTHER]:
        return None
    does = "holds" if len(kinds) < 2 else "mixes"
    return f"prompt {does} {' and '.join(kinds)}: give a text, token ids, or a list of either"


def _is_place(part: int | str) -> bool:
    """Whether a part of a fault's place is one of the request, and not a type's name."""
    if isinstance(part, int) or part.isdigit():
        return True
    return part.isidentifier() and part not in ("str", "int", "float", "bool")
