"""What the native kernels refuse, with a KernelError, before they see an address."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import KernelError
from ..types import BlockList, Partial
from .packed import Blocks, Packed

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
BITS = {8: 3, 4: 4}
"""What the native side calls kinds of pages: dtypes, and bits a channel."""


def memory(blocks: Blocks) -> tuple[Tensor, Tensor | None, int]:
    """Where blocks are, their bounds if they are packed, and what the native side calls their kind."""
    if isinstance(blocks, Packed):
        return blocks.words, blocks.bounds, BITS[blocks.bits]
    return blocks, None, DTYPES[blocks.dtype]


class NativeCall(NamedTuple):
    """A partial's tensors as the extension takes them: addresses, sizes, and strides of all that is not contiguous."""

    pointers: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def native_call(q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, result: Partial) -> NativeCall:
    """What to pass for `check_pool`'s tensors, a list and the memory of a result; refuses lists that do not fit."""
    B, H, G, D = q.shape
    index, length = blocks
    check_table("blocks.index", index, (B, H))
    check_table("blocks.length", length, (B, H, index.shape[2]))
    (k_memory, k_bounds, kind), (v_memory, v_bounds, _) = memory(k), memory(v)
    tables = (k_memory, v_memory, k_bounds, v_bounds, index, length)
    pointers = tuple(0 if tensor is None else tensor.data_ptr() for tensor in (q, *tables, *result))
    sizes = (B, H, G, D, index.shape[2], k.shape[0], k.shape[2], kind)
    strides = tuple(stride for table in tables for stride in ((0, 0) if table is None else table.stride()[:2]))
    return NativeCall(pointers, sizes, strides)


def check_pool(q: Tensor, k: Blocks, v: Blocks) -> None:
    """Refuse queries that are not [B, H, G, D], and keys and values that are not [S, H, P, D] alike."""
    if isinstance(k, Packed) and isinstance(v, Packed):
        _check_packed(k, v)
    elif isinstance(k, Tensor) and isinstance(v, Tensor):
        _check_dtypes(k, v)
    else:
        raise KernelError("one of k and v is packed, and the other is not: both must be alike")
    if q.dim() != 4 or len(k.shape) != 4 or k.shape != v.shape or q.shape[1] != k.shape[1] or q.shape[3] != k.shape[3]:
        raise KernelError(
            f"q is {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)}: they must be [B, H, G, D], [S, H, P, D] "
            "and [S, H, P, D] with the same H and D"
        )
    if not q.is_cpu:
        raise KernelError(f"q is on {q.device}: it must be on the CPU")
    if q.shape[2] < 1 or q.shape[3] < 1:
        raise KernelError(f"q is {list(q.shape)}: G and D must be at least 1")
    for name, blocks in (("k", k), ("v", v)):
        _check_memory(name, blocks)


def _check_packed(k: Packed, v: Packed) -> None:
    if k.bits != v.bits or k.bits not in BITS:
        raise KernelError(f"k has {k.bits} bits a channel and v {v.bits}: both must have 4 or 8 alike")
    if k.by_token or not v.by_token:
        raise KernelError("k's words must go along the channels, and v's along the tokens")


def _check_dtypes(k: Tensor, v: Tensor) -> None:
    if k.dtype not in DTYPES or v.dtype != k.dtype:
        raise KernelError(f"k is {k.dtype} and v is {v.dtype}: both must be float32, bfloat16 or float16 alike")


def _check_memory(name: str, blocks: Blocks) -> None:
    _, H, P, D = blocks.shape
    if isinstance(blocks, Packed):
        along, across = (P, D) if blocks.by_token else (D, P)
        check_layer(f"{name}.words", blocks.words, torch.uint8, (H, -(-along * blocks.bits // 32), across, 4))
        check_layer(f"{name}.bounds", blocks.bounds, torch.float16, (H, 2, D))
    elif not blocks.is_cpu:
        raise KernelError(f"{name} is on {blocks.device}: it must be on the CPU")
    elif blocks.stride()[2:] != (D, 1):
        raise KernelError(f"{name} has strides {blocks.stride()}: the last two must be {(D, 1)}, that is, contiguous")


def check_table(name: str, table: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is not int32 [B, H, N], beginning with `shape`."""
    if table.dtype != torch.int32 or not table.is_cpu:
        raise KernelError(f"{name} is {table.dtype} on {table.device}: it must be int32 on the CPU")
    if table.dim() != 3 or table.shape[: len(shape)] != shape:
        raise KernelError(f"{name} is {list(table.shape)}: it must be [B, H, N], beginning with {list(shape)}")
    if table.shape[2] > 1 and table.stride(2) != 1:
        raise KernelError(f"{name} has strides {table.stride()}: the last must be 1")


def check_scored(q: Tensor, pages: Tensor) -> None:
    """Refuse queries that are not [B, H, G, D], and pages that are not int32 [B, N]."""
    if not q.is_cpu or q.dim() != 4 or q.shape[2] < 1 or q.shape[3] < 1:
        raise KernelError(f"q is {list(q.shape)} on {q.device}: it must be [B, H, G, D], no G or D of 0, on the CPU")
    if pages.dtype != torch.int32 or not pages.is_cpu:
        raise KernelError(f"pages is {pages.dtype} on {pages.device}: it must be int32 on the CPU")
    if pages.dim() != 2 or pages.shape[0] != q.shape[0]:
        raise KernelError(f"pages is {list(pages.shape)}: it must be [B, N] with B = {q.shape[0]}")
    if pages.shape[1] > 1 and pages.stride(1) != 1:
        raise KernelError(f"pages has strides {pages.stride()}: the last must be 1")


def check_layer(name: str, layer: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is not [S, *shape], or not contiguous in what one head of one page keeps."""
    if layer.dtype != dtype or not layer.is_cpu:
        raise KernelError(f"{name} is {layer.dtype} on {layer.device}: it must be {dtype} on the CPU")
    if layer.shape[1:] != shape:
        raise KernelError(f"{name} is {list(layer.shape)}: it must be [S, {', '.join(map(str, shape))}]")
    if layer.numel() and not layer[0, 0].is_contiguous():
        raise KernelError(f"{name} has strides {layer.stride()}: all but the first two axes must be contiguous")


def check_exact(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is not contiguous, of this dtype and shape, on the CPU."""
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous():
        raise KernelError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}: it must "
            f"be {dtype} {list(shape)}, contiguous, on the CPU"
        )
