"""Calls of tools in an answer, as models of several families write them: JSON between two marks."""

import json
import uuid
from typing import Any, NamedTuple

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""What Qwen, Hermes and others put around {"name": ..., "arguments": {...}}; their templates tell the model so."""


class Said(NamedTuple):
    """A part of an answer: text, and calls in OpenAI's form."""

    text: str
    calls: list[dict[str, Any]]


class CallReader:
    """Takes calls out of a text that comes in pieces; what begins like a call and is none stays text.

    count: calls so far.
    """

    def __init__(self, *, only_first: bool = False) -> None:
        """only_first: whether later calls are left out."""
        self.count = 0
        self._only_first = only_first
        self._held = ""

    def take(self, piece: str, *, last: bool) -> Said:
        """What a piece completes.   last: whether it is the end of the answer."""
        self._held += piece
        texts, calls = list[str](), list[dict[str, Any]]()
        while (begin := self._held.find(OPEN)) >= 0:
            end = self._held.find(CLOSE, begin)
            if end < 0 and not last:
                break
            inner = self._held[begin + len(OPEN) : end if end >= 0 else None]
            after = end + len(CLOSE) if end >= 0 else len(self._held)
            call = _call(inner)
            texts.append(self._held[: begin if call else after])
            if call and not (self._only_first and self.count):
                calls.append({"index": self.count, **call})
                self.count += 1
            self._held = self._held[after:]
        ready = len(self._held) if last else _before_mark(self._held)
        texts.append(self._held[:ready])
        self._held = self._held[ready:]
        return Said("".join(texts), calls)


def _before_mark(text: str) -> int:
    """Characters before what may be a mark when more has come."""
    if (begin := text.find(OPEN)) >= 0:
        return begin
    return next((len(text) - size for size in range(len(OPEN), 0, -1) if text.endswith(OPEN[:size])), len(text))


def _call(text: str) -> dict[str, Any] | None:
    """The call that a text is, or None."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return None
    arguments = json.dumps(read.get("arguments", {}), ensure_ascii=False)
    function = {"name": read["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
