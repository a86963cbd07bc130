"""Packed pages on a GPU: how kernels read them, and how blocks are unpacked on their way to slots.

Each program has one block of one KV head at a time. Results are those of `runtime.packed`, bit for bit: products of a
code and a step are exact in float32.
"""

import torch
from torch import Tensor

from ....errors import KernelError
from ....runtime.packed import Packed
from ....types import Pools
from ..base import TL_DTYPES, Launch, ceil_div, check, check_alike, padded, tl, triton
from ..move_blocks import LISTED

LEAST = 16
"""Extent of a tile at least, of both its axes: room for a word in either."""


@triton.jit
def shifts(BITS: tl.constexpr) -> tl.tensor:
    """The first bit of each code of a word, see `runtime.packed.to_words`."""
    code = tl.arange(0, 32 // BITS)
    return 8 * (code % 4) + BITS * (code // 4)


@triton.jit
def load_keys(
    words: tl.tensor, rows: tl.tensor, P: tl.constexpr, D: tl.constexpr, P_PAD: tl.constexpr, D_PAD: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes of a block's keys, int32 [P_PAD, D_PAD]; 0 from row `rows` on, whose words are not read."""
    COUNT: tl.constexpr = 32 // BITS
    p = tl.arange(0, P_PAD)
    w = tl.arange(0, D_PAD // COUNT)
    there = (p < rows)[:, None] & (w < (D + COUNT - 1) // COUNT)[None, :]
    word = tl.load(words + w[None, :] * P + p[:, None], mask=there, other=0)
    codes = (word[:, :, None] >> shifts(BITS)[None, None, :]) & ((1 << BITS) - 1)
    return tl.reshape(codes, (P_PAD, D_PAD))


@triton.jit
def load_values(
    words: tl.tensor, rows: tl.tensor, D: tl.constexpr, P_PAD: tl.constexpr, D_PAD: tl.constexpr, BITS: tl.constexpr
) -> tl.tensor:
    """Codes of a block's values, int32 [P_PAD, D_PAD]; words of rows from `rows` on alone are not read."""
    COUNT: tl.constexpr = 32 // BITS
    w = tl.arange(0, P_PAD // COUNT)
    d = tl.arange(0, D_PAD)
    there = (w * COUNT < rows)[:, None] & (d < D)[None, :]
    word = tl.load(words + w[:, None] * D + d[None, :], mask=there, other=0)
    codes = (word[:, None, :] >> shifts(BITS)[None, :, None]) & ((1 << BITS) - 1)
    return tl.reshape(codes, (P_PAD, D_PAD))


@triton.jit
def load_bounds(bounds: tl.tensor, D: tl.constexpr, D_PAD: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The least number of each channel of a block, and its step: float32 [D_PAD] each."""
    d = tl.arange(0, D_PAD)
    least = tl.load(bounds + d, mask=d < D, other=0.0).to(tl.float32)
    return least, tl.load(bounds + D + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def _uncoded(codes: tl.tensor, least: tl.tensor, step: tl.tensor, MOST: tl.constexpr) -> tl.tensor:
    """What codes stand for, float32 [P_PAD, D_PAD], -MOST to MOST.   By halves, since products may overflow."""
    rows = 2 * ((least * 0.5)[None, :] + codes.to(tl.float32) * (step * 0.5)[None, :])
    return tl.where(rows > MOST, MOST, tl.where(rows < -MOST, -MOST, rows))


@triton.jit
def _unpack_kernel(
    k_words: tl.tensor,
    k_bounds: tl.tensor,
    v_words: tl.tensor,
    v_bounds: tl.tensor,
    to_k: tl.tensor,
    to_v: tl.tensor,
    page: tl.tensor,
    entry: tl.tensor,
    head: tl.tensor,
    k_words_s: int,
    k_words_h: int,
    k_bounds_s: int,
    k_bounds_h: int,
    v_words_s: int,
    v_words_h: int,
    v_bounds_s: int,
    v_bounds_h: int,
    to_s: int,
    to_h: int,
    moves: int,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BITS: tl.constexpr,
    LISTED: tl.constexpr,
    MOST: tl.constexpr,
) -> None:
    """Program (n): every num_programs-th move, from the n-th on; most may be holes.

    MOST: the largest number of the target's dtype.
    """
    p = tl.arange(0, P_PAD)
    d = tl.arange(0, D_PAD)
    there = (p < P)[:, None] & (d < D)[None, :]
    apart = tl.num_programs(0)
    for start in range(tl.program_id(0), moves, LISTED * apart):
        at = start + apart * tl.arange(0, LISTED)
        if tl.max(tl.load(page + at, mask=at < moves, other=-1), axis=0) >= 0:
            for move in range(start, tl.minimum(moves, start + LISTED * apart), apart):
                s = tl.load(page + move)
                if s >= 0:
                    h = tl.load(head + move)
                    keys = load_keys(k_words + s * k_words_s + h * k_words_h, P, P, D, P_PAD, D_PAD, BITS)
                    values = load_values(v_words + s * v_words_s + h * v_words_h, P, D, P_PAD, D_PAD, BITS)
                    k_least, k_step = load_bounds(k_bounds + s * k_bounds_s + h * k_bounds_h, D, D_PAD)
                    v_least, v_step = load_bounds(v_bounds + s * v_bounds_s + h * v_bounds_h, D, D_PAD)
                    place = tl.load(entry + move) * to_s + h * to_h + p[:, None] * D + d[None, :]
                    tl.store(to_k + place, _uncoded(keys, k_least, k_step, MOST), mask=there)
                    tl.store(to_v + place, _uncoded(values, v_least, v_step, MOST), mask=there)


PackedPools = tuple[Packed, Packed]
"""Keys and values of one layer of a packed pool, [S, H, P, D] each."""


def flat(pools: PackedPools) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Words, int32, and bounds of keys and of values; and the strides of pages and heads in each."""
    tensors = tuple(each for pool in pools for each in (pool.words.view(torch.int32), pool.bounds))
    return tensors, tuple(stride for tensor in tensors for stride in tensor.stride()[:2])


def extents(pools: PackedPools) -> dict[str, object]:
    """What kernels are compiled for: the sizes of a block, its tile's, and the bits of a code."""
    _, _, P, D = pools[0].shape
    return {"P": P, "D": D, "P_PAD": padded(P, LEAST), "D_PAD": padded(D, LEAST), "BITS": pools[0].bits}


def unpack_launch(
    source: PackedPools, target: Pools, page: Tensor, entry: Tensor, head: Tensor, programs: int
) -> Launch:
    """The launch of `copy_packed_blocks`."""
    tensors, strides = flat(source)
    arguments = (*tensors, *target, page, entry, head, *strides, *target[0].stride()[:2], page.numel())
    constants = {**extents(source), "LISTED": LISTED, "MOST": torch.finfo(target[0].dtype).max}
    return Launch(_unpack_kernel, (min(programs, page.numel()),), arguments, constants, warps=8)


def copy_packed_blocks(
    source: PackedPools, target: Pools, page: Tensor, entry: Tensor, head: Tensor, *, programs: int = 32
) -> None:
    """Unpack single heads of blocks into a pool of the device, in one launch; the twin of `plain.copy_blocks`.

    source: on the device, or pinned host memory, which is read in place.   target: [S, H, P, D], of any float dtype.
    page, entry, head: int64 [M]; a page of -1 is none.   programs: as of `move_blocks.copy_blocks`.
    Raises KernelError where a tensor does not fit.
    """
    check_packed("source", source)
    check_pinned("source", source, target[0].device)
    check("target[0]", target[0], (None, *source[0].shape[1:]), *TL_DTYPES, rows=2)
    check_alike("target", *target)
    for name, tensor in (("page", page), ("entry", entry), ("head", head)):
        check(name, tensor, (page.numel(),), torch.int64)
    unpack_launch(source, target, page, entry, head, programs).run()


def check_packed(name: str, pools: PackedPools) -> None:
    """Refuse what is not keys and values as `pack` gives them.   Raises KernelError."""
    S, H, P, D = pools[0].shape
    for part, pool, by_token in zip("kv", pools, (False, True), strict=True):
        if (pool.shape, pool.bits, pool.by_token) != (pools[0].shape, pools[0].bits, by_token):
            kinds = (f"{list(each.shape)} in {each.bits} bits, by_token={each.by_token}" for each in pools)
            raise KernelError(f"{name} are {' and '.join(kinds)}: they must be alike, and only values by token")
        along, across = (P, D) if by_token else (D, P)
        words = (S, H, ceil_div(along * pool.bits, 32), across, 4)
        check(f"{name}.{part}.words", pool.words, words, torch.uint8, rows=3)
        check(f"{name}.{part}.bounds", pool.bounds, (S, H, 2, D), torch.bfloat16, rows=2)


def check_pinned(name: str, pools: PackedPools, device: torch.device) -> None:
    """Refuse memory that the device cannot read.   Raises KernelError."""
    if device.type == "cuda" and not all(pool.words.is_cuda or pool.words.is_pinned() for pool in pools):
        raise KernelError(f"{name} is in pageable host memory, which the device cannot read: pin the pool")
