"""What follows from a choice on the device: what is absent and called for, and how much interest there is in blocks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ....errors import KernelError
from ....types import BlockList, CallFlags, SplitChoice, SplitRequest
from ...requests import CallRequest, InterestRequest
from ..base import TL_DTYPES, Launch, check, padded, tl, triton
from ..calls import PTX, check_flags, raise_flag

WIDE = 1024  # blocks whose interest a program changes at a time
ROW_DTYPES = (torch.bool, torch.bool, torch.float32)


class Calling(NamedTuple):
    """A call that is staged.   to: queries and lists in pinned memory.   pages: int32 [B, H, C], to be filled."""

    call: CallRequest
    to: tuple[Tensor, BlockList]
    flags: CallFlags
    pages: Tensor


@triton.jit(do_not_specialize_on_alignment=["called", "flag_counts"])  # they lie anywhere in the table of flags
def _split_kernel(
    candidates: tl.tensor,
    picks: tl.tensor,
    wishes: tl.tensor,
    closed: tl.tensor,
    slot_of: tl.tensor,
    asked: tl.tensor,
    all_of_it: tl.tensor,
    threshold: tl.tensor,
    blocks: tl.tensor,
    valid: tl.tensor,
    absent: tl.tensor,
    counts: tl.tensor,
    table: tl.tensor,
    pages: tl.tensor,
    index: tl.tensor,
    length: tl.tensor,
    q: tl.tensor,
    q_out: tl.tensor,
    called: tl.tensor,
    flag_counts: tl.tensor,
    interest: tl.tensor,
    all_wishes: tl.tensor,
    noted: tl.tensor,
    slots_b: int,
    slots_h: int,
    wishes_b: int,
    wishes_h: int,
    table_b: int,
    interest_b: int,
    interest_h: int,
    size: int,
    kept: float,
    none: int,
    always: int,
    H: int,
    N: int,
    C: int,
    NB: int,
    N_PAD: tl.constexpr,
    C_PAD: tl.constexpr,
    PICKED: tl.constexpr,
    CALLS: tl.constexpr,
    NOTES: tl.constexpr,
    Q: tl.constexpr,
    Q_PAD: tl.constexpr,
    WIDE: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Program (row): the choice of one sequence and KV head.

    Where it CALLS, it stages its part of the call too, and finds the pages of all candidates. Where it NOTES, it takes
    the wishes for these into their interest.
    """
    row = tl.program_id(0).to(tl.int64)
    b = row // H
    n = tl.arange(0, N_PAD)
    place = row * N + n
    among = tl.load(picks + place, mask=n < N, other=0) if PICKED else n
    block = tl.load(candidates + row * C + among, mask=n < N, other=0)
    wish = tl.load(wishes + b * wishes_b + row % H * wishes_h + n, mask=n < N, other=0.0)
    slot = tl.load(slot_of + b * slots_b + row % H * slots_h + block, mask=n < N, other=0)
    gone = slot == none
    wants = tl.load(asked + b) != 0
    whole = tl.load(all_of_it + b) != 0
    wished = (wish >= tl.load(threshold + b)) | (n < always)
    chosen = (n < N) & (block < tl.load(closed + b)) & wants & ((~gone) | whole | wished)
    tl.store(blocks + place, block, mask=n < N)
    tl.store(valid + place, chosen, mask=n < N)
    tl.store(absent + place, chosen & gone, mask=n < N)
    tl.store(counts + row, tl.sum(chosen.to(tl.int64), axis=0))
    tl.store(counts + tl.num_programs(0) + row, tl.sum((chosen & gone).to(tl.int64), axis=0))
    if CALLS:
        c = tl.arange(0, C_PAD)
        candidate = tl.load(candidates + row * C + c, mask=c < C, other=0)
        tl.store(pages + row * C + c, tl.load(table + b * table_b + candidate, mask=c < C, other=0), mask=c < C)
        tl.store(index + place, tl.load(table + b * table_b + block, mask=n < N, other=0), mask=n < N)
        tl.store(length + place, tl.where(chosen & gone, size, 0), mask=n < N)
        i = tl.arange(0, Q_PAD)
        tl.store(q_out + row * Q + i, tl.load(q + row * Q + i, mask=i < Q, other=0.0).to(tl.float32), mask=i < Q)
        raise_flag(called, flag_counts, PTX)
    if NOTES:
        here = interest + b * interest_b + row % H * interest_h
        note(here, candidates + row * C, all_wishes + row * C, tl.load(noted + b) != 0, kept, C, NB, C_PAD, WIDE)


@triton.jit
def _interest_kernel(
    interest: tl.tensor,
    blocks: tl.tensor,
    wishes: tl.tensor,
    rows: tl.tensor,
    kept: float,
    interest_b: int,
    interest_h: int,
    H: int,
    N: int,
    NB: int,
    N_PAD: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Program (row): the interest in all blocks of one sequence and KV head, and the wishes for N of them."""
    row = tl.program_id(0).to(tl.int64)
    here = interest + row // H * interest_b + row % H * interest_h
    note(here, blocks + row * N, wishes + row * N, tl.load(rows + row // H) != 0, kept, N, NB, N_PAD, WIDE)


@triton.jit
def note(
    interest: tl.tensor,
    blocks: tl.tensor,
    wishes: tl.tensor,
    asked: tl.tensor,
    kept: float,
    N: int,
    NB: int,
    N_PAD: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Take the wishes for N blocks into the interest of one KV head, which is in NB blocks."""
    for start in range(0, NB, WIDE):
        block = start + tl.arange(0, WIDE)
        changed = block < tl.where(asked, NB, 0)
        tl.store(interest + block, kept * tl.load(interest + block, mask=changed, other=0.0), mask=changed)
    tl.debug_barrier()  # other threads of the program wrote what is read now
    n = tl.arange(0, N_PAD)
    wished = n < tl.where(asked, N, 0)
    at = interest + tl.load(blocks + n, mask=wished, other=0)
    wish = tl.load(wishes + n, mask=wished, other=0.0)
    tl.store(at, tl.load(at, mask=wished, other=0.0) + (1.0 - kept) * wish, mask=wished)


def split_launch(
    what: SplitRequest,
    result: SplitChoice,
    calling: Calling | None = None,
    noting: InterestRequest | None = None,
    *,
    ptx: bool = PTX,
) -> Launch:
    """The launch of `split_choice`, which fills `result`, and of what follows from it."""
    candidates, picks, wishes, closed, (slot_of, none), rows, always, counts = what
    (B, H, N), C = wishes.shape, candidates.shape[2]
    one = candidates
    call: tuple[Tensor, ...] = (one,) * 8
    note_them: tuple[Tensor, ...] = (one,) * 3
    numbers: tuple[float, ...] = (0, 0, 0, 0, 0.0)
    Q, blocks = 0, 0
    if calling is not None:
        (q, table, size), (staged, listed), flags, pages = calling
        call = (table, pages, *listed, q, staged, flags.called, flags.counts)
        numbers, Q = (table.stride(0), 0, 0, size, 0.0), q.shape[2] * q.shape[3]
    if noting is not None:
        interest, all_wishes, noted, kept = noting
        note_them, blocks = (interest, all_wishes, noted), interest.shape[2]
        numbers = (numbers[0], *interest.stride()[:2], numbers[3], kept)
    tensors = (candidates, one if picks is None else picks, wishes, closed, slot_of, *rows, *result, counts)
    strides = (*slot_of.stride()[:2], *wishes.stride()[:2])
    arguments = (*tensors, *call, *note_them, *strides, *numbers, none, always, H, N, C, blocks)
    sizes = {"N_PAD": padded(N), "C_PAD": padded(C), "Q": Q, "Q_PAD": padded(max(1, Q)), "WIDE": WIDE}
    parts = {"PICKED": picks is not None, "CALLS": calling is not None, "NOTES": noting is not None}
    warps = 1 if calling is not None else 4  # one thread alone may raise a flag
    return Launch(_split_kernel, (B * H,), arguments, {**sizes, **parts, "PTX": ptx}, warps)


def split_choice(what: SplitRequest) -> SplitChoice:
    """The chosen blocks, those to attend to, and the absent ones, in one launch; the twin of `reference.split_choice`.

    Raises KernelError where a tensor does not fit.
    """
    result = _room(what)
    split_launch(what, result).run()
    return result


def split_and_call(
    what: SplitRequest, call: CallRequest, to: tuple[Tensor, BlockList], flags: CallFlags
) -> tuple[SplitChoice, Tensor]:
    """`split_choice`, and a call for what is absent, in one launch; the twin of `PlainOps.split_and_call`.

    Raises KernelError where a tensor does not fit.
    """
    result, shape = _room(what), tuple(what.wishes.shape)
    check("q", call.q, (*shape[:2], None, None), *TL_DTYPES, rows=4)
    check("table", call.table, (shape[0], None), torch.int32)
    check("to.q", to[0], tuple(call.q.shape), torch.float32, rows=4)
    check("to.index", to[1].index, shape, torch.int32, rows=3)
    check("to.length", to[1].length, shape, torch.int32, rows=3)
    check_flags(flags)
    pages = call.table.new_empty(what.candidates.shape)
    split_launch(what, result, Calling(call, to, flags, pages)).run()
    return result, pages


def split_and_note(what: SplitRequest, noting: InterestRequest) -> SplitChoice:
    """`split_choice`, and `update_interest` by the candidates, in one launch; the twin of `PlainOps.split_and_note`.

    Raises KernelError where a tensor does not fit.
    """
    result = _room(what)
    B, H, _ = what.wishes.shape
    check("wishes", noting.wishes, tuple(what.candidates.shape), torch.float32, rows=3)
    check("interest", noting.interest, (B, H, None), torch.float32)
    check("rows", noting.rows, (B,), torch.bool)
    split_launch(what, result, noting=noting).run()
    return result


def _room(what: SplitRequest) -> SplitChoice:
    """Memory for a choice, if all tensors fit."""
    check("wishes", what.wishes, (None, None, None), torch.float32)
    B, H, N = what.wishes.shape
    check("candidates", what.candidates, (B, H, None), torch.int64, rows=3)
    if what.picks is not None:
        check("picks", what.picks, (B, H, N), torch.int64, rows=3)
    elif what.candidates.shape[2] < N:
        raise KernelError(f"{N} blocks are chosen of {what.candidates.shape[2]} candidates: there must be as many")
    check("closed", what.closed, (B,), torch.int64)
    check("slot_of", what.slots[0], (B, H, None), torch.int64)
    for name, row, dtype in zip(("asked", "all_of_it", "threshold"), what.rows, ROW_DTYPES, strict=True):
        check(name, row, (B,), dtype)
    check("counts", what.counts, (2, B, H), torch.int64, rows=3)
    return SplitChoice(what.candidates.new_empty(B, H, N), *what.rows[0].new_empty(2, B, H, N))


def interest_launch(interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> Launch:
    """The launch of `update_interest`."""
    B, H, N = wishes.shape
    arguments = (interest, blocks, wishes, rows, kept, *interest.stride()[:2], H, N, interest.shape[2])
    return Launch(_interest_kernel, (B * H,), arguments, {"N_PAD": padded(N), "WIDE": WIDE})


def update_interest(interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
    """A running mean of wishes for blocks [B, H, N] in `interest` [B, H, NB]; twin of `reference.update_interest`.

    Raises KernelError where a tensor does not fit. Blocks are not looked at.
    """
    check("wishes", wishes, (None, None, None), torch.float32, rows=3)
    B, H, N = wishes.shape
    check("blocks", blocks, (B, H, N), torch.int64, rows=3)
    check("interest", interest, (B, H, None), torch.float32)
    check("rows", rows, (B,), torch.bool)
    interest_launch(interest, blocks, wishes, rows, kept).run()
