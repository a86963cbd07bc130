"""Memory for the native kernels to read from."""

import contextlib
import math
import mmap

import torch
from torch import Tensor

CPU = torch.device("cpu")


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """`torch.empty`, on the CPU in large pages where the system has them on request.

    Scattered blocks are then read up to a quarter faster, because the processor knows where more of them lie. The
    system commits the memory as it is first written, a large page at a time.
    """
    count = math.prod(shape)
    if device.type != "cpu" or not (count and hasattr(mmap, "MADV_HUGEPAGE")):
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that was built without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=count).reshape(shape)
