"""Detokenization of tokens that arrive one at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedModelError


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
