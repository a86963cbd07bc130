"""Handovers made to order, for calls of `cases`, and a stand-in for the device that makes them."""

from dataclasses import replace

import torch
from torch import Tensor

from scoutattention.kernels import plain
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.handover import FlagTable, Handover, PartialCall
from scoutattention.types import BlockList, Partial

from ..kernels.cases import Call, Case

LONG = Case("long", H=3, S=200, N=200)
DELAY = 0.2
"""Seconds that tests make workers sleep."""


def numbers_of(call: Call, with_mean_key: bool = True) -> Tensor:
    """Memory for a result that nobody has written to."""
    size = call.q.numel()
    return torch.full(((1 + with_mean_key) * size + call.q[..., 0].numel(),), torch.nan)


def split(numbers: Tensor, shape: torch.Size) -> Partial:
    """Numbers as a partial of queries of that shape."""
    size, rows = shape.numel(), shape[:-1].numel()
    mean_key = numbers[size : 2 * size].view(shape) if numbers.numel() > size + rows else None
    return Partial(numbers[:size].view(shape), numbers[-rows:].view(shape[:-1]), mean_key)


def fixed(call: Call) -> Call:
    """The call with lists of its own, whose values can be changed."""
    return replace(call, blocks=BlockList(*(table.clone() for table in call.blocks)))


class Device:
    """A device whose step is under way: it calls by a handover's flags, and waits, in this thread."""

    def __init__(self, workers: cpu.Workers, call: Call | PartialCall, *, table: FlagTable | None = None) -> None:
        fixed_call = PartialCall(call.q, call.k, call.v, call.blocks, call.scale)
        self.numbers = numbers_of(call)
        self.shape = call.q.shape
        self.table = FlagTable(torch.device("cpu")) if table is None else table
        self.handover = Handover(workers, fixed_call, split(self.numbers, self.shape), self.table)
        self.table.begin()

    @property
    def result(self) -> Partial:
        """What the CPU has written."""
        return self.handover.result

    def start(self) -> None:
        flags = self.handover.flags
        flags.counts[1] += 1
        flags.called.copy_(flags.counts[1:2])

    def wait(self, timeout_s: float = 60.0) -> Partial:
        rows = self.shape[:-1].numel()
        return split(plain.take_call(self.numbers, self.handover.flags, rows, timeout_s), self.shape)

    def run(self) -> Partial:
        self.start()
        return self.wait()


def assert_nothing(result: Partial) -> None:
    assert not result.out.any()
    assert result.lse.isneginf().all()
    assert result.mean_key is None or not result.mean_key.any()
