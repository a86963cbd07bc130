"""Where blocks are in a pool, as the kernels of attention and the CPU read it; and queries on their way to the CPU."""

import torch
from torch import Tensor

from ...types import BlockList, CallFlags, PageSelection
from .base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton
from .calls import PTX, check_flags, raise_flag

CHUNK = 256  # blocks of a program


@triton.jit(do_not_specialize_on_alignment=["called", "counts"])  # they lie anywhere in the table of flags
def _list_kernel(
    table: tl.tensor,
    blocks: tl.tensor,
    wanted: tl.tensor,
    index: tl.tensor,
    length: tl.tensor,
    q: tl.tensor,
    q_out: tl.tensor,
    called: tl.tensor,
    counts: tl.tensor,
    table_b: int,
    H: int,
    N: int,
    size: int,
    CHUNK: tl.constexpr,
    Q: tl.constexpr,
    Q_PAD: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Program (row, part): CHUNK blocks of one sequence and KV head; each also takes its Q query numbers.

    Where there are any, the last program calls the CPU.
    """
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    block = tl.load(blocks + row * N + n, mask=n < N, other=0)
    page = tl.load(table + row // H * table_b + block, mask=n < N, other=0)
    kept = tl.load(wanted + row * N + n, mask=n < N, other=0) != 0
    tl.store(index + row * N + n, page, mask=n < N)
    tl.store(length + row * N + n, tl.where(kept, size, 0), mask=n < N)
    if Q > 0:
        i = tl.arange(0, Q_PAD)
        tl.store(q_out + row * Q + i, tl.load(q + row * Q + i, mask=i < Q, other=0.0).to(tl.float32), mask=i < Q)
        raise_flag(called, counts, PTX)


def list_launch(what: PageSelection, to: BlockList) -> Launch:
    """The launch of `page_list`, which fills `to`."""
    return _launch(what, to, (to.length, to.length), (to.length, to.length), 0, ptx=PTX)


def stage_launch(
    q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags, *, ptx: bool = PTX
) -> Launch:
    """The launch of `stage_call`."""
    return _launch(what, to[1], (q, to[0]), (flags.called, flags.counts), q.shape[2] * q.shape[3], ptx=ptx)


def _launch(
    what: PageSelection,
    to: BlockList,
    queries: tuple[Tensor, Tensor],
    flags: tuple[Tensor, Tensor],
    size: int,
    *,
    ptx: bool,
) -> Launch:
    """Of `size` query numbers a KV head."""
    B, H, N = what.blocks.shape
    tensors = (*what[:3], *to, *queries, *flags)
    constants = {"CHUNK": min(CHUNK, padded(N)), "Q": size, "Q_PAD": padded(max(1, size)), "PTX": ptx}
    parts = max(1, ceil_div(N, CHUNK))
    return Launch(_list_kernel, (B * H, parts), (*tensors, what.table.stride(0), H, N, what.size), constants, warps=1)


def page_list(what: PageSelection) -> BlockList:
    """Where blocks are; the twin of `plain.page_list`.   Raises KernelError where a tensor does not fit."""
    what = _checked(what)
    index = what.table.new_empty(what.blocks.shape)
    pages = BlockList(index, index.new_empty(index.shape))
    list_launch(what, pages).run()
    return pages


def stage_call(q: Tensor, what: PageSelection, to: tuple[Tensor, BlockList], flags: CallFlags) -> None:
    """Write queries, and where blocks are, to pinned memory, and call; one launch, the twin of `plain.stage_call`.

    q: [B, H, G, D], contiguous.   Raises KernelError where a tensor does not fit.
    """
    what = _checked(what)
    shape = tuple(what.blocks.shape)
    check("q", q, (*shape[:2], None, None), *TL_DTYPES, rows=4)
    check("to.q", to[0], tuple(q.shape), torch.float32, rows=4)
    check("to.index", to[1].index, shape, torch.int32, rows=3)
    check("to.length", to[1].length, shape, torch.int32, rows=3)
    check_flags(flags)
    stage_launch(q, what, to, flags).run()


def _checked(what: PageSelection) -> PageSelection:
    """A listing whose blocks lie together; every block of a sequence is an expanded view."""
    shape = tuple(what.blocks.shape)
    check("table", what.table, (shape[0], None), torch.int32)
    check("blocks", what.blocks, (None, None, None), torch.int64, rows=0)
    check("wanted", what.wanted, shape, torch.bool, rows=0)
    return what._replace(blocks=what.blocks.contiguous(), wanted=what.wanted.contiguous())
