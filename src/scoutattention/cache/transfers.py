"""Copies from host pages to device slots: at once, or beside the next step."""

from itertools import pairwise

import torch
from torch import Tensor

from ..kernels.ops import Ops
from ..runtime.streams import SideStream
from ..types import Copies
from .pages import Pages
from .slots import Moves, Slots

PARTS = 4
"""Parts of the layers whose recalled blocks are waited for together."""


class Transfers:
    """Fills slots from pages."""

    def __init__(self, pages: Pages, slots: Slots, side: SideStream, ops: Ops) -> None:
        """`side`: the stream for what runs beside the steps; it has PARTS marks."""
        layers = slots.content.shape[0]
        self._parts = range(0, layers, -(-layers // PARTS))  # first layers
        self._pages = pages
        self._slots = slots
        self._side = side
        self._ops = ops
        self._queued: list[tuple[Tensor, Moves]] = []  # with their layers
        k, v = pages.pool.k[0, 0, 0], pages.pool.v[0, 0, 0]
        self._head_bytes = k.nbytes + v.nbytes

    def copy_now(self, layer: int | Tensor, moves: Moves, *, empty: bool = False) -> int:
        """Give blocks slots, and return the bytes copied.  Between steps, or before a layer attends (`fetch`).

        layer: of all moves, or int64 [M].   empty: whether all of the slots are known to be.
        """
        layer = torch.full_like(moves.row, layer) if isinstance(layer, int) else layer
        self._assign(layer, moves, empty=empty)
        self._copy(self._copies(layer, moves))
        return moves.row.numel() * self._head_bytes

    def copy_later(self, layer: Tensor, moves: Moves) -> int:
        """Give blocks slots between steps, for int64 [M] layers; returns the bytes that `start_copies` will copy.

        No slot may be filled twice.
        """
        self._assign(layer, moves, empty=False)
        self._queued.append((layer, moves))
        return moves.row.numel() * self._head_bytes

    def start_copies(self) -> None:
        """Begin to copy blocks to the slots they were given, beside the next step.

        The layers of that step wait in `wait_for_copies`.
        """
        if not self._queued:
            return
        layers, moves = zip(*self._queued, strict=True)
        self._queued.clear()
        layer, order = torch.cat(layers).sort(stable=True)
        each = Moves(*(torch.cat(parts)[order] for parts in zip(*moves, strict=True)))
        ends = torch.tensor(self._parts[1:], device=layer.device)
        cuts = [0, *torch.searchsorted(layer, ends).tolist(), layer.numel()]
        with self._side.after(layer, *each):
            copies = self._copies(layer, each)
            for part, (start, end) in enumerate(pairwise(cuts)):
                if start < end:
                    self._copy(Copies(*(index[start:end] for index in copies)))
                    self._side.mark(part)
        self._side.join_unmarked()

    def wait_for_copies(self, layer: int) -> None:
        """Let the device wait for the copies to a layer's slots, before it reads them."""
        if layer in self._parts:
            self._side.wait(self._parts.index(layer))

    def _assign(self, layer: Tensor, moves: Moves, *, empty: bool) -> None:
        if not empty:
            self._slots.drop(layer, moves.row, moves.head, moves.slot)
        self._slots.fill(layer, moves)

    def _copies(self, layer: Tensor, moves: Moves) -> Copies:
        page = self._pages.table[moves.row, moves.block].long()
        return Copies(layer, page, self._slots.entries(moves), moves.head)

    def _copy(self, copies: Copies) -> None:
        host, pool = self._pages.pool, self._slots.pool
        self._ops.copy_blocks((host.k, host.v), (pool.k, pool.v), copies)
