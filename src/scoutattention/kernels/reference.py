"""Every kernel in plain PyTorch: to read, and to test the fast ones against. Works in any float dtype, float64 too."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..runtime.packed import Blocks, from_codes, from_words, to_codes, to_words
from ..types import BlockList, GuardFinding, GuardRequest, Partial, SplitChoice, SplitRequest, TopBlocks
from .requests import CodesRequest

TOGETHER = 64
"""Blocks with different bases that are multiplied together: each takes a copy of its basis along."""


def partial(
    q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float, *, with_mean_key: bool = False
) -> Partial:
    """Attention of every query to the listed blocks of a pool.

    q: [B, H, G, D].   k, v: one layer of a pool, [S, H, P, D].   Raises nothing: an empty list gives lse = -inf.
    """
    B, H, G, _ = q.shape
    dtype = q.dtype if q.dtype == torch.float64 else torch.float32
    heads = torch.arange(H, device=q.device)[None, :, None].expand(B, H, blocks.index.shape[-1])
    valid = torch.arange(k.shape[2], device=q.device) < blocks.length[..., None]  # [B, H, N, P]
    index = torch.where(blocks.length > 0, blocks.index, 0).long()
    keys = k[index, heads].to(dtype).flatten(2, 3)  # [B, H, N * P, D]
    values = v[index, heads].to(dtype).flatten(2, 3)
    mask = valid.flatten(2)[..., None]
    scores = (q.to(dtype) @ keys.masked_fill(~mask, 0).transpose(2, 3)) * scale
    scores = scores.masked_fill(~mask.transpose(2, 3), -torch.inf)
    lse = torch.logsumexp(scores, dim=-1) if scores.shape[-1] else q.new_full((B, H, G), -torch.inf, dtype=dtype)
    weights = torch.exp(scores - torch.where(torch.isinf(lse), 0, lse)[..., None])
    out = weights @ values.masked_fill(~mask, 0)
    mean_key = weights @ keys.masked_fill(~mask, 0) if with_mean_key else None
    return Partial(out, lse, mean_key)


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint sets of keys, from attention over each.

    Associative and commutative; a side without keys (lse = -inf) leaves the other as it is.
    """
    lse = torch.logaddexp(a.lse, b.lse)
    base = torch.where(torch.isinf(lse), 0, lse)
    weight_a, weight_b = torch.exp(a.lse - base)[..., None], torch.exp(b.lse - base)[..., None]
    return Partial(a.out * weight_a + b.out * weight_b, lse)


def corrected(far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
    """What `far`, attended with the scout q_hat, weighs for the true query q, to first order in q - q_hat.

    The gradient of the lse is the mean key times the scale.   far: with mean_key.   q, q_hat: [B, H, G, D].
    """
    assert far.mean_key is not None
    dtype = far.lse.dtype
    shift = ((q.to(dtype) - q_hat.to(dtype)) * far.mean_key).sum(-1) * scale
    return far._replace(lse=far.lse + shift)


def scout_error(far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
    """How much a wrong scout q_hat may have spoilt each KV head, [B, H]: the most of what it may have its query heads.

    For each of them, the weight of `far` in its merge with `near`, which bounds what any error can do, times the
    scout's error relative to the true query q.   q, q_hat: [B, H, G, D].
    """
    weight = (far.lse - torch.logaddexp(far.lse, near.lse)).exp()
    error = (q - q_hat).float().norm(dim=-1) / q.float().norm(dim=-1)
    most: Tensor = (weight * error).amax(-1)
    return most


def project(q: Tensor, basis: Tensor) -> Tensor:
    """Products of queries q [B, H, G, D] with the rows of matrices, float32 [B, H, C, D]."""
    return _wide(q) @ basis.to(_wide(q).dtype).mT


def min_max(k: Tensor) -> Tensor:
    """Min/max digests (Quest, arXiv 2406.10774, section 3.2) of full blocks.

    k: [..., P, D] keys.   Returns float32 [..., 2 * D]: the channel maxima, then the channel minima.
    """
    return torch.cat([k.amax(-2), k.amin(-2)], dim=-1).float()


def write_min_max(k: Tensor, digests: Tensor, pages: Tensor) -> None:
    """Write the min/max digests of blocks to their pages.   k: [n, H, P, D].   digests: [S, H, 2 * D].   pages: [n]."""
    digests[pages] = min_max(k)


def score_min_max(q: Tensor, digests: Tensor, pages: Tensor) -> Tensor:
    """Upper bound of q . k over the keys of each block.

    q: [B, H, G, D].   digests: one layer, float32 [S, H, 2 * D].   pages: int32 [B, H, N], any valid page where unused.
    Returns float32 [B, H, G, N]: sum over channels of max(q * kmax, q * kmin).
    """
    q = _wide(q)
    bounds = torch.cat([q.clamp(min=0), q.clamp(max=0)], dim=-1)  # [B, H, G, 2D]
    return bounds @ digests[_of_heads(pages)].mT.to(q.dtype)


def key_codes(k: Tensor) -> tuple[Tensor, Tensor]:
    """Keys in 2 bits a channel, each block and channel on its own scale.

    k: [..., P, D].   Returns codes uint8 [..., W, P, 4] with W = ceil(D / 16), see `to_words`, and bounds float16
    [..., 2, D], see `to_codes`: the channels' least values, and their steps.
    """
    low, high = k.float().amin(-2), k.float().amax(-2)
    bounds = torch.stack([low, (high - low) / 3], dim=-2).to(torch.float16)
    return to_words(to_codes(k, bounds, 2), 2), bounds


def in_basis(what: CodesRequest) -> Iterator[tuple[Tensor, Tensor]]:
    """What is kept of a request's blocks, [m, H, P, C], and the pages of some of them after others."""
    k, basis, _, _, pages = what
    if basis is None or not len(k):
        yield k, pages
        return
    matrices, which = basis
    if len(which) == 1:
        (one,) = matrices[which]
        main = k.float().transpose(0, 1).flatten(1, 2) @ one.mT  # [H, n * P, C]
        yield main.unflatten(1, (len(k), k.shape[2])).transpose(0, 1), pages
        return
    for keys, there, some in zip(*(torch.split(each, TOGETHER) for each in (k, pages, which)), strict=True):
        yield keys.float() @ matrices[some].mT, there


def write_key_codes(what: CodesRequest) -> None:
    """Write what `key_codes` makes of blocks to their pages."""
    for k, pages in in_basis(what):
        what.codes[pages], what.bounds[pages] = key_codes(k)


def score_key_codes(q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> Tensor:
    """Log-sum-exp of q . k over each block's keys, the keys as `key_codes` kept them.

    q: [B, H, G, D], scaled.   codes, bounds: one layer, [S, H, W, P, 4] and [S, H, 2, D].   pages: int32 [B, H, N].
    Returns float32 [B, H, G, N].
    """
    places = _of_heads(pages)
    keys = from_codes(from_words(codes[places], 2, q.shape[-1]), bounds[places])  # [B, H, N, P, D]
    return torch.einsum("bhgd,bhnpd->bhgnp", _wide(q), keys.to(_wide(q).dtype)).logsumexp(-1)


def score_exactly(q: Tensor, k: Blocks, pages: Tensor) -> Tensor:
    """Log-sum-exp of q . k over each block's keys.   k: one layer of a pool, [S, H, P, D]; see `score_key_codes`."""
    keys = k[_of_heads(pages)].float()
    return torch.einsum("bhgd,bhnpd->bhgnp", q.float(), keys).logsumexp(-1)


def top_blocks(scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool) -> TopBlocks:
    """The `count` blocks that each KV head wants most, and its wishes.

    A wish is the part of its attention that a KV head would give to a block, as far as the scores tell.
    scores: float32 [B, H, G, N].   closed: int64 [B], blocks that each sequence has, at most N.
    always: so many first and last blocks come before all others.
    largest: one softmax over the blocks, of the largest score of any head; else the mean of each head's own softmax, so
        that one head's large scores do not silence the others.
    Blocks that do not exist come last, and their wishes are 0. A wish that is no number counts as the smallest.
    """
    block, end = torch.arange(scores.shape[-1], device=scores.device), closed[:, None, None]
    beyond = block >= end
    scores = scores.amax(2, keepdim=True) if largest else scores
    wishes = scores.masked_fill(beyond[:, None], -torch.inf).softmax(-1).mean(2).masked_fill(beyond, 0)
    first = (block < always[0]) | (block >= end - always[1])
    blocks = (wishes.nan_to_num(-1) + 2.0 * first).masked_fill(beyond, -torch.inf).topk(count).indices
    return TopBlocks(blocks, wishes.gather(-1, blocks), wishes)


def split_choice(what: SplitRequest) -> SplitChoice:
    """The chosen blocks, which of them are attended to, and which of these are absent; fills `what.counts`."""
    (slot_of, none), (asked, all_of_it, threshold) = what.slots, (t[:, None, None] for t in what.rows)
    count = what.wishes.shape[-1]
    blocks = what.candidates[..., :count] if what.picks is None else what.candidates.gather(-1, what.picks)
    absent = slot_of.gather(-1, blocks) == none
    first = torch.arange(count, device=blocks.device) < what.always
    wished = (what.wishes >= threshold) | first
    attended = (blocks < what.closed[:, None, None]) & asked & (~absent | all_of_it | wished)
    absent = absent & attended
    what.counts.copy_(torch.stack([attended.sum(-1), absent.sum(-1)]))
    return SplitChoice(blocks.contiguous(), attended, absent)


def update_interest(interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
    """Change `interest` [B, H, NB] to its running mean with wishes, in the rows of bool [B].

    blocks, wishes: int64 and float32 [B, H, N], no block twice; the wishes for all other blocks are 0.
        Those of other rows may be anything.
    """
    asked = rows[:, None, None]
    changed = (kept * interest).scatter_add(-1, blocks.where(asked, 0), (1 - kept) * wishes)
    interest.copy_(torch.where(asked, changed, interest))


def find_late(what: GuardRequest) -> GuardFinding:
    """The heads that a scout spoilt, and the wanted blocks that it missed; fills `what.counts`.

    A head is spoilt where its scout error is above the limit, or no number. Late are all its absent blocks; in other
    heads the blocks that the scout missed, if the wishes for them sum up to more than the limit.
    """
    (blocks, absent, wishes), (scouted, served) = what.wanted, what.scouted
    seen = (blocks[..., :, None] == scouted.masked_fill(~served, -1)[..., None, :]).any(-1)
    missed = absent & ~seen
    part = (wishes * missed).sum(-1, keepdim=True)
    spoilt = ~(what.scout_error <= what.limit) & what.rows[:, None]
    late = ((absent & spoilt[..., None]) | (missed & (part > what.limit))) & what.rows[:, None, None]
    what.counts.copy_(torch.stack([(spoilt | late.any(-1)).long(), late.sum(-1)]))
    return GuardFinding(spoilt, late)


def _of_heads(pages: Tensor) -> tuple[Tensor, Tensor]:
    """What selects the pages of each KV head, int32 [B, H, N], from a layer [S, H, ...]."""
    return pages.long(), torch.arange(pages.shape[1], device=pages.device)[:, None]


def _wide(q: Tensor) -> Tensor:
    return q if q.dtype == torch.float64 else q.float()
