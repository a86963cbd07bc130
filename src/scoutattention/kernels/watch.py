"""Handovers that a device asks for by numbers in pinned memory.

Host functions all run on one thread, where a wait for one stream's call holds up the starts of all others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import KernelError
from . import cpu
from .handover import Handover


class Watch:
    """A native thread that starts each handover when its number changes, and answers with that number at its end.

    The device's side is `triton_flags.ask` and `await_answer`. A call that fails or is late is answered as well, with a
    failure of its handover. Handovers stay their owner's; one that is gone is answered at once. The thread looks around
    all the time while the device asks, and naps when it has not for a while.
    """

    def __init__(self, handovers: Sequence[Handover], flags: Tensor) -> None:
        """`flags`: int32 [M, 2] in memory that the device shares, both numbers of each handover 0.

        Raises KernelError where it is not.
        """
        if flags.dtype != torch.int32 or not flags.is_cpu or flags.shape != (len(handovers), 2):
            raise KernelError(
                f"flags is {flags.dtype} {list(flags.shape)} on {flags.device}: "
                f"it must be int32 [{len(handovers)}, 2] on the CPU"
            )
        if not flags.is_contiguous() or flags.any():
            raise KernelError(f"flags has strides {flags.stride()} or numbers in it: it must be contiguous and zero")
        self._native = cpu.Watch([handover.ticket for handover in handovers], flags.data_ptr(), flags)

    def close(self) -> None:
        """End the thread. A second call does nothing."""
        self._native.close()
