"""What a decoder layer computes of each row, in plain PyTorch: for prompts, and to test the native kernels against."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.stored import StoredMatrix, in_order
from ..types import Rope
from . import reference_stored
from .reference_stored import Fill

expand = reference_stored.expand
PRODUCT_TILE = 1 << 22
"""Numbers of a stored matrix that are expanded for a product at once, about: fewer are multiplied more slowly."""


class HeadPlacing(NamedTuple):
    """How the heads of a projection, [T, Q + 2 H, D], become queries, keys and values; or [T, Q, D] queries alone.

    queries: Q.   bias: [(Q + 2 H) * D], added to all of them, or None.   norm: float32 [Q + H, D], the weights of the
    norms of queries and keys, or None; eps: of these norms.   rope: of the tokens, for queries and keys.
    paired: of queries and keys, and of their bias, the two channels that rotate together follow one another.
    """

    queries: int
    bias: Tensor | None
    norm: Tensor | None
    eps: float
    rope: Rope
    paired: bool = False


class LayerEnd(NamedTuple):
    """What follows a layer's attention: the output product, the feed-forward part, and the norm that comes next.

    output: [E, A].   gate_up: [2 * I, E], gate, then up.   down: [E, I]; each matrix may be stored in blocks.
    post_norm, next_norm: float32 [E].   eps: of both norms.
    """

    output: Tensor | StoredMatrix
    post_norm: Tensor
    gate_up: Tensor | StoredMatrix
    down: Tensor | StoredMatrix
    next_norm: Tensor
    eps: float


class RowCorrection(NamedTuple):
    """What is added to rows z [T, A]: z @ left.T @ right.T, of low rank C.

    left, right: [C, A] and [A, C], or one of each for each row: [T, C, A] and [T, A, C].
    used: bool [T], rows that are corrected; None is all.
    """

    left: Tensor
    right: Tensor
    used: Tensor | None = None


def linear(x: Tensor, weight: Tensor | StoredMatrix, fill: Fill | None = None, numbers: int = PRODUCT_TILE) -> Tensor:
    """Rows x [T, A] times weight^T.   weight: [B, A], or [T, B, A] where each row has its own, in the dtype of x.

    Of a stored matrix [B, A], about so many `numbers` at a time are expanded to the dtype of x.   fill: see `expand`.
    """
    if isinstance(weight, StoredMatrix):
        x, weight = in_order(x, weight)
        out = x.new_empty(len(x), weight.shape[0])
        lines = max(1, numbers // max(weight.columns, 1))
        for first in range(0, weight.shape[0], lines):
            tile = expand(weight, slice(first, first + lines), x.dtype, fill)
            torch.mm(x, tile.T, out=out[:, first : first + lines])
        return out
    return F.linear(x, weight) if weight.dim() == 2 else (weight @ x[..., None])[..., 0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide x [..., A] by its root mean square, in float32, then multiply by weight in the dtype of x.

    weight: float32 [A], or one for each of the axes before.
    """
    return weight.to(x.dtype) * F.rms_norm(x, x.shape[-1:], None, eps)


def corrected_norm(x: Tensor, weight: Tensor, eps: float, by: Sequence[RowCorrection]) -> Tensor:
    """The norm of x [T, A], see `rms_norm`, with what corrections change it by."""
    return corrected(rms_norm(x, weight, eps), by, linear)


def corrected(z: Tensor, by: Sequence[RowCorrection], linear: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Rows z [T, A] with what each correction, by itself, changes them by.   linear: as the function of this name."""
    total = z
    for left, right, used in by:
        change = linear(linear(z, left), right)
        total = total + (change if used is None else change * used[:, None])
    return total


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of heads x [T, heads, D], computed in float32 and returned in the dtype of x."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.addcmul(wide * rope.cos[:, None], turned, rope.sin[:, None]).to(x.dtype)


def unpaired(x: Tensor) -> Tensor:
    """Heads x [..., D] of channels in pairs that rotate together: all first channels, then all second ones."""
    return x.view(*x.shape[:-1], -1, 2).mT.flatten(-2)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2 * I], gate beside up: [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def add_norm(x: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x [T, A] and its change, and the norm of the sum; see `rms_norm`."""
    x = x + change
    return x, rms_norm(x, weight, eps)


def place_heads(x: Tensor, how: HeadPlacing) -> tuple[Tensor, Tensor, Tensor]:
    """Projected heads x [T, Q + 2 H, D] with their bias, norms and rotary embedding: queries, keys and values.

    Returns [T, Q, D], [T, H, D] and [T, H, D].
    """
    rotated = (x.shape[1] + how.queries) // 2
    if how.bias is not None:
        x = x + how.bias.view(x.shape[1:])
    heads = unpaired(x[:, :rotated]) if how.paired else x[:, :rotated]
    if how.norm is not None:
        heads = rms_norm(heads, how.norm[:rotated], how.eps)
    return rotate(heads[:, : how.queries], how.rope), rotate(heads[:, how.queries :], how.rope), x[:, rotated:]
