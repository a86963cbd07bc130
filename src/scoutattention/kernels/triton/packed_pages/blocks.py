"""Packed pages on a GPU: blocks are packed on their way to the host's pages, and unpacked on their way to slots.

Each program has one block of one KV head at a time. A page crosses the link to the host once, in codes. Results are
those of `runtime.packed`, bit for bit: products of a code and a step are exact in float32.
"""

import torch
from torch import Tensor

from ....errors import KernelError
from ....runtime.packed import Packed
from ....types import CloseRequest, Pools
from ..base import TL_DTYPES, Launch, ceil_div, check, check_alike, padded, tl, triton
from ..move_blocks import LISTED

LEAST = 16
"""Extent of a tile at least, of both its axes: room for a word in either."""
ROUND = tl.constexpr(12582912.0)
"""1.5 * 2^23: added to a small float32 and taken off again, it leaves the nearest whole number, the even one of two."""


@triton.jit
def _shifts(BITS: tl.constexpr) -> tl.tensor:
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
    codes = (word[:, :, None] >> _shifts(BITS)[None, None, :]) & ((1 << BITS) - 1)
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
    codes = (word[:, None, :] >> _shifts(BITS)[None, :, None]) & ((1 << BITS) - 1)
    return tl.reshape(codes, (P_PAD, D_PAD))


@triton.jit
def load_bounds(bounds: tl.tensor, D: tl.constexpr, D_PAD: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The least number of each channel of a block, and its step: float32 [D_PAD] each."""
    d = tl.arange(0, D_PAD)
    least = tl.load(bounds + d, mask=d < D, other=0.0).to(tl.float32)
    return least, tl.load(bounds + D + d, mask=d < D, other=0.0).to(tl.float32)


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
) -> None:
    """Program (n): every num_programs-th move, from the n-th on; most may be holes."""
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
                    tl.store(to_k + place, k_least[None, :] + keys.to(tl.float32) * k_step[None, :], mask=there)
                    tl.store(to_v + place, v_least[None, :] + values.to(tl.float32) * v_step[None, :], mask=there)


@triton.jit
def _coded(
    block: tl.tensor, row: int, bounds: tl.tensor, P: tl.constexpr, D: tl.constexpr, P_PAD: tl.constexpr,
    D_PAD: tl.constexpr, BITS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Codes of a block, int32 [P_PAD, D_PAD], 0 beside it; its bounds are stored.   row: a row's stride."""
    TOP: tl.constexpr = (1 << BITS) - 1
    p = tl.arange(0, P_PAD)
    d = tl.arange(0, D_PAD)
    there = (p < P)[:, None] & (d < D)[None, :]
    rows = tl.load(block + p[:, None] * row + d[None, :], mask=there, other=0.0).to(tl.float32)
    low = tl.min(tl.where((p < P)[:, None], rows, float("inf")), axis=0)
    high = tl.max(tl.where((p < P)[:, None], rows, float("-inf")), axis=0)
    least = low.to(tl.float16)
    step = tl.div_rn(high - low, TOP * 1.0).to(tl.float16)
    tl.store(bounds + d, least, mask=d < D)
    tl.store(bounds + D + d, step, mask=d < D)
    scale = tl.maximum(step.to(tl.float32), 1e-20)
    codes = tl.div_rn(rows - least.to(tl.float32)[None, :], scale[None, :])
    codes = (tl.minimum(tl.maximum(codes, 0.0), TOP * 1.0) + ROUND) - ROUND
    return tl.where(there, codes.to(tl.int32), 0)


@triton.jit
def _pack_kernel(
    k: tl.tensor,
    v: tl.tensor,
    pages: tl.tensor,
    k_words: tl.tensor,
    k_bounds: tl.tensor,
    v_words: tl.tensor,
    v_bounds: tl.tensor,
    k_n: int,
    k_h: int,
    k_p: int,
    v_n: int,
    v_h: int,
    v_p: int,
    k_words_s: int,
    k_words_h: int,
    k_bounds_s: int,
    k_bounds_h: int,
    v_words_s: int,
    v_words_h: int,
    v_bounds_s: int,
    v_bounds_h: int,
    P: tl.constexpr,
    D: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    """Program (block, head): its keys in words along the channels, its values in words along the rows.

    A block whose page is -1 is left out.
    """
    COUNT: tl.constexpr = 32 // BITS
    K_WORDS: tl.constexpr = D_PAD // COUNT
    V_WORDS: tl.constexpr = P_PAD // COUNT
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    s = tl.load(pages + n)
    if s >= 0:
        p = tl.arange(0, P_PAD)
        d = tl.arange(0, D_PAD)
        bounds = k_bounds + s * k_bounds_s + h * k_bounds_h
        codes = _coded(k + n * k_n + h * k_h, k_p, bounds, P, D, P_PAD, D_PAD, BITS)
        word = tl.sum(tl.reshape(codes, (P_PAD, K_WORDS, COUNT)) << _shifts(BITS)[None, None, :], axis=2)
        w = tl.arange(0, K_WORDS)
        there = (p < P)[:, None] & (w < (D + COUNT - 1) // COUNT)[None, :]
        tl.store(k_words + s * k_words_s + h * k_words_h + w[None, :] * P + p[:, None], word, mask=there)
        bounds = v_bounds + s * v_bounds_s + h * v_bounds_h
        codes = _coded(v + n * v_n + h * v_h, v_p, bounds, P, D, P_PAD, D_PAD, BITS)
        word = tl.sum(tl.reshape(codes, (V_WORDS, COUNT, D_PAD)) << _shifts(BITS)[None, :, None], axis=1)
        w = tl.arange(0, V_WORDS)
        there = (w < (P + COUNT - 1) // COUNT)[:, None] & (d < D)[None, :]
        tl.store(v_words + s * v_words_s + h * v_words_h + w[:, None] * D + d[None, :], word, mask=there)


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
    return Launch(
        _unpack_kernel, (min(programs, page.numel()),), arguments, {**extents(source), "LISTED": LISTED}, warps=8
    )


def copy_packed_blocks(
    source: PackedPools, target: Pools, page: Tensor, entry: Tensor, head: Tensor, *, programs: int = 32
) -> None:
    """Unpack single heads of blocks into a pool of the device, in one launch; the twin of `plain.copy_blocks`.

    source: on the device, or pinned host memory, which is read in place.   target: [S, H, P, D], of any float dtype.
    page, entry, head: int64 [M]; a page of -1 is none.   programs: as of `move_blocks.copy_blocks`.
    Raises KernelError where a tensor does not fit.
    """
    check_packed("source", source)
    _check_pinned("source", source, target[0].device)
    check("target[0]", target[0], (None, *source[0].shape[1:]), *TL_DTYPES, rows=2)
    check_alike("target", *target)
    for name, tensor in (("page", page), ("entry", entry), ("head", head)):
        check(name, tensor, (page.numel(),), torch.int64)
    unpack_launch(source, target, page, entry, head, programs).run()


def pack_launch(k: Tensor, v: Tensor, target: PackedPools, pages: Tensor) -> Launch:
    """The launch of `write_packed_blocks`."""
    tensors, strides = flat(target)
    arguments = (k, v, pages, *tensors, *k.stride()[:3], *v.stride()[:3], *strides)
    return Launch(_pack_kernel, tuple(k.shape[:2]), arguments, extents(target))


def write_packed_blocks(k: Tensor, v: Tensor, target: PackedPools, pages: Tensor) -> None:
    """Pack blocks k, v [n, H, P, D] into places of a packed pool, int64 [n], in one launch; twin of `Packed[...] =`.

    A page of -1 is none.   target: as the source of `copy_packed_blocks`.   Raises KernelError where a tensor does not
    fit.
    """
    _, H, P, D = target[0].shape
    check_packed("target", target)
    _check_pinned("target", target, k.device)
    check("k", k, (None, H, P, D), *TL_DTYPES)
    check("v", v, (k.shape[0], H, P, D), *TL_DTYPES)
    check("pages", pages, (k.shape[0],), torch.int64)
    pack_launch(k, v, target, pages).run()


def close_packed_blocks(source: Pools, target: PackedPools, what: CloseRequest) -> None:
    """Pack open blocks that are full into their pages; the twin of `PlainOps.close_blocks`.

    source, target: pools [L, S, H, P, D].   Raises KernelError where a tensor does not fit.
    """
    row, closed, fill = what.rows
    k, v = (blocks[:, what.entry].flatten(0, 1) for blocks in source)
    layers, pages = target[0].shape[:2]
    page = what.table[row, closed].where(fill + 1 == k.shape[2], -1)
    layer = torch.arange(layers, device=page.device)[:, None] * pages
    places = (layer + page).where(page >= 0, -1).flatten()
    write_packed_blocks(k, v, (target[0].flatten(0, 1), target[1].flatten(0, 1)), places)


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
        check(f"{name}.{part}.bounds", pool.bounds, (S, H, 2, D), torch.float16, rows=2)


def _check_pinned(name: str, pools: PackedPools, device: torch.device) -> None:
    """Refuse memory that the device cannot read.   Raises KernelError."""
    if device.type == "cuda" and not all(pool.words.is_cuda or pool.words.is_pinned() for pool in pools):
        raise KernelError(f"{name} is in pageable host memory, which the device cannot read: pin the pool")
