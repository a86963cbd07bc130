"""Keys and values of a pool's layer in the form that the native kernels take, which check the tensors themselves."""

from typing import NamedTuple

from torch import Tensor

from ..errors import KernelError
from .packed import Blocks, Packed

CODE_BITS = (4, 8)
"""Bits of a code that the native kernels read."""


class PoolLayer(NamedTuple):
    """Keys and values of one layer of a pool.

    k, v: [S, H, P, D] each, or the words of packed blocks, see `Packed`.   k_bounds, v_bounds: of packed blocks.
    bits: of a code; 0 where the blocks are not packed.   positions: P.
    """

    k: Tensor
    v: Tensor
    k_bounds: Tensor | None
    v_bounds: Tensor | None
    bits: int
    positions: int


def pool_layer(k: Blocks, v: Blocks) -> PoolLayer:
    """The layer of these keys and values, both packed alike or neither.   Raises KernelError where they differ."""
    if isinstance(k, Tensor) and isinstance(v, Tensor):
        return PoolLayer(k, v, None, None, 0, 0)
    if isinstance(k, Tensor) or isinstance(v, Tensor):
        raise KernelError("one of k and v is packed, and the other is not: both must be alike")
    _check_packed(k, v)
    return PoolLayer(k.words, v.words, k.bounds, v.bounds, k.bits, k.rows)


def _check_packed(k: Packed, v: Packed) -> None:
    if k.bits != v.bits or k.bits not in CODE_BITS:
        raise KernelError(f"k has {k.bits} bits a channel and v {v.bits}: both must have 4 or 8 alike")
    if k.by_token or not v.by_token:
        raise KernelError("k's words must go along the channels, and v's along the tokens")
    if k.shape != v.shape:
        raise KernelError(f"k is {list(k.shape)} and v {list(v.shape)}: packed keys and values must have one shape")
