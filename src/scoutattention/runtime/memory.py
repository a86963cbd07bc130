"""Memory for the native kernels to read from."""

import contextlib
import math
import mmap

import torch
from torch import Tensor

from ..config.fields import format_bytes
from ..hardware.memory_error import named_memory

CPU = torch.device("cpu")
CACHE_LINE = 64
PIECE = 64 << 20
"""Bytes of a piece of memory for many tensors, of which the system commits what is written."""


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """`torch.empty`, on the CPU in large pages where the system has them on request.

    Scattered blocks are then read up to a quarter faster, because the processor knows where more of them lie. The
    system commits the memory as it is first written, a large page at a time. Raises CapacityError where it refuses.
    """
    count = math.prod(shape)
    if device.type != "cpu" or not (count and hasattr(mmap, "MADV_HUGEPAGE")):
        return torch.empty(shape, dtype=dtype, device=device)
    size = count * dtype.itemsize
    with named_memory(format_bytes(size)):
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)


class Arena:
    """Memory for many long-lived tensors, in large pieces, so that the system can use huge pages."""

    def __init__(self, device: torch.device = CPU, piece: int = PIECE) -> None:
        """`piece`: bytes of one; 0 gives every tensor its own."""
        self._device = device
        self._size = piece
        self._piece = empty((0,), torch.uint8, device)
        self._used = 0

    @property
    def on_gpu(self) -> bool:
        """Whether the memory is a GPU's."""
        return self._device.type != "cpu"

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor. A tensor larger than a piece gets its own piece."""
        count = math.prod(shape) * dtype.itemsize
        if self._used + count > self._piece.numel():
            self._piece, self._used = empty((max(self._size, count),), torch.uint8, self._device), 0
        start = self._used
        self._used = -(-(start + count) // CACHE_LINE) * CACHE_LINE
        return self._piece[start : start + count].view(dtype).view(shape)
