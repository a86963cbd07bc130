"""Keys and values on their way: a token into its open block, blocks from the host's pages into slots."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import CloseRequest, Copies, Pools, StepRows
from .base import TL_DTYPES, Launch, check, check_alike, padded, tl, triton

CHUNK = 4096  # elements that a program copies at a time
LISTED = 64  # places of a list that a program looks at at a time


@triton.jit
def _append_kernel(
    k: tl.tensor,
    v: tl.tensor,
    pool_k: tl.tensor,
    pool_v: tl.tensor,
    entry: tl.tensor,
    fill: tl.tensor,
    k_b: int,
    k_h: int,
    v_b: int,
    v_h: int,
    pool_s: int,
    pool_h: int,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
) -> None:
    """Program (sequence, head)."""
    b = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, D_PAD)
    place = tl.load(entry + b) * pool_s + h * pool_h + tl.load(fill + b) * D + d
    tl.store(pool_k + place, tl.load(k + b * k_b + h * k_h + d, mask=d < D), mask=d < D)
    tl.store(pool_v + place, tl.load(v + b * v_b + h * v_h + d, mask=d < D), mask=d < D)


@triton.jit
def _copy_block(
    from_k: tl.tensor, from_v: tl.tensor, to_k: tl.tensor, to_v: tl.tensor, SIZE: tl.constexpr, CHUNK: tl.constexpr
) -> None:
    """Copy the keys and the values of one head of a block."""
    for start in range(0, SIZE, CHUNK):
        i = start + tl.arange(0, CHUNK)
        keys = tl.load(from_k + i, mask=i < SIZE)
        values = tl.load(from_v + i, mask=i < SIZE)
        tl.store(to_k + i, keys, mask=i < SIZE)
        tl.store(to_v + i, values, mask=i < SIZE)


@triton.jit
def _copy_kernel(
    from_k: tl.tensor,
    from_v: tl.tensor,
    to_k: tl.tensor,
    to_v: tl.tensor,
    layer: tl.tensor,
    page: tl.tensor,
    entry: tl.tensor,
    head: tl.tensor,
    from_l: int,
    from_s: int,
    from_h: int,
    to_l: int,
    to_s: int,
    to_h: int,
    places: int,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    LISTED: tl.constexpr,
) -> None:
    """Program (n): every num_programs-th place of the lists, from the n-th on; most may be holes.

    from_l, to_l: entries from layer to layer, whose elements may be more than an argument can count.
    """
    apart = tl.num_programs(0)
    for start in range(tl.program_id(0), places, LISTED * apart):
        at = start + apart * tl.arange(0, LISTED)
        if tl.max(tl.load(page + at, mask=at < places, other=-1), axis=0) >= 0:
            for place in range(start, tl.minimum(places, start + LISTED * apart), apart):
                source = tl.load(page + place)
                if source >= 0:
                    l = tl.load(layer + place)  # noqa: E741
                    h = tl.load(head + place)
                    source = (l * from_l + source) * from_s + h * from_h
                    target = (l * to_l + tl.load(entry + place)) * to_s + h * to_h
                    _copy_block(from_k + source, from_v + source, to_k + target, to_v + target, SIZE, CHUNK)


@triton.jit
def _close_kernel(
    from_k: tl.tensor,
    from_v: tl.tensor,
    to_k: tl.tensor,
    to_v: tl.tensor,
    row: tl.tensor,
    closed: tl.tensor,
    fill: tl.tensor,
    entry: tl.tensor,
    table: tl.tensor,
    from_l: int,
    from_s: int,
    from_h: int,
    to_l: int,
    to_s: int,
    to_h: int,
    table_r: int,
    P: int,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Program (head, layer, sequence)."""
    h = tl.program_id(0).to(tl.int64)
    l = tl.program_id(1).to(tl.int64)  # noqa: E741
    b = tl.program_id(2)
    if tl.load(fill + b) + 1 == P:
        page = tl.load(table + tl.load(row + b) * table_r + tl.load(closed + b)).to(tl.int64)
        source = (l * from_l + tl.load(entry + b)) * from_s + h * from_h
        target = (l * to_l + page) * to_s + h * to_h
        _copy_block(from_k + source, from_v + source, to_k + target, to_v + target, SIZE, CHUNK)


def append_launch(k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> Launch:
    """The launch of `append`."""
    B, H, D = k.shape
    arguments = (k, v, *pools, entry, fill, *k.stride()[:2], *v.stride()[:2], *pools[0].stride()[:2])
    return Launch(_append_kernel, (B, H), arguments, {"D": D, "D_PAD": padded(D)}, warps=1)


def append(k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
    """Write one token's keys and values of every sequence in one launch; the twin of `plain.append`.

    k, v: [B, H, D] in the pools' dtype.   entry, fill: int64 [B]. No two sequences may have one place.
    Raises KernelError where a tensor does not fit.
    """
    B, H, D = k.shape
    dtype = _check_pools("pools", pools)
    check("pools[0]", pools[0], (None, H, None, D), dtype, rows=2)
    check("k", k, (None, None, None), dtype)
    check("v", v, (B, H, D), dtype)
    check("entry", entry, (B,), torch.int64)
    check("fill", fill, (B,), torch.int64)
    append_launch(k, v, pools, entry, fill).run()


def copy_launch(source: Pools, target: Pools, copies: Copies, programs: int) -> Launch:
    """The launch of `copy_blocks`."""
    places = copies.page.numel()
    arguments = (*source, *target, *copies, *_strides(source), *_strides(target), places)
    return Launch(_copy_kernel, (min(programs, places),), arguments, {**_sizes(source), "LISTED": LISTED})


def copy_blocks(source: Pools, target: Pools, copies: Copies, *, programs: int = 32) -> None:
    """Copy single heads of blocks between pools [L, S, H, P, D] in one launch; the twin of `PlainOps.copy_blocks`.

    source: on the device, or pinned host memory, which the device reads in place.   target: on the device.
    copies: on the device.   programs: how many run at once; few leave the rest of the device to attention, and a link
    to the host is full with few.   Raises KernelError where a tensor does not fit.
    """
    _check_pair(source, target)
    for name, tensor in zip(Copies._fields, copies, strict=True):
        check(name, tensor, (copies.page.numel(),), torch.int64)
    if target[0].is_cuda and not (source[0].is_cuda or (source[0].is_pinned() and source[1].is_pinned())):
        raise KernelError("source is in pageable host memory, which the device cannot read: pin the pool")
    copy_launch(source, target, copies, programs).run()


def close_launch(source: Pools, target: Pools, what: CloseRequest) -> Launch:
    """The launch of `close_blocks`."""
    L, _, H, P, _ = source[0].shape
    strides = (*_strides(source), *_strides(target), what.table.stride(0))
    arguments = (*source, *target, *what.rows, what.entry, what.table, *strides, P)
    return Launch(_close_kernel, (H, L, what.entry.numel()), arguments, _sizes(source))


def close_blocks(source: Pools, target: Pools, what: CloseRequest) -> None:
    """Copy open blocks that are full to their pages in one launch; the twin of `PlainOps.close_blocks`.

    source, target: [L, S, H, P, D], the target in pinned host memory perhaps.
    Raises KernelError where a tensor does not fit.
    """
    _check_pair(source, target)
    B = what.entry.numel()
    for name, tensor in zip((*StepRows._fields, "entry"), (*what.rows, what.entry), strict=True):
        check(name, tensor, (B,), torch.int64)
    check("table", what.table, (None, None), torch.int32)
    close_launch(source, target, what).run()


def _strides(pools: Pools) -> tuple[int, int, int]:
    """From layer to layer, in entries; from entry to entry and from head to head, in elements."""
    layer, entry, head = pools[0].stride()[:3]
    return layer // entry, entry, head


def _sizes(pools: Pools) -> dict[str, int]:
    size = pools[0].shape[3] * pools[0].shape[4]
    return {"SIZE": size, "CHUNK": min(CHUNK, padded(size))}


def _check_pair(source: Pools, target: Pools) -> None:
    """Both must have blocks of one size and dtype, and as many layers and heads."""
    dtype = _check_pools("source", source, axes=5)
    _check_pools("target", target, axes=5)
    L, _, *block = source[0].shape
    check("target[0]", target[0], (L, None, *block), dtype, rows=2)


def _check_pools(name: str, pools: Pools, axes: int = 4) -> torch.dtype:
    """Keys and values must be laid out alike; returns their dtype."""
    check(f"{name}[0]", pools[0], (None,) * axes, *TL_DTYPES, rows=2)
    check_alike(name, *pools)
    return pools[0].dtype
