"""The text of tokens that arrive one at a time, equal to that of all of them at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModelError

_BROKEN = "\ufffd"


@dataclass(frozen=True)
class DecodeRule:
    """What of a tokenizer's decoder decides which text is final.

    byte_level: tokens are bytes, and a character may have bytes of several tokens.
    byte_fallback: some tokens are single bytes; a run of these is text only as a whole.
    """

    byte_level: bool = False
    byte_fallback: bool = False

    @classmethod
    def of(cls, decoder: str | None) -> "DecodeRule":
        """Read the decoder of tokenizer.json; UnsupportedModelError if later tokens could change any earlier text."""
        byte_level = byte_fallback = joined = False
        for part in _parts(None if decoder is None else json.loads(decoder)):
            kind = part.get("type")
            if not _is_known(kind, part, joined, byte_level):
                raise UnsupportedModelError(
                    f"the decoder {kind} in tokenizer.json, as it is used there, is not supported: "
                    "supported are ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip"
                )
            byte_level |= kind == "ByteLevel"
            byte_fallback |= kind == "ByteFallback"
            joined |= kind in ("ByteLevel", "Fuse")
        return cls(byte_level, byte_fallback)


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [part for inner in decoder["decoders"] for part in _parts(inner)]


def _is_known(kind: object, part: Mapping[str, Any], joined: bool, byte_level: bool) -> bool:
    """Whether this part leaves the text of earlier tokens alone; `joined`: it gets one text instead of tokens."""
    if kind == "Strip":
        return bool(part["stop"] == 0)
    if not joined:
        return kind in ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse")
    if kind == "Replace":
        return len(part["pattern"].get("String", "")) == 1 and not byte_level
    return kind == "Fuse"


class TextStream:
    """The text of tokens that arrive one at a time; never gives out a part of a character.

    The texts of all steps and of `flush` together are `decode` of all tokens. The cost of a step does not grow: a few
    tokens are decoded, after the tokens before them. These are there since a decoder may treat its first token
    differently, as when it takes a space away.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], name: Callable[[int], str | None], rule: DecodeRule
    ) -> None:
        """decode: the text of tokens. name: a token's own text, or None for one that decoding leaves out."""
        self._decode = decode
        self._name = name
        self._rule = rule
        self._before: list[int] = []  # whose text is given out
        self._last = 0  # how many of these came last, together
        self._before_length = 0  # of their text
        self._pending: list[int] = []
        self._given = 0  # characters of the text of `_pending`

    def step(self, token_id: int) -> str:
        """The characters this token completes, which may be none."""
        name = self._name(token_id)
        if name is None:
            return ""
        self._pending.append(token_id)
        if self._rule.byte_fallback and name.startswith("<0x"):
            return ""
        text = self._text()
        final = len(text) - (self._rule.byte_level and text.endswith(_BROKEN))
        piece = text[self._given : final]
        self._given = max(self._given, final)
        if not text and self._before_length:
            self._pending.clear()  # nothing comes of them
        elif final == len(text):
            self._settle(len(self._pending))
        elif len(self._pending) > 1:
            self._settle_but_last(text)
        return piece

    def flush(self) -> str:
        """What is left after the last token: the replacement character for a part of a character, mostly nothing."""
        rest = self._text()[self._given :]
        self._settle(len(self._pending))
        return rest

    def _text(self) -> str:
        return self._decode(self._before + self._pending)[self._before_length :]

    def _settle(self, count: int) -> None:
        """The text of the first pending tokens is final: they become those before, alone if they have text alone."""
        settled, self._pending = self._pending[:count], self._pending[count:]
        recent = self._before[len(self._before) - self._last :]
        for before in (settled, recent + settled, self._before + settled):
            if text := self._decode(before):
                break
        self._before, self._last, self._before_length = before, len(settled), len(text)
        self._given = 0

    def _settle_but_last(self, text: str) -> None:
        """Settle all but the last pending token where a character begins with it: apart they have the same text."""
        tail = self._decode(self._pending[-1:])
        if not tail or not text.endswith(tail):
            return
        head = self._decode(self._before + self._pending[:-1])[self._before_length :]
        if head + tail == text:
            given = self._given - len(head)
            self._settle(len(self._pending) - 1)
            self._given = given
