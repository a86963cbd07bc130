"""A decode step's attention in plain PyTorch, on any device: the definitions of every operation."""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from ..runtime.packed import Blocks
from ..types import (
    BlockList,
    CallFlags,
    CloseRequest,
    Copies,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Pools,
    RecallRequest,
    ShareCounts,
    ShareRequest,
    SplitChoice,
    SplitRequest,
    TopBlocks,
    WantedRequest,
)
from . import reference, reference_factors, reference_prompt, reference_recall
from .ops import Ops
from .reference_factors import Factors
from .requests import CallRequest, CodesRequest, InterestRequest, JoinRequest, NearRequest, PartialRequest, TakeRequest


class PlainOps(Ops):
    """The operations as `reference` and the functions of this file define them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.deferred = device.type != "cpu"

    @override
    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return reference_prompt.causal(q, k, v, scale)

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        here = k.device  # blocks that the device does not hold are attended to where they are
        lists = BlockList(blocks.index.to(here), blocks.length.to(here))
        out, lse, _ = reference.partial(q.to(here), k, v, lists, scale)
        return Partial(out.to(q.device), lse.to(q.device))

    @override
    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        append(k, v, pools, entry, fill)

    @override
    def page_list(self, what: PageSelection) -> BlockList:
        return page_list(what)

    @override
    def near_list(self, what: NearRequest) -> BlockList:
        return near_list(what, page_list)

    @override
    def stage_call(self, q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags) -> None:
        stage_call(q, what, to, flags)

    @override
    def take_call(self, result: Tensor, flags: CallFlags, rows: int, timeout_s: float) -> Tensor:
        return take_call(result, flags, rows, timeout_s)

    @override
    def partial_and_take(self, near: PartialRequest, call: TakeRequest) -> tuple[Partial, Tensor]:
        return self.partial(*near), self.take_call(*call)

    @override
    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        for new, pool in zip(blocks, target, strict=True):
            pool[pages.to(pool.device)] = new.to(pool.device)

    @override
    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        (there,) = torch.nonzero(copies.page >= 0, as_tuple=True)
        if not there.numel():
            return
        layer, page, entry, head = (each[there] for each in copies)
        for pages, pool in zip(source, target, strict=True):
            blocks = pages[tuple(index.to(pages.device) for index in (layer, page, head))]
            pool[layer, entry, head] = blocks.to(pool.dtype).to(pool.device)

    @override
    def close_blocks(self, source: Pools, target: tuple[Blocks, Blocks], what: CloseRequest) -> None:
        row, closed, fill = what.rows
        (full,) = torch.nonzero(fill + 1 == source[0].shape[3], as_tuple=True)
        page = what.table[row[full], closed[full]].long()
        for open_blocks, pool in zip(source, target, strict=True):
            pool[:, page.to(pool.device)] = open_blocks[:, what.entry[full]].to(pool.device)

    @override
    def write_min_max(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        reference.write_min_max(k, digests, pages)

    @override
    def write_key_codes(self, what: CodesRequest) -> None:
        reference.write_key_codes(what)

    @override
    def main_dims(self, moments: Tensor) -> Tensor:
        return reference_factors.main_dims(moments)

    @override
    def factors(self, matrices: Tensor) -> Factors:
        return reference_factors.factors(matrices)

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        return reference.project(q, basis)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        return reference.score_min_max(q * scale, digests, _closed_pages(pages, closed))

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        return reference.score_key_codes(q * scale, codes, bounds, _closed_pages(pages, closed))

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return reference.top_blocks(scores, closed, count, always, largest=largest)

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return reference.split_choice(what)

    @override
    def split_and_call(
        self, what: SplitRequest, call: CallRequest, to: tuple[Tensor, BlockList], flags: CallFlags
    ) -> tuple[SplitChoice, Tensor]:
        choice = self.split_choice(what)
        self.stage_call(call.q, PageSelection(call.table, choice.blocks, choice.absent, call.size), to, flags)
        return choice, page_list(PageSelection(call.table, what.candidates, what.candidates >= 0, 0)).index

    @override
    def split_and_note(self, what: SplitRequest, noting: InterestRequest) -> SplitChoice:
        interest, wishes, rows, kept = noting
        self.update_interest(interest, what.candidates, wishes, rows, kept)
        return self.split_choice(what)

    @override
    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        reference.update_interest(interest, blocks, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return reference.find_late(what)

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return reference.scout_error(far, near, q, q_hat)

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return reference.corrected(far, q, q_hat, scale)

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        return reference.merge(a if without is None else left_out(a, without), b)

    @override
    def join(self, what: JoinRequest) -> Partial:
        return join(self, what)

    @override
    def count_shares(self, what: ShareCounts) -> Tensor:
        return reference_recall.count_shares(what)

    @override
    def follow_shares(self, what: ShareRequest) -> Tensor:
        return reference_recall.follow_shares(what)

    @override
    def recall(self, what: RecallRequest) -> None:
        reference_recall.recall(what)

    @override
    def give_wanted(self, what: WantedRequest) -> Copies:
        return reference_recall.give_wanted(what)


def _closed_pages(pages: Tensor, closed: Tensor) -> Tensor:
    """Pages [B, H, N] with any valid page in place of those that are not to be looked at."""
    return pages.masked_fill(torch.arange(pages.shape[-1], device=pages.device) >= closed[:, None, None], 0)


def append(k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
    """Write one token's keys and values of every sequence into one layer of a pool.

    k, v: [B, H, D].   entry, fill: int64 [B], the open block and the position in it.
    """
    for pool, new in zip(pools, (k, v), strict=True):
        pool.transpose(1, 2)[entry, fill] = new


def page_list(what: PageSelection) -> BlockList:
    """Where blocks are, int32 [B, H, N] both."""
    table = what.table[:, None].expand(-1, what.blocks.shape[1], -1)
    return BlockList(table.gather(-1, what.blocks), what.wanted.int() * what.size)


def near_list(what: NearRequest, list_pages: Callable[[PageSelection], BlockList]) -> BlockList:
    """The open block of each sequence, then its chosen blocks, int32 [B, H, 1 + N]; `list_pages`: see `page_list`."""
    blocks = what.candidates[..., : what.chosen] if what.picks is None else what.candidates.gather(-1, what.picks)
    wanted = blocks < what.closed[:, None, None]
    entry, last = what.opened
    opened = (each[:, None, None].expand(-1, blocks.shape[1], 1) for each in (entry.int(), (last + 1).int()))
    chosen = list_pages(PageSelection(what.table, blocks, wanted, what.size))
    return BlockList(*(torch.cat(parts, -1) for parts in zip(opened, chosen, strict=True)))


def stage_call(q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags) -> None:
    """Write queries q [B, H, G, D], and where blocks are, to the host's memory: float32 and int32, contiguous.

    Then a new call is made.
    """
    for there, here in zip((to[0], *to[1]), (q, *page_list(what)), strict=True):
        there.copy_(here, non_blocking=True)
    flags.counts[1:2].add_(1)
    flags.called.copy_(flags.counts[1:2], non_blocking=True)


def take_call(result: Tensor, flags: CallFlags, rows: int, timeout_s: float) -> Tensor:
    """The result of a call, when the CPU has answered; that of no keys where it is late. The host waits for it.

    result: float32 [n] in host memory, of which the last `rows` are lse.   flags: see `CallFlags`.
    """
    number, given_up = int(flags.counts[1]), bool(flags.gave_up)
    begin = time.monotonic()
    while (late := int(flags.answered) != number) and time.monotonic() - begin < timeout_s and not given_up:
        time.sleep(0)
    flags.waited.fill_(round((time.monotonic() - begin) * 1e9))
    if not late:
        return result.to(flags.counts.device, copy=True)
    if not given_up:
        flags.late.fill_(flags.line)
        flags.gave_up.fill_(1)
    nothing = torch.zeros(result.shape, device=flags.counts.device)
    nothing[result.numel() - rows :] = -torch.inf
    return nothing


def left_out(partial: Partial, heads: Tensor) -> Partial:
    """A partial of no keys in some KV heads, bool [B, H], whatever it is there."""
    out = partial.out.masked_fill(heads[..., None, None], 0)
    return Partial(out, partial.lse.masked_fill(heads[..., None], -torch.inf))


def on_device(partial: Partial, device: torch.device) -> Partial:
    """A partial on a device: what the CPU has computed for a GPU may still be in pinned host memory."""
    out, lse, mean_key = partial
    mean_key = None if mean_key is None else mean_key.to(device, non_blocking=True)
    return Partial(out.to(device, non_blocking=True), lse.to(device, non_blocking=True), mean_key)


def join(ops: Ops, what: JoinRequest) -> Partial:
    """What a layer has attended to near, far, and late, as `JoinRequest` says; fills the guard's counts.

    Returns out in the dtype of q, and lse.
    """
    q, near, far, scout, scale, guard = what
    far = on_device(far, q.device)
    if far.mean_key is not None:
        assert scout is not None
        far = ops.corrected(far, q, scout, scale)
    if guard is not None:
        error = q.new_zeros(q.shape[:2]).float() if scout is None else ops.scout_error(far, near, q, scout)
        finding = ops.find_late(GuardRequest(guard.wanted, guard.scouted, error, guard.rows, guard.limit, guard.counts))
        if ops.deferred or guard.counts.any():
            (k, v), blocks = guard.pool, guard.wanted[0]
            pages = ops.page_list(PageSelection(guard.table, blocks, finding.late, k.shape[2]))
            far = ops.merge(far, ops.partial(q, k, v, pages, scale), without=finding.spoilt)
    merged = ops.merge(near, far)
    return Partial(merged.out.to(q.dtype), merged.lse)
