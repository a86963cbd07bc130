"""Small passes over ranked blocks, native: nearly all call overhead, in every layer of every step.

All raise KernelError where a tensor does not fit, or names a block that is not there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import KernelError
from ...runtime.workers import Workers
from ...types import Lateness, Sifting


class Sifted(NamedTuple):
    """See `reference.sift`.   valid, absent: bool [B, H, N].   counts: int64 [2, B, H], of both."""

    valid: Tensor
    absent: Tensor
    counts: Tensor


class Late(NamedTuple):
    """See `reference.find_late`.   spoilt: bool [B, H].   late: bool [B, H, N].

    counts: int64 [2, B, H], 1 where there is either, and late blocks.
    """

    spoilt: Tensor
    late: Tensor
    counts: Tensor


def sift(workers: Workers, what: Sifting) -> Sifted:
    """See `reference.sift`."""
    blocks, wishes, closed, slots, rows, always = what
    slot_of, none = slots
    asked, all_of_it, least = rows
    (B, H, N), (_, _, W), (_, _, width) = (_dims(tensor) for tensor in (blocks, wishes, slot_of))
    _check("wishes", wishes, torch.float32, (B, H, W))
    _check("closed", closed, torch.int64, (B,))
    _check("slot_of", slot_of, torch.int64, (B, H, width))
    _check("asked", asked, torch.bool, (B,))
    _check("all_of_it", all_of_it, torch.bool, (B,))
    _check("least", least, torch.float32, (B,))
    _check("blocks", blocks, torch.int64, (B, H, N))
    valid, absent = torch.empty((2, B, H, N), dtype=torch.bool)
    counts = closed.new_empty(2, B, H)
    tensors = (blocks, wishes, closed, slot_of, asked, all_of_it, least, valid, absent, counts)
    workers.native.sift(tuple(t.data_ptr() for t in tensors), (B, H, N, W, width, none, always))
    return Sifted(valid, absent, counts)


def blend(workers: Workers, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
    """See `reference.blend`; `interest` is changed in place."""
    (B, H, width), (_, _, W) = _dims(interest), _dims(wishes)
    _check("interest", interest, torch.float32, (B, H, width))
    _check("wishes", wishes, torch.float32, (B, H, W))
    _check("rows", rows, torch.bool, (B,))
    pointers = (wishes.data_ptr(), rows.data_ptr(), interest.data_ptr())
    workers.native.blend(pointers, (B, H, W, width), kept)


def find_late(workers: Workers, what: Lateness) -> Late:
    """See `reference.find_late`."""
    wanted, ahead, doubt, rows, limit = what
    blocks, absent, wishes = wanted
    (B, H, N), (_, _, W) = _dims(blocks), _dims(wishes)
    for name, tensor in (("blocks", blocks), ("ahead", ahead[0])):
        _check(name, tensor, torch.int64, (B, H, N))
    for name, tensor in (("absent", absent), ("served", ahead[1])):
        _check(name, tensor, torch.bool, (B, H, N))
    _check("wishes", wishes, torch.float32, (B, H, W))
    _check("doubt", doubt, torch.float32, (B, H))
    _check("rows", rows, torch.bool, (B,))
    spoilt, late = torch.empty((B, H), dtype=torch.bool), torch.empty_like(absent)
    counts = blocks.new_empty(2, B, H)
    tensors = (blocks, absent, wishes, *ahead, doubt, rows, spoilt, late, counts)
    workers.native.late(tuple(t.data_ptr() for t in tensors), (B, H, N, W), limit)
    return Late(spoilt, late, counts)


def _dims(tensor: Tensor) -> tuple[int, ...]:
    if tensor.dim() != 3:
        raise KernelError(f"a tensor of shape {list(tensor.shape)} has {tensor.dim()} dims: it must have 3")
    return tuple(tensor.shape)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous():
        raise KernelError(
            f"{name} is {tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}: it must "
            f"be {dtype} {list(shape)}, contiguous, on the CPU"
        )
