"""Every kernel in plain PyTorch: to read, and to test the fast ones against. Works in any float dtype, float64 too."""

import torch
from torch import Tensor

from ..types import BlockList, Partial


def partial(
    q: Tensor, k: Tensor, v: Tensor, blocks: BlockList, scale: float, *, with_mean_key: bool = False
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


def make_digests(k: Tensor) -> Tensor:
    """Min/max digests (Quest, arXiv 2406.10774, section 3.2) of full blocks.

    k: [..., P, D] keys.   Returns float32 [..., 2 * D]: the channel maxima, then the channel minima.
    """
    return torch.cat([k.amax(-2), k.amin(-2)], dim=-1).float()


def score_digests(q: Tensor, digests: Tensor, pages: Tensor) -> Tensor:
    """Upper bound of q . k over the keys of each block.

    q: [B, H, G, D].   digests: one layer, float32 [S, H, 2 * D].   pages: int32 [B, N], any valid page where unused.
    Returns float32 [B, H, G, N]: sum over channels of max(q * kmax, q * kmin).
    """
    bounds = torch.cat([q.float().clamp(min=0), q.float().clamp(max=0)], dim=-1)  # [B, H, G, 2D]
    return bounds @ digests[pages.long()].permute(0, 2, 3, 1)
