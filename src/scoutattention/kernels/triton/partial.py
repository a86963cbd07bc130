"""Partial attention over slots on the device: split over the list of blocks, then combined (flash-decoding).

Scores are kept in base two inside the kernels, where exp2 is one instruction; every lse that leaves is natural.
"""

import torch
from torch import Tensor

from ...errors import KernelError
from ...runtime.packed import Blocks, Packed
from ...types import BlockList, Partial
from ..requests import PartialRequest, TakeRequest
from .base import LN2, TL_DTYPES, Launch, arithmetic, ceil_div, check, check_alike, padded, processors, tl, triton
from .calls import PTX, Taking, check_take, take_part, taking_arguments
from .partial_size import PartialTile, blocks_per_split, default_tile

LOG2E = tl.constexpr(1 / LN2)
LOWEST = tl.constexpr(-3.0e38)  # below every score, and finite: the difference of two is no NaN
SPLITS = 16  # splits that are combined at a time


@triton.jit
def fold(best: tl.tensor, total: tl.tensor, scores: tl.tensor, axis: tl.constexpr) -> tuple[tl.tensor, ...]:
    """More scores into a running softmax: its new maximum and sum, what older sums fade by, and the new weights."""
    higher = tl.maximum(best, tl.max(scores, axis=axis))
    fade = tl.exp2(best - higher)
    weights = tl.exp2(scores - tl.expand_dims(higher, axis))
    return higher, total * fade + tl.sum(weights, axis=axis), fade, weights


@triton.jit
def natural(best: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The natural lse of a running softmax; -inf where nothing was added."""
    return tl.where(total > 0, (best + tl.log2(tl.where(total > 0, total, 1.0))) / LOG2E, float("-inf"))


@triton.jit(do_not_specialize=["line"], do_not_specialize_on_alignment=["answered", "waited", "counts"])
def _partial_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    index: tl.tensor,
    length: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    result: tl.tensor,
    answered: tl.tensor,
    waited: tl.tensor,
    counts: tl.tensor,
    late: tl.tensor,
    gave_up: tl.tensor,
    line: int,
    patience: int,
    size: int,
    first_lse: int,
    taken: tl.tensor,
    each: int,
    scale: float,
    pool_s: int,
    pool_h: int,
    index_b: int,
    index_h: int,
    length_b: int,
    length_h: int,
    H: int,
    G: int,
    N: int,
    per_split: int,
    D: tl.constexpr,
    P: tl.constexpr,
    G_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    TOKENS: tl.constexpr,
    DOT: tl.constexpr,
    TAKES: tl.constexpr,
    CHUNK: tl.constexpr,
    PTX: tl.constexpr,
) -> None:
    """Program (row, split): the query heads of one sequence and KV head, over one split of its list.

    Where it also TAKES the CPU's result, programs (row, 0) do so, and the splits come after them.
    """
    if TAKES and tl.program_id(1) == 0:
        take_part(
            *(result, answered, waited, counts, late, gave_up, taken),
            *(line, patience, size, first_lse, each, CHUNK, PTX),
        )
    else:
        _attend(
            *(q, k, v, index, length, out, lse, tl.program_id(1) - TAKES, scale, pool_s, pool_h),
            *(index_b, index_h, length_b, length_h, H, G, N, per_split, D, P, G_PAD, D_PAD, TOKENS, DOT),
        )
        if TAKES and (tl.program_id(0) == 0) & (tl.program_id(1) == 1):
            tl.store(counts + 3, tl.load(counts + 1))  # one program ends about when the others do


@triton.jit
def _attend(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    index: tl.tensor,
    length: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    split: tl.tensor,
    scale: float,
    pool_s: int,
    pool_h: int,
    index_b: int,
    index_h: int,
    length_b: int,
    length_h: int,
    H: int,
    G: int,
    N: int,
    per_split: int,
    D: tl.constexpr,
    P: tl.constexpr,
    G_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    TOKENS: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """One split of the list of row `program_id(0)`."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    heads = (g < G)[:, None] & (d < D)[None, :]
    queries = tl.load(q + (row * G + g)[:, None] * D + d[None, :], mask=heads, other=0.0).to(DOT)
    index += b * index_b + h * index_h
    length += b * length_b + h * length_h
    best = tl.full([G_PAD], LOWEST, tl.float32)
    total = tl.zeros([G_PAD], tl.float32)
    acc = tl.zeros([G_PAD, D_PAD], tl.float32)
    end = tl.minimum((split + 1) * per_split, N) * P
    for start in range(split * per_split * P, end, TOKENS):
        token = start + tl.arange(0, TOKENS)
        block, place = token // P, token % P
        slot = tl.load(index + block, mask=token < end, other=0).to(tl.int64)
        valid = place < tl.load(length + block, mask=token < end, other=0)
        seen = valid[:, None] if D == D_PAD else valid[:, None] & (d < D)[None, :]
        rows = (slot * pool_s + h * pool_h + place * D)[:, None] + d[None, :]
        keys = tl.load(k + rows, mask=seen, other=0.0).to(DOT)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        scores = tl.where(valid[None, :], scores, float("-inf"))
        values = tl.load(v + rows, mask=seen, other=0.0).to(DOT)
        best, total, fade, weights = fold(best, total, scores, 1)
        acc = acc * fade[:, None] + tl.dot(weights.to(DOT), values, input_precision="ieee")
    result = (split * tl.num_programs(0) + row) * G + g
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + result[:, None] * D + d[None, :], acc, mask=heads)
    tl.store(lse + result, natural(best, total), mask=g < G)


@triton.jit
def _combine_kernel(
    outs: tl.tensor,
    lses: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    rows: int,
    splits: int,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Program (row): one query head's partials of all splits into one, SPLITS at a time."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D_PAD)
    best = tl.full([], LOWEST, tl.float32)
    total = tl.zeros([], tl.float32)
    acc = tl.zeros([D_PAD], tl.float32)
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        listed = split < splits
        place = row + split.to(tl.int64) * rows
        parts = tl.load(lses + place, mask=listed, other=float("-inf")) * LOG2E
        seen = listed[:, None] & (d < D)[None, :]
        values = tl.load(outs + place[:, None] * D + d[None, :], mask=seen, other=0.0)
        best, total, fade, weights = fold(best, total, parts, 0)
        acc = acc * fade + tl.sum(weights[:, None] * values, axis=0)
    tl.store(out + row * D + d, acc / tl.where(total > 0, total, 1.0), mask=d < D)
    tl.store(lse + row, natural(best, total))


def partial_launches(
    what: PartialRequest,
    result: Partial,
    tile: PartialTile,
    multiprocessors: int,
    taking: Taking | None = None,
    *,
    ptx: bool = PTX,
) -> list[Launch]:
    """The launches that fill `result`: one, or two where the list is split; the first also does what `taking` says."""
    q, *pools, blocks, scale = what
    k, v = plain_pair(*pools)
    B, H, G, D = q.shape
    P, N = k.shape[2], blocks.index.shape[2]
    per_split = blocks_per_split(B * H, N, P, tile, multiprocessors)
    splits = max(1, ceil_div(N, per_split))
    out, lse = result.out, result.lse
    if splits > 1:
        out, lse = out.new_empty(splits, B, H, G, D), lse.new_empty(splits, B, H, G)
    strides = (*k.stride()[:2], *blocks.index.stride()[:2], *blocks.length.stride()[:2])
    call, taken = taking_arguments(taking, lse, B * H, ptx=ptx)
    arguments = (q, k, v, *blocks, out, lse, *call, scale, *strides, H, G, N, per_split)
    sizes = {"D": D, "D_PAD": padded(D, 16), "P": P, "G_PAD": padded(G, 16)}
    constants = {**sizes, "TOKENS": tile.tokens, "DOT": arithmetic(k.dtype), **taken}
    launches = [
        Launch(_partial_kernel, (B * H, splits + taken["TAKES"]), arguments, constants, tile.warps, tile.stages)
    ]
    return launches if splits == 1 else [*launches, combine_launch(Partial(out, lse), result)]


def combine_launch(parts: Partial, result: Partial) -> Launch:
    """The launch that fills `result` [B, H, G, D] from the partials of all splits, [splits, B, H, G, D]."""
    rows, D = result.lse.numel(), result.out.shape[-1]
    arguments = (parts.out, parts.lse, result.out, result.lse, rows, len(parts.out))
    return Launch(_combine_kernel, (rows,), arguments, {"D": D, "D_PAD": padded(D, 16), "SPLITS": SPLITS}, warps=2)


def partial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: BlockList,
    scale: float,
    *,
    out: Partial | None = None,
    tile: PartialTile | None = None,
) -> Partial:
    """Attention of every query to the listed blocks of a pool; the twin of `reference.partial`, without mean keys.

    q: [B, H, G, D], contiguous, rounded to the pool's dtype for its products.   k, v: one layer of a pool,
    [S, H, P, D], float32, bfloat16 or float16, strided alike, contiguous in the last two axes.   out: where to write,
    float32 and contiguous; None is new.
    Raises KernelError where a tensor does not fit. Indices are not looked at: the device cannot say which is wrong.
    """
    return _run(PartialRequest(q, k, v, blocks, scale), out, tile)


def _run(
    what: PartialRequest, out: Partial | None = None, tile: PartialTile | None = None, taking: Taking | None = None
) -> Partial:
    q, *pools, blocks, _ = what
    k, v = plain_pair(*pools)
    B, H, G, D = q.shape
    N = blocks.index.shape[-1]
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("k", k, (None, H, None, D), *TL_DTYPES, rows=2)
    check_alike("k and v", k, v)
    check("blocks.index", blocks.index, (B, H, N), torch.int32)
    check("blocks.length", blocks.length, (B, H, N), torch.int32)
    result = out or Partial(q.new_empty(q.shape, dtype=torch.float32), q.new_empty((B, H, G), dtype=torch.float32))
    check("out.out", result.out, (B, H, G, D), torch.float32, rows=4)
    check("out.lse", result.lse, (B, H, G), torch.float32, rows=3)
    tile = tile or default_tile(D, k.dtype, N * k.shape[2])
    for launch in partial_launches(what, result, tile, processors(q.device), taking):
        launch.run()
    return result


def plain_pair(k: Blocks, v: Blocks) -> tuple[Tensor, Tensor]:
    """Keys and values that are not packed.   Raises KernelError where they are."""
    if isinstance(k, Packed) or isinstance(v, Packed):
        raise KernelError("blocks are packed, and this kernel reads plain ones: give it pages of a BlockPool")
    return k, v


def partial_and_take(near: PartialRequest, call: TakeRequest) -> tuple[Partial, Tensor]:
    """`partial`, and what `calls.take_call` does, by programs beside; the twin of `PlainOps.partial_and_take`.

    The CPU's result is copied to the device.   Raises KernelError where a tensor does not fit, or the time is none.
    """
    q = near.q.contiguous()
    check_take(call.result, call.flags, call.timeout_s)
    if not q.numel():
        raise KernelError(f"q is {list(q.shape)}: without a query nothing is taken")
    taking = Taking(call, torch.empty(call.result.shape, dtype=torch.float32, device=q.device))
    return _run(near._replace(q=q), taking=taking), taking.taken
