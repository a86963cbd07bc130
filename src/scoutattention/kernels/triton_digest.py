"""Block weights on the device: digest scores of every block, their softmax over the blocks, the mean over the group.

Two launches: the first scores tiles of blocks and leaves each tile's lse, the second needs every tile's.
"""

import torch
from torch import Tensor

from .triton_base import LN2, TL_DTYPES, Launch, arithmetic, ceil_div, check, padded, tl, triton

LOG2E = tl.constexpr(1 / LN2)
BLOCKS = 64  # digests of one program
WIDE = 256  # weights of one program
TILES = 16  # tiles whose lse is read at a time


@triton.jit
def _score_kernel(
    q: tl.tensor,
    digests: tl.tensor,
    pages: tl.tensor,
    bonus: tl.tensor,
    scores: tl.tensor,
    lses: tl.tensor,
    scale: float,
    digests_s: int,
    digests_h: int,
    pages_b: int,
    bonus_b: int,
    H: int,
    G: int,
    N: int,
    D: tl.constexpr,
    G_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (row, tile): scores, base two, of BLOCKS blocks for one sequence and KV head, and their lse."""
    row = tl.program_id(0)
    tile = tl.program_id(1)
    b = (row // H).to(tl.int64)
    h = (row % H).to(tl.int64)
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    n = tile * BLOCKS + tl.arange(0, BLOCKS)
    heads = (g < G)[:, None] & (d < D)[None, :]
    query = tl.load(q + (row.to(tl.int64) * G + g)[:, None] * D + d[None, :], mask=heads, other=0.0).to(tl.float32)
    there = (n < N) & (tl.load(bonus + b * bonus_b + n, mask=n < N, other=float("-inf")) > float("-inf"))
    page = tl.load(pages + b * pages_b + n, mask=there, other=0).to(tl.int64)
    seen = there[:, None] & (d < D)[None, :]
    bound = digests + (page * digests_s + h * digests_h)[:, None] + d[None, :]
    high = tl.load(bound, mask=seen, other=0.0).to(DOT)
    low = tl.load(bound + D, mask=seen, other=0.0).to(DOT)
    score = tl.dot(tl.maximum(query, 0.0).to(DOT), tl.trans(high), input_precision="ieee")
    score = tl.dot(tl.minimum(query, 0.0).to(DOT), tl.trans(low), score, input_precision="ieee")
    score = tl.where(there[None, :], score * (scale * LOG2E), float("-inf"))
    best = tl.max(score, axis=1)
    best = tl.where(best == float("-inf"), 0.0, best)
    total = tl.sum(tl.exp2(score - best[:, None]), axis=1)
    lse = tl.where(total > 0, best + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    place = row.to(tl.int64) * G + g
    tl.store(scores + place[:, None] * N + n[None, :], score, mask=(g < G)[:, None] & (n < N)[None, :])
    tl.store(lses + place * tl.num_programs(1) + tile, lse, mask=g < G)


@triton.jit
def _weight_kernel(
    scores: tl.tensor,
    lses: tl.tensor,
    bonus: tl.tensor,
    out: tl.tensor,
    bonus_b: int,
    H: int,
    G: int,
    N: int,
    tiles: int,
    G_PAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
) -> None:
    """Program (row, part): the weights of BLOCKS blocks for one sequence and KV head."""
    row = tl.program_id(0)
    b = (row // H).to(tl.int64)
    g = tl.arange(0, G_PAD)
    n = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    place = row.to(tl.int64) * G + g
    best = tl.full([G_PAD], -3.0e38, tl.float32)
    total = tl.zeros([G_PAD], tl.float32)
    for start in range(0, tiles, TILES):
        tile = start + tl.arange(0, TILES)
        listed = (g < G)[:, None] & (tile < tiles)[None, :]
        parts = tl.load(lses + place[:, None] * tiles + tile[None, :], mask=listed, other=float("-inf"))
        higher = tl.maximum(best, tl.max(parts, axis=1))
        total = total * tl.exp2(best - higher) + tl.sum(tl.exp2(parts - higher[:, None]), axis=1)
        best = higher
    total = tl.where(total > 0, total, 1.0) * G
    listed = (g < G)[:, None] & (n < N)[None, :]
    score = tl.load(scores + place[:, None] * N + n[None, :], mask=listed, other=float("-inf"))
    weight = tl.sum(tl.exp2(score - best[:, None]) / total[:, None], axis=0)
    extra = tl.load(bonus + b * bonus_b + n, mask=n < N, other=0.0)
    tl.store(out + row.to(tl.int64) * N + n, weight + extra, mask=n < N)


def weight_launches(
    q: Tensor, digests: Tensor, pages: Tensor, bonus: Tensor, scale: float, out: Tensor
) -> list[Launch]:
    """The two launches that fill `out`."""
    B, H, G, D = q.shape
    N = pages.shape[1]
    tiles = ceil_div(N, BLOCKS)
    scores = out.new_empty(B, H, G, N)
    lses = out.new_empty(B, H, G, tiles)
    strides = (*digests.stride()[:2], pages.stride(0), bonus.stride(0))
    arguments = (q, digests, pages, bonus, scores, lses, scale, *strides, H, G, N)
    constants: dict[str, object] = {"D": D, "G_PAD": padded(G, 16), "D_PAD": padded(D, 16), "BLOCKS": BLOCKS}
    constants["DOT"] = arithmetic(digests.dtype)
    first = Launch(_score_kernel, (B * H, tiles), arguments, constants, warps=2 * digests.dtype.itemsize)
    arguments = (scores, lses, bonus, out, bonus.stride(0), H, G, N, tiles)
    constants = {"G_PAD": padded(G), "BLOCKS": WIDE, "TILES": TILES}
    return [first, Launch(_weight_kernel, (B * H, ceil_div(N, WIDE)), arguments, constants)]


def block_weights(
    q: Tensor, digests: Tensor, pages: Tensor, bonus: Tensor, scale: float, *, out: Tensor | None = None
) -> Tensor:
    """How much the group's queries want each block; the twin of `reference_device.block_weights`.

    q: [B, H, G, D], contiguous.   digests: one layer, [S, H, 2 * D]; in the dtype of the keys they lose nothing, since
    they are channels of keys.   pages: int32 [B, N], any value where the bonus is -inf.   bonus: float32 [B, 1, N].
    out: float32 [B, H, N], contiguous; None is new.   Raises KernelError where a tensor does not fit.
    """
    B, H, _, D = q.shape
    N = pages.shape[-1]
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("digests", digests, (None, H, 2 * D), *TL_DTYPES)
    check("pages", pages, (B, N), torch.int32)
    check("bonus", bonus, (B, 1, N), torch.float32)
    out = q.new_empty((B, H, N), dtype=torch.float32) if out is None else out
    check("out", out, (B, H, N), torch.float32, rows=3)
    for launch in weight_launches(q, digests, pages, bonus, scale, out):
        launch.run()
    return out
