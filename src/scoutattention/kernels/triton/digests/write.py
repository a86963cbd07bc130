"""What is kept of closed blocks, made on the device: bounds of their keys, or the keys in 2 bits a channel."""

import torch
from torch import Tensor

from ..base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton


@triton.jit
def _extremes(
    block: tl.tensor, k_p: int, P: tl.constexpr, D: tl.constexpr, P_PAD: tl.constexpr, D_PAD: tl.constexpr
) -> tuple[tl.tensor, ...]:
    """The keys of a block, float32 [P_PAD, D_PAD], and the minima and maxima of its channels."""
    p = tl.arange(0, P_PAD)
    d = tl.arange(0, D_PAD)
    there = (p < P)[:, None] & (d < D)[None, :]
    keys = tl.load(block + p[:, None] * k_p + d[None, :], mask=there, other=0.0).to(tl.float32)
    row = (p < P)[:, None]
    return keys, tl.min(tl.where(row, keys, float("inf")), axis=0), tl.max(tl.where(row, keys, float("-inf")), axis=0)


@triton.jit
def _bounding_kernel(
    k: tl.tensor,
    pages: tl.tensor,
    digests: tl.tensor,
    k_n: int,
    k_h: int,
    k_p: int,
    digests_s: int,
    digests_h: int,
    D: tl.constexpr,
    P: tl.constexpr,
    P_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
) -> None:
    """Program (block, head): the bounds of its channels."""
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    _, low, high = _extremes(k + n * k_n + h * k_h, k_p, P, D, P_PAD, D_PAD)
    d = tl.arange(0, D_PAD)
    there = digests + tl.load(pages + n) * digests_s + h * digests_h + d
    tl.store(there, high, mask=d < D)
    tl.store(there + D, low, mask=d < D)


@triton.jit
def _coding_kernel(
    k: tl.tensor,
    pages: tl.tensor,
    words: tl.tensor,
    bounds: tl.tensor,
    k_n: int,
    k_h: int,
    k_p: int,
    words_s: int,
    words_h: int,
    bounds_s: int,
    bounds_h: int,
    D: tl.constexpr,
    P: tl.constexpr,
    P_PAD: tl.constexpr,
    W_PAD: tl.constexpr,
) -> None:
    """Program (block, head): its keys between the bounds of their channels.

    Code 4 j + i of a word is in its bits 8 i + 2 j, as `triton_digest._code_kernel` reads it.
    """
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1).to(tl.int64)
    p = tl.arange(0, P_PAD)
    w = tl.arange(0, W_PAD)
    d = tl.arange(0, 16 * W_PAD)
    page = tl.load(pages + n)
    keys, low, high = _extremes(k + n * k_n + h * k_h, k_p, P, D, P_PAD, 16 * W_PAD)
    least = low.to(tl.float16)
    step = tl.div_rn(high - low, 3.0).to(tl.float16)
    bound = bounds + page * bounds_s + h * bounds_h + d
    tl.store(bound, least, mask=d < D)
    tl.store(bound + D, step, mask=d < D)
    scale = tl.maximum(step.to(tl.float32), 1e-20)
    codes = tl.floor(tl.div_rn(keys - least.to(tl.float32)[None, :], scale[None, :]) + 0.5)
    codes = tl.minimum(tl.maximum(codes, 0.0), 3.0).to(tl.int32)
    code = tl.arange(0, 16)
    shift = 8 * (code % 4) + 2 * (code // 4)
    word = tl.sum(tl.reshape(codes, (P_PAD, W_PAD, 16)) << shift[None, None, :], axis=2)
    listed = (p < P)[:, None] & (w < (D + 15) // 16)[None, :]
    tl.store(words + page * words_s + h * words_h + w[None, :] * P + p[:, None], word, mask=listed)


def bounding_launch(k: Tensor, digests: Tensor, pages: Tensor) -> Launch:
    """The launch of `write_min_max`."""
    n, H, P, D = k.shape
    constants = {"D": D, "P": P, "P_PAD": padded(P), "D_PAD": padded(D)}
    return Launch(_bounding_kernel, (n, H), (k, pages, digests, *k.stride()[:3], *digests.stride()[:2]), constants)


def coding_launch(k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> Launch:
    """The launch of `write_key_codes`."""
    n, H, P, D = k.shape
    words = codes.view(torch.int32)
    strides = (*k.stride()[:3], *words.stride()[:2], *bounds.stride()[:2])
    constants = {"D": D, "P": P, "P_PAD": padded(P), "W_PAD": padded(ceil_div(D, 16))}
    return Launch(_coding_kernel, (n, H), (k, pages, words, bounds, *strides), constants)


def write_min_max(k: Tensor, digests: Tensor, pages: Tensor) -> None:
    """Write the min/max digests of blocks to their pages, in one launch; the twin of `reference.write_min_max`.

    k: [n, H, P, D].   digests: float32 [S, H, 2 * D].   pages: int64 [n], no two alike.
    Raises KernelError where a tensor does not fit. Pages are not looked at.
    """
    n, H, _, D = k.shape
    check("k", k, (None, None, None, None), *TL_DTYPES)
    check("digests", digests, (None, H, 2 * D), torch.float32)
    check("pages", pages, (n,), torch.int64)
    bounding_launch(k, digests, pages).run()


def write_key_codes(k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
    """Write the keys of blocks in 2 bits to their pages, in one launch; the twin of `reference.write_key_codes`.

    k: [n, H, P, D].   codes, bounds: uint8 [S, H, W, P, 4] and float16 [S, H, 2, D].   pages: int64 [n], no two alike.
    A key halfway between two codes may get the other one.   Raises KernelError as `write_min_max` does.
    """
    n, H, P, D = k.shape
    check("k", k, (None, None, None, None), *TL_DTYPES)
    check("codes", codes, (None, H, ceil_div(D, 16), P, 4), torch.uint8, rows=3)
    check("bounds", bounds, (codes.shape[0], H, 2, D), torch.float16, rows=2)
    check("pages", pages, (n,), torch.int64)
    coding_launch(k, codes, bounds, pages).run()
