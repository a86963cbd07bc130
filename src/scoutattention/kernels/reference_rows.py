"""What a decoder layer computes of each row, in plain PyTorch: for prompts, and to test the native kernels against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Rope


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Rows x [T, A] times weight^T.   weight: [B, A], or [T, B, A] where each row has its own, in the dtype of x."""
    return F.linear(x, weight) if weight.dim() == 2 else (weight @ x[..., None])[..., 0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide x [..., A] by its root mean square, in float32, then multiply by weight in the dtype of x.

    weight: float32 [A], or one for each of the axes before.
    """
    return weight.to(x.dtype) * F.rms_norm(x, x.shape[-1:], None, eps)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of heads x [T, heads, D], computed in float32 and returned in the dtype of x."""
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return torch.addcmul(wide * rope.cos[:, None], turned, rope.sin[:, None]).to(x.dtype)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2 * I], gate beside up: [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
