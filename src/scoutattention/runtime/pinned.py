"""Host memory that a GPU reads and writes in place: pinned in steps, so that a limit is met with most of it free."""

from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import CapacityError

STEP = 1 << 30
"""Bytes pinned at a time."""
PORTABLE_MAPPED = 3
"""cudaHostRegisterPortable | cudaHostRegisterMapped: for every context, at an address that kernels can use."""


def pin(tensors: tuple[Tensor, ...], knob: str) -> tuple[int, ...]:
    """Pin contiguous CPU tensors where they are, zeros from then on; returns what `unpin` lets go, before they end.

    Raises CapacityError where the system refuses a part, naming what was pinned and the setting `knob`; what had been
    pinned is let go.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    done: list[int] = []
    whole = sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        for start in range(0, tensor.nbytes, STEP):
            address, size = tensor.data_ptr() + start, min(STEP, tensor.nbytes - start)
            tensor.view(-1).view(torch.uint8)[
                start : start + size
            ].zero_()  # commits it, by all threads; a driver has one
            error = int(runtime.cudaHostRegister(address, size, PORTABLE_MAPPED))
            if error:
                _forget_refusal()
                unpin(tuple(done))
                raise CapacityError(
                    f"the system pinned {len(done) * STEP} of {whole} bytes of host memory and refused more (CUDA "
                    f"error {error}): raise the limit on locked memory (ulimit -l) or the container's, or lower {knob}"
                )
            done.append(address)
    return tuple(done)


def _forget_refusal() -> None:
    """Have a kernel's launch report what the runtime refused last, and so take it off: else a later one would."""
    with suppress(torch.AcceleratorError):
        torch.ones(1, device="cuda")


def unpin(pinned: tuple[int, ...]) -> None:
    """Unpin the memory, when the device no longer uses it."""
    torch.cuda.synchronize()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for address in pinned:
        runtime.cudaHostUnregister(address)


def pieces(start: int, end: int, step: int) -> list[tuple[int, int]]:
    """The range from `start` to `end` of what is pinned in steps of `step`, as ranges that lie within one step each.

    What one call copies should have been pinned by one call: the driver may refuse it else.
    """
    cuts = range((start // step + 1) * step, end, step)
    return list(pairwise((start, *cuts, end)))
