"""What scouts missed. What they spoilt is `reference.doubt`."""

import torch
from torch import Tensor

from .choose import Choice


def unserved(wanted: Choice, absent: Tensor, scouted: Choice, served: Tensor, limit: float) -> Tensor:
    """Absent blocks that nobody attends to, in the KV heads that would give them more than `limit` of their attention.

    wanted: the true query's choice, of which `absent`, bool [B, H, N], has no slot.
    scouted: the scout's, of which `served`, bool [B, H, N], is what the CPU attends to.
    Returns bool [B, H, N], of the blocks of `wanted`.
    """
    attended = torch.zeros(wanted.wishes.shape, dtype=torch.bool).scatter_(-1, scouted.blocks, served)
    missed = absent & ~attended.gather(-1, wanted.blocks)
    part = (wanted.wishes.gather(-1, wanted.blocks) * missed).sum(-1, keepdim=True)
    return missed & (part > limit)
