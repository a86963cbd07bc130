"""A layer's parts put together on the device, in one launch: near, far, and what the guard has attended to late."""

import torch
from torch import Tensor

from ...types import Partial
from ..requests import JoinRequest, LayerGuard
from .base import TL_DTYPES, Launch, arithmetic, check, check_alike, padded, tl, triton
from .partial import LOG2E, LOWEST, fold, natural, plain_pair

CHUNK = 64  # blocks that others are compared with at a time
TOKENS = 64  # of late blocks that are attended to at a time


@triton.jit
def _join_kernel(
    q: tl.tensor,
    q_hat: tl.tensor,
    near_out: tl.tensor,
    near_lse: tl.tensor,
    far_out: tl.tensor,
    far_lse: tl.tensor,
    mean_key: tl.tensor,
    blocks: tl.tensor,
    absent: tl.tensor,
    wishes: tl.tensor,
    ahead: tl.tensor,
    served: tl.tensor,
    rows: tl.tensor,
    counts: tl.tensor,
    table: tl.tensor,
    late: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    scale: float,
    limit: float,
    table_b: int,
    pool_s: int,
    pool_h: int,
    H: int,
    N: int,
    G: tl.constexpr,
    G_PAD: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    N_PAD: tl.constexpr,
    P: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    CORRECT: tl.constexpr,
    GUARD: tl.constexpr,
    DOT: tl.constexpr,
) -> None:
    """Program (row): the query heads of one sequence and KV head. `late` is its own memory, N pages."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // H, row % H
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    seen = (g < G)[:, None] & (d < D)[None, :]
    place = (row * G + g)[:, None] * D + d[None, :]
    true = tl.load(q + place, mask=seen, other=0.0)
    near = tl.load(near_lse + row * G + g, mask=g < G, other=0.0)
    far = tl.load(far_lse + row * G + g, mask=g < G, other=0.0)
    change = true.to(tl.float32) - tl.load(q_hat + place, mask=seen, other=0.0).to(tl.float32)
    if CORRECT:
        far += tl.sum(change * tl.load(mean_key + place, mask=seen, other=0.0), axis=1) * scale
    best = tl.full([G_PAD], LOWEST, tl.float32)
    total = tl.zeros([G_PAD], tl.float32)
    acc = tl.zeros([G_PAD, D_PAD], tl.float32)
    spoilt = 0
    if GUARD:
        size = tl.sum(true.to(tl.float32) * true.to(tl.float32), axis=1)
        spoilt = _spoilt(near, far, tl.sum(change * change, axis=1), size, limit, G, G_PAD)
        spoilt = tl.where(tl.load(rows + b) != 0, spoilt, 0)
        due, block = due_blocks(blocks, absent, wishes, ahead, served, row, spoilt, limit, N, N_PAD, CHUNK)
        due = due & (tl.arange(0, N_PAD) < tl.where(tl.load(rows + b) != 0, N, 0))
        number = tl.sum(due.to(tl.int32), axis=0)
        tl.store(counts + row, ((spoilt != 0) | (number > 0)).to(tl.int64))
        tl.store(counts + tl.num_programs(0) + row, number.to(tl.int64))
        page = tl.load(table + b * table_b + block, mask=due, other=0)
        tl.store(late + row * N + tl.cumsum(due.to(tl.int32), axis=0) - 1, page, mask=due)
        tl.debug_barrier()  # before other threads read what was stored
        for start in range(0, number * P, TOKENS):
            token = start + tl.arange(0, TOKENS)
            there = token < number * P
            slot = tl.load(late + row * N + token // P, mask=there, other=0).to(tl.int64)
            mask = there[:, None] & (d < D)[None, :]
            keys_at = (slot * pool_s + h * pool_h + token % P * D)[:, None] + d[None, :]
            keys = tl.load(k + keys_at, mask=mask, other=0.0).to(DOT)
            scores = tl.dot(true.to(DOT), tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
            scores = tl.where(there[None, :], scores, float("-inf"))
            values = tl.load(v + keys_at, mask=mask, other=0.0).to(DOT)
            best, total, fade, weights = fold(best, total, scores, 1)
            acc = acc * fade[:, None] + tl.dot(weights.to(DOT), values, input_precision="ieee")
    far = tl.where(spoilt != 0, float("-inf"), far)
    late_lse = natural(best, total)
    near_part, far_part, late_part, whole = _parts(near, far, late_lse)
    kept = seen & (d < tl.where(spoilt != 0, 0, D))[None, :]
    result = tl.load(near_out + place, mask=seen, other=0.0) * near_part[:, None]
    result += tl.load(far_out + place, mask=kept, other=0.0) * far_part[:, None]
    result += acc * (late_part / tl.where(total > 0, total, 1.0))[:, None]
    tl.store(out + place, result, mask=seen)
    tl.store(lse + row * G + g, whole, mask=g < G)


@triton.jit
def _parts(near: tl.tensor, far: tl.tensor, late: tl.tensor) -> tuple[tl.tensor, ...]:
    """What each of three log-sum-exps is of their sum, and the log-sum-exp of all."""
    base = tl.maximum(tl.maximum(near, far), late)
    base = tl.where(base == float("-inf"), 0.0, base)
    weight, far_weight, late_weight = tl.exp(near - base), tl.exp(far - base), tl.exp(late - base)
    whole = weight + far_weight + late_weight
    some = tl.where(whole > 0, whole, 1.0)
    lse = tl.where(whole > 0, base + tl.log(some), float("-inf"))
    return weight / some, far_weight / some, late_weight / some, lse


@triton.jit
def due_blocks(
    blocks: tl.tensor,
    absent: tl.tensor,
    wishes: tl.tensor,
    ahead: tl.tensor,
    served: tl.tensor,
    row: tl.tensor,
    spoilt: tl.tensor,
    limit: float,
    N: int,
    N_PAD: tl.constexpr,
    CHUNK: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Which wanted blocks are to be attended to late, and the blocks: all absent ones, or those that were missed.

    Every wanted block is compared with CHUNK that were served at a time.
    """
    n = tl.arange(0, N_PAD)
    block = tl.load(blocks + row * N + n, mask=n < N, other=-1)
    gone = tl.load(absent + row * N + n, mask=n < N, other=0) != 0
    seen = tl.zeros([N_PAD], tl.int32)
    for start in range(0, N, CHUNK):
        m = start + tl.arange(0, CHUNK)
        scouted = tl.load(ahead + row * N + m, mask=m < N, other=-2)
        attended = tl.load(served + row * N + m, mask=m < N, other=0) != 0
        same = (block[:, None] == scouted[None, :]) & attended[None, :]
        seen = tl.maximum(seen, tl.max(same.to(tl.int32), axis=1))
    missed = gone & (seen == 0)
    part = tl.sum(tl.load(wishes + row * N + n, mask=missed, other=0.0), axis=0)
    return tl.where(spoilt != 0, gone, missed & (n < tl.where(part > limit, N, 0))), block


@triton.jit
def _spoilt(
    near: tl.tensor,
    far: tl.tensor,
    change: tl.tensor,
    size: tl.tensor,
    limit: float,
    G: tl.constexpr,
    G_PAD: tl.constexpr,
) -> tl.tensor:
    """1 where any query head's far weight times its scout's relative error is above the limit, or no number."""
    base = tl.maximum(far, near)
    weight = tl.exp(far - base) / (tl.exp(far - base) + tl.exp(near - base))
    fine = weight * tl.sqrt(change / size) <= limit
    return tl.max(tl.where((tl.arange(0, G_PAD) >= G) | fine, 0, 1), axis=0)


def join_launch(what: JoinRequest, result: Partial, late: Tensor) -> Launch:
    """The launch of `join`, which fills `result`.   late: int32 [B, H, N], memory for the kernel."""
    B, H, G, D = what.q.shape
    guard, far = what.guard, what.far
    mean_key = far.out if far.mean_key is None else far.mean_key
    lists: tuple[Tensor, ...] = (late,) * 8
    pool = (what.q, what.q)
    numbers: tuple[float, ...] = (0.0, 0, 0, 0)
    N, P = 1, 1
    if guard is not None:
        lists = (*guard.wanted, *guard.scouted, guard.rows, guard.counts, guard.table)
        pool, N = plain_pair(*guard.pool), guard.wanted[0].shape[2]
        P = pool[0].shape[2]
        numbers = (guard.limit, guard.table.stride(0), *pool[0].stride()[:2])
    scout = what.q if what.scout is None else what.scout
    tensors = (what.q, scout, *what.near[:2], *far[:2], mean_key, *lists, late, *pool, *result[:2])
    small = pool[0].dtype.itemsize == 2 and D <= 128
    constants = {
        "G": G,
        "G_PAD": padded(G, 16),
        "D": D,
        "D_PAD": padded(D, 16),
        "N_PAD": padded(N, 16),
        "P": P,
        "CHUNK": min(CHUNK, padded(N)),
        "TOKENS": TOKENS if small else TOKENS // 2,
        "DOT": arithmetic(pool[0].dtype),
        "CORRECT": far.mean_key is not None,
        "GUARD": guard is not None,
    }
    arguments = (*tensors, what.scale, *numbers, H, N)
    return Launch(_join_kernel, (B * H,), arguments, constants, warps=4 if small else 8, stages=3)


def join(what: JoinRequest) -> Partial:
    """A layer's attention from its parts, in one launch; the twin of `plain.join`.

    q, scout: contiguous, any float dtype.   guard.pool: strided alike, not packed.   Raises KernelError where a tensor
    does not fit. Pages are not looked at.
    """
    q, near, far, scout, _, guard = what
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    B, H, G, D = q.shape
    for name, side in (("near", near), ("far", far)):
        check(f"{name}.out", side.out, (B, H, G, D), torch.float32, rows=4)
        check(f"{name}.lse", side.lse, (B, H, G), torch.float32, rows=3)
    if far.mean_key is not None:
        check("far.mean_key", far.mean_key, (B, H, G, D), torch.float32, rows=4)
    if scout is not None:
        check("scout", scout, (B, H, G, D), *TL_DTYPES, rows=4)
    late = torch.empty((B, H, 1), dtype=torch.int32, device=q.device)
    if guard is not None:
        _check_guard(guard, B, H, D)
        late = late.new_empty(guard.wanted[0].shape)
    result = Partial(torch.empty_like(q), q.new_empty((B, H, G), dtype=torch.float32))
    join_launch(what, result, late).run()
    return result


def _check_guard(guard: LayerGuard, B: int, H: int, D: int) -> None:
    blocks, absent, wishes = guard.wanted
    (k, v), N = plain_pair(*guard.pool), blocks.shape[-1]
    for name, tensor in (("blocks", blocks), ("scouted", guard.scouted[0])):
        check(name, tensor, (B, H, N), torch.int64, rows=3)
    for name, tensor in (("absent", absent), ("served", guard.scouted[1])):
        check(name, tensor, (B, H, N), torch.bool, rows=3)
    check("wishes", wishes, (B, H, N), torch.float32, rows=3)
    check("rows", guard.rows, (B,), torch.bool)
    check("counts", guard.counts, (2, B, H), torch.int64, rows=3)
    check("table", guard.table, (B, None), torch.int32)
    check("k", k, (None, H, None, D), *TL_DTYPES, rows=2)
    check_alike("k and v", k, v)
