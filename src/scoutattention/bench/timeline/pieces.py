"""Calls that nest as pieces that do not: each moment belongs to the innermost call."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .watch import Watched

INSIDE = {("merge", "near"): "guard"}
"""What a stage is called inside another one."""


class Piece(NamedTuple):
    """A part of a call in which no inner one was under way."""

    name: str
    layer: int | None
    start_s: float
    end_s: float


def pieces(calls: Iterable[Watched]) -> list[Piece]:
    """The calls of one thread as pieces in the order of time; a call without a layer has that of the one around it."""
    joined: list[Piece] = []
    for piece in _pieces(sorted(calls, key=lambda call: (call.start_s, -call.end_s))):
        last = joined[-1] if joined else None
        if last is not None and last[:2] == piece[:2] and last.end_s == piece.start_s:
            joined[-1] = last._replace(end_s=piece.end_s)
        else:
            joined.append(piece)
    return joined


def _pieces(calls: list[Watched]) -> Iterator[Piece]:
    around: list[Piece] = []  # that are under way, each from where it goes on
    for call in calls:
        while around and around[-1].end_s <= call.start_s:
            yield from _ended(around)
        name, layer = call.name, call.layer
        if around:
            outer = around[-1]
            if call.start_s > outer.start_s:
                yield outer._replace(end_s=call.start_s)
            name = INSIDE.get((outer.name, name), name)
            layer = outer.layer if layer is None else layer
            around[-1] = outer._replace(start_s=min(outer.end_s, call.end_s))
        end_s = min(call.end_s, around[-1].end_s) if around else call.end_s
        around.append(Piece(name, layer, call.start_s, end_s))
    while around:
        yield from _ended(around)


def _ended(around: list[Piece]) -> Iterator[Piece]:
    """The rest of the innermost call, which ends."""
    piece = around.pop()
    if piece.end_s > piece.start_s:
        yield piece
