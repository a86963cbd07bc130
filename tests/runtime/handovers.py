"""Handovers made to order, for calls of `cases`."""

from dataclasses import replace

import torch

from scoutattention.runtime import workers as cpu
from scoutattention.runtime.handover import Handover, PartialCall
from scoutattention.runtime.host_functions import HostQueue
from scoutattention.types import BlockList, Partial

from ..kernels.cases import Call, Case

LONG = Case("long", H=3, S=200, N=200)
DELAY = 0.2
"""Seconds that tests make workers sleep."""


def result_of(call: Call, with_mean_key: bool = True) -> Partial:
    """Memory that nobody has written to."""
    like = call.q.float()
    mean_key = torch.full_like(like, torch.nan) if with_mean_key else None
    return Partial(torch.full_like(like, torch.nan), torch.full(like.shape[:3], torch.nan), mean_key)


def fixed(call: Call) -> Call:
    """The call with lists of its own, whose values can be changed."""
    return replace(call, blocks=BlockList(*(table.clone() for table in call.blocks)))


def stage_call(workers: cpu.Workers, call: Call, functions: HostQueue, timeout_s: float = 10.0) -> Handover:
    fixed_call = PartialCall(call.q, call.k, call.v, call.blocks, call.scale)
    return Handover(workers, fixed_call, result_of(call), functions=functions, timeout_s=timeout_s)


def run(handover: Handover) -> None:
    handover.start()
    handover.wait()


def assert_nothing(result: Partial) -> None:
    assert not result.out.any()
    assert result.lse.isneginf().all()
    assert result.mean_key is None or not result.mean_key.any()
