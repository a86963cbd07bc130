"""CPU shares at the end of a step, on the device: what layers counted, when they recall, and wish thresholds."""

import torch
from torch import Tensor

from ...types import ShareCounts, ShareRequest
from ..reference_recall import FASTEST, GAIN
from .base import Launch, check, padded, tl, triton

FASTEST_SHARE, STEEPNESS = tl.constexpr(FASTEST), tl.constexpr(GAIN)


@triton.jit
def _count_kernel(
    counts: tl.tensor,
    true_query: tl.tensor,
    all_resident: tl.tensor,
    shares: tl.tensor,
    totals: tl.tensor,
    kind_s: int,
    layer_s: int,
    mask_l: int,
    L: int,
    B: int,
    H: int,
    GUARDED: tl.constexpr,
    L_PAD: tl.constexpr,
    H_PAD: tl.constexpr,
) -> None:
    """Program (sequence): its counts of all layers and heads."""
    b = tl.program_id(0)
    l = tl.arange(0, L_PAD)  # noqa: E741
    h = tl.arange(0, H_PAD)[None, :]
    there = (l < L)[:, None] & (h < H)
    at = counts + l[:, None] * layer_s + b * H + h
    late = tl.sum(tl.load(at + 2 * kind_s + B * H, mask=there, other=0))
    counted = tl.load(true_query + l * mask_l + b, mask=l < L, other=0) != 0
    counted = counted | (tl.load(all_resident + b) != 0)
    for side in tl.static_range(2):
        scouted = tl.sum(tl.load(at + side * B * H, mask=there, other=0), axis=1)
        asked = tl.sum(tl.load(at + kind_s + side * B * H, mask=there, other=0), axis=1)
        seen = asked if GUARDED else asked + scouted
        to = shares + side * (L + 1) * B + b
        tl.store(to + l * B, seen, mask=l < L)
        served = tl.sum(scouted + tl.where(counted, asked, 0)) + late
        tl.store(to + L * B, served)
        tl.atomic_add(totals + side, served)
    tl.atomic_add(totals + 2, tl.sum(tl.load(at + 2 * kind_s, mask=there, other=0)))


@triton.jit
def _follow_kernel(
    shares: tl.tensor,
    rows: tl.tensor,
    progress: tl.tensor,
    threshold: tl.tensor,
    due: tl.tensor,
    recalls: tl.tensor,
    pace: float,
    limit: float,
    lowest: float,
    highest: float,
    L: int,
    B: int,
    R: int,
    BY_SHARE: tl.constexpr,
    LIMITED: tl.constexpr,
    L_PAD: tl.constexpr,
) -> None:
    """Program (sequence): all of its layers, and its wish threshold."""
    b = tl.program_id(0)
    row = tl.load(rows + b)
    l = tl.arange(0, L_PAD)  # noqa: E741
    chosen = tl.load(shares + l * B + b, mask=l < L, other=0).to(tl.float32)
    far = tl.load(shares + (L + 1 + l) * B + b, mask=l < L, other=0).to(tl.float32)
    step = tl.zeros([L_PAD], tl.float32) + pace
    if BY_SHARE:
        step = tl.div_rn(far, tl.maximum(chosen * pace, 1e-9))
    so_far = tl.load(progress + l * R + row, mask=l < L, other=0.0) + step
    now = (so_far >= 1.0) & (l < L)
    tl.store(progress + l * R + row, tl.where(now, 0.0, so_far), mask=l < L)
    tl.store(due + l * B + b, now, mask=l < L)
    tl.atomic_add(recalls, tl.sum(now.to(tl.int64)))
    if LIMITED:
        every = tl.maximum(tl.load(shares + L * B + b), 1).to(tl.float32)
        excess = tl.div_rn(tl.div_rn(tl.load(shares + (2 * L + 1) * B + b).to(tl.float32), every), limit)
        moved = tl.load(threshold + row) * tl.exp((tl.minimum(excess, FASTEST_SHARE) - 1.0) * STEEPNESS)
        tl.store(threshold + row, tl.minimum(tl.maximum(moved, lowest), highest))


def count_launch(what: ShareCounts, shares: Tensor) -> Launch:
    """The launch of `count_shares`, which fills `shares`."""
    _, L, _, B, H = what.counts.shape
    tensors = (what.counts, what.true_query, what.all_resident, shares, what.totals)
    arguments = (*tensors, *what.counts.stride()[:2], what.true_query.stride(0), L, B, H)
    constants = {"GUARDED": what.guarded, "L_PAD": padded(L), "H_PAD": padded(H)}
    return Launch(_count_kernel, (B,), arguments, constants)


def count_shares(what: ShareCounts) -> Tensor:
    """Sum what a step's layers counted, in one launch; the twin of `reference_recall.count_shares`.

    Raises KernelError where a tensor does not fit.
    """
    check("counts", what.counts, (3, None, 2, None, None), torch.int64, rows=3)
    _, L, _, B, _ = what.counts.shape
    check("true_query", what.true_query, (L, B), torch.bool)
    check("all_resident", what.all_resident, (1, B), torch.bool)
    check("totals", what.totals, (3,), torch.int64)
    shares = what.counts.new_empty((2, L + 1, B))
    count_launch(what, shares).run()
    return shares


def follow_launch(what: ShareRequest, due: Tensor) -> Launch:
    """The launch of `follow_shares`, which fills `due`."""
    policy, (L, B) = what.policy, due.shape
    by_share = policy.target is not None and policy.interval > 0
    pace = 1 / policy.interval if policy.interval else 0.0
    if policy.target is not None and policy.interval > 0:
        pace = policy.target * policy.interval
    tensors = (what.shares, what.rows, what.progress, what.threshold, due, what.recalls)
    arguments = (*tensors, pace, policy.limit or 1.0, policy.lowest, policy.highest, L, B, what.progress.shape[1])
    constants = {"BY_SHARE": by_share, "LIMITED": policy.limit is not None, "L_PAD": padded(L)}
    return Launch(_follow_kernel, (B,), arguments, constants)


def follow_shares(what: ShareRequest) -> Tensor:
    """Which layers and sequences are due for recall, in one launch; the twin of `reference_recall.follow_shares`.

    Raises KernelError where a tensor does not fit.
    """
    check("progress", what.progress, (None, None), torch.float32, rows=2)
    L, R = what.progress.shape
    check("shares", what.shares, (2, L + 1, None), torch.int64, rows=3)
    B = what.shares.shape[2]
    check("rows", what.rows, (B,), torch.int64)
    check("threshold", what.threshold, (R,), torch.float32)
    check("recalls", what.recalls, (), torch.int64, rows=0)
    due = torch.empty((L, B), dtype=torch.bool, device=what.shares.device)
    follow_launch(what, due).run()
    return due
