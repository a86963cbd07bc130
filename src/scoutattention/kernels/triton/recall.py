"""Who gets which slot, on the device: blocks that have just closed, and absent blocks of high interest."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import Copies, RecallRequest, SlotTables, StepRows, WantedRequest
from ..reference_recall import FREE, MARGIN
from .base import Launch, check, padded, tl, triton

FREE_WORTH, TIMES = tl.constexpr(FREE), tl.constexpr(MARGIN)
WIDEST = 2048  # blocks that four warps choose among
CHUNK = 4  # chosen blocks that slots are compared with at a time


@triton.jit
def _give(
    content: tl.tensor,
    slot_of: tl.tensor,
    near_length: tl.tensor,
    near_index: tl.tensor,
    table: tl.tensor,
    page: tl.tensor,
    entry: tl.tensor,
    slot: tl.tensor,
    block: tl.tensor,
    old: tl.tensor,
    S: int,
    size: int,
) -> None:
    """Say that a block is in a slot, and `old`, if not -1, in none; write what is to be copied."""
    if old >= 0:
        tl.store(slot_of + old, S)
    tl.store(content + slot, block)
    tl.store(slot_of + block, slot)
    tl.store(near_length + 1 + slot, size)
    tl.store(page, tl.load(table + block).to(tl.int64))
    tl.store(entry, tl.load(near_index + 1 + slot).to(tl.int64))


@triton.jit
def _worth_of(
    held: tl.tensor,
    interest: tl.tensor,
    own: tl.tensor,
    end: tl.tensor,
    sink: int,
    recent: int,
    S_PAD: tl.constexpr,
) -> tl.tensor:
    """The worth of slots, the first `own` of which are the row's, float32 [S_PAD]."""
    block = tl.maximum(held, 0)
    worth = tl.load(interest + block, mask=held >= 0, other=FREE_WORTH)
    stays = (block < sink) | ((block >= end - recent) & (block < end))
    fillable = (tl.arange(0, S_PAD) < own) & ((held < 0) | (stays == 0))
    return tl.where(fillable, worth, float("inf"))


@triton.jit
def _least_of(worth: tl.tensor, held: tl.tensor, S_PAD: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The least worth, the first slot of that worth, and the block in it."""
    s = tl.arange(0, S_PAD)
    least = tl.min(worth, axis=0)
    slot = tl.min(tl.where(worth == least, s, S_PAD), axis=0)
    return least, slot, tl.sum(tl.where(s == slot, held, 0), axis=0)


@triton.jit
def _recall_kernel(
    content: tl.tensor,
    slot_of: tl.tensor,
    interest: tl.tensor,
    near_length: tl.tensor,
    near_index: tl.tensor,
    quota: tl.tensor,
    rows: tl.tensor,
    closed: tl.tensor,
    fill: tl.tensor,
    due: tl.tensor,
    table: tl.tensor,
    page: tl.tensor,
    entry: tl.tensor,
    count: tl.tensor,
    table_r: int,
    sink: int,
    recent: int,
    size: int,
    B: int,
    R: int,
    H: int,
    S: int,
    NB: int,
    K: int,
    S_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    K_PAD: tl.constexpr,
) -> None:
    """Program (head, sequence, layer): the slots of one KV head. Of equals the first comes first."""
    b = tl.program_id(1)
    row = tl.load(rows + b)
    at = (tl.program_id(2) * R + row) * H + tl.program_id(0)
    page += at * K
    entry += at * K
    k = tl.arange(0, K_PAD)
    tl.store(page + k, tl.full([K_PAD], -1, tl.int64), mask=k < K)
    full = tl.load(fill + b) + 1 == size
    recalls = tl.load(due + tl.program_id(2) * B + b) != 0
    if full | recalls:
        content += at * S
        slot_of += at * NB
        near_length += at * (1 + S)
        near_index += row * (1 + S)
        table += row * table_r
        end = tl.load(closed + b) + full.to(tl.int64)
        s = tl.arange(0, S_PAD)
        n = tl.arange(0, N_PAD)
        held = tl.load(content + s, mask=s < S, other=-1)
        worth = _worth_of(held, interest + at * NB, tl.minimum(S, tl.load(quota + row)), end, sink, recent, S_PAD)
        absent = (n < end) & (tl.load(slot_of + n, mask=n < end, other=0) == S)
        tl.debug_barrier()  # all is read, before anything is written
        if full:
            least, slot, old = _least_of(worth, held, S_PAD)
            if least < float("inf"):
                _give(content, slot_of, near_length, near_index, table, page, entry, slot, end - 1, old, S, size)
                absent = (absent & (n != end - 1)) | (n == old)
                held = tl.where(s == slot, end - 1, held)
        tl.debug_barrier()  # what has just lost its slot may get another
        if recalls:
            worth = tl.where((held >= 0) & (held == end - 1), float("inf"), worth)
            worth = tl.where(worth > 0, worth * TIMES, worth)
            wanted = tl.load(interest + at * NB + n, mask=absent, other=float("-inf"))
            place = tl.full([], 1, tl.int32)
            moved = tl.full([], 0, tl.int64)
            while place < K:
                best = tl.max(wanted, axis=0)
                least, slot, old = _least_of(worth, held, S_PAD)
                if (best > least) & (least < float("inf")):
                    one = tl.min(tl.where(wanted == best, n, N_PAD), axis=0)
                    _give(
                        *(content, slot_of, near_length, near_index, table),
                        *(page + place, entry + place, slot, one, old, S, size),
                    )
                    wanted = tl.where(n == one, float("-inf"), wanted)
                    worth = tl.where(s == slot, float("inf"), worth)
                    place += 1
                    moved += 1
                else:
                    place = K
            tl.atomic_add(count, moved)


@triton.jit
def _wanted_kernel(
    content: tl.tensor,
    slot_of: tl.tensor,
    interest: tl.tensor,
    near_length: tl.tensor,
    near_index: tl.tensor,
    quota: tl.tensor,
    rows: tl.tensor,
    closed: tl.tensor,
    blocks: tl.tensor,
    absent: tl.tensor,
    table: tl.tensor,
    copies: tl.tensor,
    fetched: tl.tensor,
    layer: int,
    table_r: int,
    sink: int,
    recent: int,
    size: int,
    R: int,
    H: int,
    S: int,
    NB: int,
    N: int,
    S_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Program (head, sequence): the slots of one KV head."""
    h = tl.program_id(0)
    b = tl.program_id(1)
    row = tl.load(rows + b)
    at = (tl.full([], layer, tl.int64) * R + row) * H + h
    blocks += (b * H + h) * N
    absent += (b * H + h) * N
    n = tl.arange(0, N_PAD)
    every = tl.num_programs(1) * H * N
    layers = copies + (b * H + h) * N
    page = layers + every
    entry = page + every
    tl.store(layers + n, tl.full([N_PAD], layer, tl.int64), mask=n < N)
    tl.store(page + n, tl.full([N_PAD], -1, tl.int64), mask=n < N)
    tl.store(entry + every + n, tl.zeros([N_PAD], tl.int64) + h, mask=n < N)
    content += at * S
    slot_of += at * NB
    near_length += at * (1 + S)
    near_index += row * (1 + S)
    table += row * table_r
    s = tl.arange(0, S_PAD)
    held = tl.load(content + s, mask=s < S, other=-1)
    own = tl.minimum(S, tl.load(quota + row))
    worth = _worth_of(held, interest + at * NB, own, tl.load(closed + b), sink, recent, S_PAD)
    for start in range(0, N, CHUNK):
        m = start + tl.arange(0, CHUNK)
        gone = tl.load(absent + m, mask=m < N, other=1) != 0
        present = tl.where(gone, -2, tl.load(blocks + m, mask=m < N, other=-2).to(tl.int32))
        stays = tl.max((held.to(tl.int32)[:, None] == present[None, :]).to(tl.int32), axis=1) != 0
        worth = tl.where(stays, float("inf"), worth)
    tl.debug_barrier()  # all is read, before anything is written
    place = tl.full([], 0, tl.int64)
    for one in range(N):
        if tl.load(absent + one) != 0:
            least, slot, old = _least_of(worth, held, S_PAD)
            if least < float("inf"):
                _give(
                    *(content, slot_of, near_length, near_index, table),
                    *(page + place, entry + place, slot, tl.load(blocks + one), old, S, size),
                )
                worth = tl.where(s == slot, float("inf"), worth)
                place += 1
    tl.atomic_add(fetched, place)


def recall_launch(what: RecallRequest) -> Launch:
    """The launch of `recall`."""
    slots, (L, R, H, S) = what.slots, what.slots.content.shape
    blocks, places, B = slots.slot_of.shape[-1], what.copies[0].shape[-1], what.rows.row.numel()
    tensors = (*slots, *what.rows, what.due, what.table, *what.copies, what.recalled)
    arguments = (*tensors, what.table.stride(0), *what.always, what.size, B, R, H, S, blocks, places)
    constants = {"S_PAD": padded(max(1, S)), "N_PAD": padded(blocks), "K_PAD": padded(places)}
    return Launch(_recall_kernel, (H, B, L), arguments, constants, warps=4 if blocks <= WIDEST else 8)


def recall(what: RecallRequest) -> None:
    """Give slots to blocks, in one launch; the twin of `reference_recall.recall`.

    Raises KernelError where a tensor does not fit.
    """
    L, R, H, _ = _check_tables(what.slots, what.table)
    B = what.rows.row.numel()
    for name, numbers in zip(StepRows._fields, what.rows, strict=True):
        check(name, numbers, (B,), torch.int64)
    check("due", what.due, (L, B), torch.bool, rows=2)
    for name, each in zip(("page", "entry"), what.copies, strict=True):
        check(name, each, (L, R, H, what.copies[0].shape[-1]), torch.int64, rows=4)
    check("recalled", what.recalled, (), torch.int64, rows=0)
    recall_launch(what).run()


def wanted_launch(what: WantedRequest, copies: Tensor) -> Launch:
    """The launch of `give_wanted`, which fills `copies`, int64 [4, B, H, N]."""
    slots, (_, R, H, S), (B, _, N) = what.slots, what.slots.content.shape, what.blocks.shape
    tensors = (*slots, what.rows.row, what.rows.closed, what.blocks, what.absent, what.table, copies, what.fetched)
    sizes = (what.layer, what.table.stride(0), *what.always, what.size, R, H, S, slots.slot_of.shape[-1], N)
    constants = {"S_PAD": padded(max(1, S)), "N_PAD": padded(max(1, N)), "CHUNK": CHUNK}
    return Launch(_wanted_kernel, (H, B), (*tensors, *sizes), constants)


def give_wanted(what: WantedRequest) -> Copies:
    """Give slots to absent chosen blocks, in one launch; the twin of `reference_recall.give_wanted`.

    Raises KernelError where a tensor does not fit.
    """
    L, _, H, _ = _check_tables(what.slots, what.table)
    if what.layer not in range(L):
        raise KernelError(f"layer is {what.layer}: it must be one of {L}")
    check("blocks", what.blocks, (None, H, None), torch.int64, rows=3)
    check("absent", what.absent, tuple(what.blocks.shape), torch.bool, rows=3)
    for name, numbers in zip(("row", "closed"), what.rows, strict=False):
        check(name, numbers, (what.blocks.shape[0],), torch.int64)
    check("fetched", what.fetched, (), torch.int64, rows=0)
    copies = what.blocks.new_empty((4, *what.blocks.shape))
    wanted_launch(what, copies).run()
    return Copies(*copies.flatten(1))


def _check_tables(slots: SlotTables, table: Tensor) -> torch.Size:
    """Tables must fit each other; returns the shape of `content`."""
    check("content", slots.content, (None, None, None, None), torch.int64, rows=4)
    L, R, H, S = slots.content.shape
    blocks = slots.slot_of.shape[-1]
    check("slot_of", slots.slot_of, (L, R, H, blocks), torch.int64, rows=4)
    check("interest", slots.interest, (L, R, H, blocks), torch.float32, rows=4)
    check("near_length", slots.near_length, (L, R, H, 1 + S), torch.int32, rows=4)
    check("near_index", slots.near_index, (R, 1 + S), torch.int32, rows=2)
    check("quota", slots.quota, (R,), torch.int64)
    check("table", table, (R, blocks), torch.int32)
    return slots.content.shape
