"""Digest scores on the device: bounds of keys, or keys in 2 bits a channel, of listed pages."""

import torch
from torch import Tensor

from ..base import LN2, TL_DTYPES, Launch, arithmetic, ceil_div, check, padded, tl, triton

LOG2E = tl.constexpr(1 / LN2)
BLOCKS = 64  # min/max digests of one program
PAGES = 8  # pages of keys of one program


@triton.jit
def _bound_kernel(
    q: tl.tensor,
    digests: tl.tensor,
    pages: tl.tensor,
    closed: tl.tensor,
    scores: tl.tensor,
    scale: float,
    digests_s: int,
    digests_h: int,
    pages_b: int,
    pages_h: int,
    H: int,
    G: int,
    N: int,
    D: tl.constexpr,
    G_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (row, tile): scores of BLOCKS blocks for one sequence and KV head."""
    row = tl.program_id(0)
    b = (row // H).to(tl.int64)
    h = (row % H).to(tl.int64)
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    n = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    place = row.to(tl.int64) * G + g
    query = tl.load(q + place[:, None] * D + d[None, :], mask=(g < G)[:, None] & (d < D)[None, :], other=0.0)
    query = query.to(tl.float32)
    listed = n < tl.load(closed + b)
    page = tl.load(pages + b * pages_b + h * pages_h + n, mask=listed, other=0).to(tl.int64)
    seen = listed[:, None] & (d < D)[None, :]
    bound = digests + (page * digests_s + h * digests_h)[:, None] + d[None, :]
    high = tl.load(bound, mask=seen, other=0.0).to(DOT)
    low = tl.load(bound + D, mask=seen, other=0.0).to(DOT)
    score = tl.dot(tl.maximum(query, 0.0).to(DOT), tl.trans(high), input_precision="ieee")
    score = tl.dot(tl.minimum(query, 0.0).to(DOT), tl.trans(low), score, input_precision="ieee")
    tl.store(scores + place[:, None] * N + n[None, :], score * scale, mask=(g < G)[:, None] & listed[None, :])


@triton.jit
def _code_kernel(
    q: tl.tensor,
    words: tl.tensor,
    bounds: tl.tensor,
    pages: tl.tensor,
    closed: tl.tensor,
    scores: tl.tensor,
    scale: float,
    words_s: int,
    words_h: int,
    bounds_s: int,
    bounds_h: int,
    bounds_r: int,
    pages_b: int,
    pages_h: int,
    H: int,
    G: int,
    N: int,
    D: tl.constexpr,
    P: tl.constexpr,
    G_PAD: tl.constexpr,
    W_PAD: tl.constexpr,
    P_PAD: tl.constexpr,
    PAGES: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (row, tile): log-sum-exp over the keys of PAGES pages for one sequence and KV head.

    Code 4 j + i of a word is in its bits 8 i + 2 j. The products of the query with a page's steps are made in two parts
    of DOT, so that nothing is lost to speak of; codes are whole numbers.
    """
    row = tl.program_id(0)
    b = (row // H).to(tl.int64)
    h = (row % H).to(tl.int64)
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, 16 * W_PAD)
    w = tl.arange(0, W_PAD)
    p = tl.arange(0, P_PAD)
    code = tl.arange(0, 16)
    shift = 8 * (code % 4) + 2 * (code // 4)
    place = row.to(tl.int64) * G + g
    query = tl.load(q + place[:, None] * D + d[None, :], mask=(g < G)[:, None] & (d < D)[None, :], other=0.0)
    query = query.to(tl.float32) * scale
    first = tl.program_id(1) * PAGES
    for n in range(first, min(first + PAGES, tl.load(closed + b).to(tl.int32))):
        page = tl.load(pages + b * pages_b + h * pages_h + n).to(tl.int64)
        bound = bounds + page * bounds_s + h * bounds_h + d
        least = tl.load(bound, mask=d < D, other=0.0).to(tl.float32)
        step = tl.load(bound + bounds_r, mask=d < D, other=0.0).to(tl.float32)
        listed = (p < P)[:, None] & (w < (D + 15) // 16)[None, :]
        word = tl.load(words + page * words_s + h * words_h + w[None, :] * P + p[:, None], mask=listed, other=0)
        codes = (word[:, :, None] >> shift[None, None, :]) & 3
        codes = tl.trans(tl.reshape(codes, (P_PAD, 16 * W_PAD))).to(tl.float32).to(DOT)
        steps = query * step[None, :]
        high = steps.to(DOT)
        low = (steps - high.to(tl.float32)).to(DOT)
        score = tl.dot(high, codes, input_precision="ieee")
        score = tl.dot(low, codes, score, input_precision="ieee")
        score = tl.where((p < P)[None, :], score * LOG2E, float("-inf"))
        best = tl.max(score, axis=1)
        total = tl.sum(tl.exp2(score - best[:, None]), axis=1)
        lse = tl.sum(query * least[None, :], axis=1) + (best + tl.log2(total)) / LOG2E
        tl.store(scores + place * N + n, lse, mask=g < G)


def bound_launch(
    q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scores: Tensor, scale: float = 1.0
) -> Launch:
    """The launch of `score_min_max`, which fills `scores`."""
    B, H, G, D = q.shape
    N = pages.shape[2]
    arguments = (q, digests, pages, closed, scores, scale, *digests.stride()[:2], *pages.stride()[:2], H, G, N)
    constants: dict[str, object] = {"D": D, "G_PAD": padded(G, 16), "D_PAD": padded(D, 16), "BLOCKS": BLOCKS}
    constants["DOT"] = arithmetic(digests.dtype)
    return Launch(_bound_kernel, (B * H, ceil_div(N, BLOCKS)), arguments, constants, warps=2 * digests.dtype.itemsize)


def code_launch(
    q: Tensor, digests: tuple[Tensor, Tensor], pages: Tensor, closed: Tensor, scores: Tensor, scale: float = 1.0
) -> Launch:
    """The launch of `score_key_codes`, which fills `scores`.   digests: codes and bounds."""
    B, H, G, D = q.shape
    codes, bounds = digests
    N, P = pages.shape[2], codes.shape[3]
    words = codes.view(torch.int32)
    strides = (*words.stride()[:2], *bounds.stride()[:3], *pages.stride()[:2])
    sizes = {"D": D, "P": P, "G_PAD": padded(G, 16), "W_PAD": padded(ceil_div(D, 16)), "P_PAD": padded(P, 16)}
    constants = {**sizes, "PAGES": PAGES, "DOT": arithmetic(torch.bfloat16)}
    arguments = (q, words, bounds, pages, closed, scores, scale, *strides, H, G, N)
    return Launch(_code_kernel, (B * H, ceil_div(N, PAGES)), arguments, constants, warps=4, stages=2)


def score_min_max(q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float = 1.0) -> Tensor:
    """Upper bounds of scale * q . k over each block's keys: float32 [B, H, G, N]; twin of `reference.score_min_max`.

    q: [B, H, G, D], contiguous; rounded to the digests' dtype for the products.   digests: one layer, [S, H, 2 * D].
    pages: int32 [B, H, N], of which the first `closed`, int64 [B], are scored.
    Raises KernelError where a tensor does not fit. Pages are not looked at.
    """
    B, H, G, D = q.shape
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("digests", digests, (None, H, 2 * D), *TL_DTYPES)
    check("pages", pages, (B, H, None), torch.int32)
    check("closed", closed, (B,), torch.int64)
    scores = q.new_empty((B, H, G, pages.shape[2]), dtype=torch.float32)
    bound_launch(q, digests, pages, closed, scores, scale).run()
    return scores


def score_key_codes(
    q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float = 1.0
) -> Tensor:
    """Log-sum-exp of scale * q . k over each block's keys: float32 [B, H, G, N]; twin of `reference.score_key_codes`.

    q: [B, H, G, D], contiguous.   codes, bounds: one layer, uint8 [S, H, W, P, 4] and float16 [S, H, 2, D].
    pages: int32 [B, H, N], of which the first `closed`, int64 [B], are scored.
    Raises KernelError where a tensor does not fit. Pages are not looked at.
    """
    B, H, G, D = q.shape
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("codes", codes, (None, H, ceil_div(D, 16), None, 4), torch.uint8, rows=3)
    check("bounds", bounds, (codes.shape[0], H, 2, D), torch.float16)
    check("pages", pages, (B, H, None), torch.int32)
    check("closed", closed, (B,), torch.int64)
    scores = q.new_empty((B, H, G, pages.shape[2]), dtype=torch.float32)
    code_launch(q, (codes, bounds), pages, closed, scores, scale).run()
    return scores
