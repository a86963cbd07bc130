"""Keys and values on their way: a token into its open block, blocks from the host's pages into slots."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import Pools
from .base import TL_DTYPES, Launch, check, check_alike, padded, tl, triton

CHUNK = 4096  # elements that a program copies at a time


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
def _copy_kernel(
    from_k: tl.tensor,
    from_v: tl.tensor,
    to_k: tl.tensor,
    to_v: tl.tensor,
    page: tl.tensor,
    entry: tl.tensor,
    head: tl.tensor,
    from_s: int,
    from_h: int,
    to_s: int,
    to_h: int,
    moves: int,
    SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Program (n): every num_programs-th move, from the n-th on."""
    for move in range(tl.program_id(0), moves, tl.num_programs(0)):
        h = tl.load(head + move)
        source = tl.load(page + move) * from_s + h * from_h
        target = tl.load(entry + move) * to_s + h * to_h
        for start in range(0, SIZE, CHUNK):
            i = start + tl.arange(0, CHUNK)
            keys = tl.load(from_k + source + i, mask=i < SIZE)
            values = tl.load(from_v + source + i, mask=i < SIZE)
            tl.store(to_k + target + i, keys, mask=i < SIZE)
            tl.store(to_v + target + i, values, mask=i < SIZE)


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


def copy_launch(source: Pools, target: Pools, page: Tensor, entry: Tensor, head: Tensor, programs: int) -> Launch:
    """The launch of `copy_blocks`."""
    size = source[0].shape[2] * source[0].shape[3]
    strides = (*source[0].stride()[:2], *target[0].stride()[:2])
    arguments = (*source, *target, page, entry, head, *strides, page.numel())
    constants = {"SIZE": size, "CHUNK": min(CHUNK, padded(size))}
    return Launch(_copy_kernel, (min(programs, page.numel()),), arguments, constants)


def copy_blocks(source: Pools, target: Pools, page: Tensor, entry: Tensor, head: Tensor, *, programs: int = 32) -> None:
    """Copy single heads of blocks between pools in one launch; the twin of `plain.copy_blocks`.

    source: on the device, or pinned host memory, which the device reads in place.   target: on the device.
    page, entry, head: int64 [M] on the device.   programs: how many run at once; few leave the rest of the device to
    attention, and a link to the host is full with few.   Raises KernelError where a tensor does not fit.
    """
    dtype = _check_pools("source", source)
    _check_pools("target", target)
    check("target[0]", target[0], (None, *source[0].shape[1:]), dtype, rows=2)
    for name, tensor in (("page", page), ("entry", entry), ("head", head)):
        check(name, tensor, (page.numel(),), torch.int64)
    if target[0].is_cuda and not (source[0].is_cuda or (source[0].is_pinned() and source[1].is_pinned())):
        raise KernelError("source is in pageable host memory, which the device cannot read: pin the pool")
    copy_launch(source, target, page, entry, head, programs).run()


def _check_pools(name: str, pools: Pools) -> torch.dtype:
    """Keys and values must be laid out alike; returns their dtype."""
    check(f"{name}[0]", pools[0], (None, None, None, None), *TL_DTYPES, rows=2)
    check_alike(name, *pools)
    return pools[0].dtype
