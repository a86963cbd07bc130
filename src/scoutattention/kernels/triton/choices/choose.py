"""Which blocks KV heads want, on the device: wishes from scores, and what a scout missed."""

import torch
from torch import Tensor

from ....types import GuardFinding, GuardRequest, TopBlocks
from ..base import LN2, Launch, ceil_div, check, padded, tl, triton
from ..join import CHUNK, due_blocks

LOG2E = tl.constexpr(1 / LN2)
LOWEST = tl.constexpr(-3.0e38)  # below every score, and finite: the difference of two is no NaN
WIDE = 256  # blocks of one program


@triton.jit
def _wish_kernel(
    scores: tl.tensor,
    closed: tl.tensor,
    wishes: tl.tensor,
    order: tl.tensor,
    H: int,
    N: int,
    sink: int,
    recent: int,
    G: tl.constexpr,
    G_PAD: tl.constexpr,
    LARGEST: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Program (row, tile): wishes for WIDE blocks of one sequence and KV head, and what orders them."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(closed + row // H)
    g = tl.arange(0, G_PAD)
    best = tl.full([G_PAD], LOWEST, tl.float32)
    total = tl.zeros([G_PAD], tl.float32)
    for start in range(0, N, WIDE):
        score = _scores_of(scores, row, start + tl.arange(0, WIDE), end, N, G, G_PAD, LARGEST)
        higher = tl.maximum(best, tl.max(score, axis=1))
        total = total * tl.exp2(best - higher) + tl.sum(tl.exp2(score - higher[:, None]), axis=1)
        best = higher
    n = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    score = _scores_of(scores, row, n, end, N, G, G_PAD, LARGEST)
    heads = 1 if LARGEST else G
    weight = tl.exp2(score - best[:, None]) / (tl.where(total > 0, total, 1.0) * heads)[:, None]
    wish = tl.sum(tl.where((g < heads)[:, None], weight, 0.0), axis=0)
    wish = tl.where(n < end, wish, 0.0)
    first = (n < sink) | (n >= end - recent)
    known = tl.where(wish >= 0, wish, -1.0)  # a wish that is no number counts as the smallest
    sort_by = tl.where(n < end, known + tl.where(first, 2.0, 0.0), float("-inf"))
    tl.store(wishes + row * N + n, wish, mask=n < N)
    tl.store(order + row * N + n, sort_by, mask=n < N)


@triton.jit
def _scores_of(
    scores: tl.tensor,
    row: tl.tensor,
    n: tl.tensor,
    end: tl.tensor,
    N: int,
    G: tl.constexpr,
    G_PAD: tl.constexpr,
    LARGEST: tl.constexpr,
) -> tl.tensor:
    """The scores of blocks n, base two: [G_PAD, blocks], -inf where there is none; LARGEST: in the first row alone."""
    g = tl.arange(0, G_PAD)
    there = (g < G)[:, None] & ((n < N) & (n < end))[None, :]
    score = tl.load(scores + (row * G + g)[:, None] * N + n[None, :], mask=there, other=float("-inf")) * LOG2E
    if LARGEST:
        score = tl.where((g == 0)[:, None], tl.max(score, axis=0)[None, :], float("-inf"))
    return score


@triton.jit
def _late_kernel(
    blocks: tl.tensor,
    absent: tl.tensor,
    wishes: tl.tensor,
    ahead: tl.tensor,
    served: tl.tensor,
    scout_error: tl.tensor,
    rows: tl.tensor,
    spoilt: tl.tensor,
    late: tl.tensor,
    counts: tl.tensor,
    limit: float,
    H: int,
    N: int,
    N_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Program (row): one sequence and KV head."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, N_PAD)
    counted = tl.load(rows + row // H) != 0
    bad = (tl.load(scout_error + row) <= limit) == 0
    due, _ = due_blocks(blocks, absent, wishes, ahead, served, row, bad, limit, N, N_PAD, CHUNK)
    due = due & (n < tl.where(counted, N, 0))
    number = tl.sum(due.to(tl.int64), axis=0)
    tl.store(spoilt + row, bad & counted)
    tl.store(late + row * N + n, due, mask=n < N)
    tl.store(counts + row, ((bad & counted) | (number > 0)).to(tl.int64))
    tl.store(counts + tl.num_programs(0) + row, number)


def wish_launch(
    scores: Tensor, closed: Tensor, wishes: Tensor, order: Tensor, always: tuple[int, int], *, largest: bool
) -> Launch:
    """The launch that fills `wishes` and what blocks are ordered by, float32 [B, H, N]."""
    B, H, G, N = scores.shape
    constants = {"G": G, "G_PAD": padded(G), "LARGEST": largest, "WIDE": WIDE}
    return Launch(_wish_kernel, (B * H, ceil_div(N, WIDE)), (scores, closed, wishes, order, H, N, *always), constants)


def top_blocks(scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool) -> TopBlocks:
    """The blocks that KV heads want most, in a launch, a top-k and a gather; the twin of `reference.top_blocks`.

    scores: float32 [B, H, G, N], contiguous.   closed: int64 [B].   Raises KernelError where a tensor does not fit.
    """
    check("scores", scores, (None, None, None, None), torch.float32, rows=4)
    B, H, _, N = scores.shape
    check("closed", closed, (B,), torch.int64)
    wishes, order = scores.new_empty((2, B, H, N))
    wish_launch(scores, closed, wishes, order, always, largest=largest).run()
    blocks = order.topk(count).indices
    return TopBlocks(blocks, wishes.gather(-1, blocks), wishes)


def late_launch(what: GuardRequest, result: GuardFinding) -> Launch:
    """The launch of `find_late`, which fills `result`."""
    B, H, N = what.wanted[0].shape
    tensors = (*what.wanted, *what.scouted, what.scout_error, what.rows, *result, what.counts)
    constants = {"N_PAD": padded(N), "CHUNK": min(CHUNK, padded(N))}
    return Launch(_late_kernel, (B * H,), (*tensors, what.limit, H, N), constants)


def find_late(what: GuardRequest) -> GuardFinding:
    """What a scout spoilt or missed, in one launch; the twin of `reference.find_late`.

    Raises KernelError where a tensor does not fit.
    """
    blocks, absent, wishes = what.wanted
    check("blocks", blocks, (None, None, None), torch.int64, rows=3)
    B, H, N = blocks.shape
    check("scouted", what.scouted[0], (B, H, N), torch.int64, rows=3)
    for name, mask in (("absent", absent), ("served", what.scouted[1])):
        check(name, mask, (B, H, N), torch.bool, rows=3)
    check("wishes", wishes, (B, H, N), torch.float32, rows=3)
    check("scout_error", what.scout_error, (B, H), torch.float32, rows=2)
    check("rows", what.rows, (B,), torch.bool)
    check("counts", what.counts, (2, B, H), torch.int64, rows=3)
    spoilt = torch.empty((B, H), dtype=torch.bool, device=blocks.device)
    result = GuardFinding(spoilt, torch.empty_like(absent))
    late_launch(what, result).run()
    return result
