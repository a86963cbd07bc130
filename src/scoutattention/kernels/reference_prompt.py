"""Causal attention of a prompt, by PyTorch's own kernels."""

from importlib import import_module

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of the last n of T tokens.   q: [n, H, G, D].   k, v: [T, H, D].

    Returns [n, H, G, D] in the dtype of k.

    A group's query heads read the same keys and values, and not copies of them. What knows of groups on a GPU are its
    kernels for 16 bits; asked for them in float32, PyTorch would make all n x T scores.
    """
    attend = causal_by_group if k.is_cuda and k.dtype.itemsize == 2 else causal_by_head
    return attend(q.to(k.dtype), k, v, scale)


def causal_by_group(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`causal` as one sequence of H * G query heads and H KV heads."""
    queries, keys, values = (t.transpose(0, 1)[None] for t in (q.flatten(1, 2), k, v))
    out = _attend(queries, keys, values, scale, groups=True)
    return out[0].transpose(0, 1).contiguous().view(q.shape)


def causal_by_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`causal` as H sequences of G heads, whose keys and values are in one place."""
    keys, values = (t.transpose(0, 1)[:, None].expand(-1, q.shape[2], -1, -1) for t in (k, v))
    out = _attend(q.permute(1, 2, 0, 3), keys, values, scale, groups=False)
    return out.permute(2, 0, 1, 3).contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, *, groups: bool) -> Tensor:
    """`causal` of q [..., n, D], k and v [..., T, D]."""
    n, T = q.shape[-2], k.shape[-2]
    if n == T:
        mask: Tensor | None = None
    elif k.is_cuda:  # a name of the mask, by which the kernel skips what is not seen
        bias = import_module("torch.nn.attention.bias")  # here: it loads PyTorch's compiler, which a CPU needs not
        mask = bias.causal_lower_right(n, T)
    else:
        mask = torch.ones(n, T, dtype=torch.bool, device=k.device).tril(T - n)
    return scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=groups)
