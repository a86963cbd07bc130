"""Cases of the device kernels' benchmark: calls to the CPU, from the kernel that calls to the one that has waited."""

from collections.abc import Iterator
from functools import partial as bind

import torch

from ...attention.far_stream import StreamTransport
from ...cache.pool import BlockPool
from ...kernels.triton.ops import TritonOps
from ...runtime.workers import Workers
from ...shape import ModelShape
from ...types import PageSelection
from .timing import Row, Timer, attempt

CALLS = 36
"""Calls of one replay, each of which is waited for before the next."""
HEADS, GROUP, HEAD_DIM, BLOCK_SIZE, CHOSEN, TIMEOUT_S = 8, 4, 128, 32, 64, 10.0


def time_calls(sequences: int, pages: int, timer: Timer) -> Row:
    """A call for `sequences` queries, each of whose KV heads attends to `pages` pages: made, answered and taken."""
    shape = ModelShape(1, HEADS * GROUP, HEADS, HEAD_DIM, 1, 1, 1, 1, "bfloat16")
    pool, device = BlockPool(shape, BLOCK_SIZE, CHOSEN, "host_memory"), torch.device("cuda")
    pool.k.zero_()
    pool.v.zero_()
    blocks = torch.arange(CHOSEN, device=device).expand(sequences, HEADS, CHOSEN).contiguous()
    table = torch.arange(CHOSEN, dtype=torch.int32, device=device).expand(sequences, CHOSEN).contiguous()
    what = PageSelection(table, blocks, blocks < pages, BLOCK_SIZE)
    q = torch.randn(sequences, HEADS, GROUP, HEAD_DIM, device=device)
    with Workers() as workers:
        transport = StreamTransport(pool, TritonOps(device), workers, 1.0, timeout_s=TIMEOUT_S)

        def run() -> None:
            for _ in range(CALLS):
                transport.start(0, "scout", q, what, with_mean_key=True).wait()

        transport.reset()
        seconds = timer.seconds(run) / CALLS
        times = transport.times()
    return Row("", "", seconds=seconds, more={"last wait seconds": times.waited_s})


def call_rows(timer: Timer) -> Iterator[Row]:
    """A row for every case: without keys, the time is that of the round trip alone."""
    for sequences, pages in ((1, 0), (8, 0), (8, 2), (8, CHOSEN)):
        yield attempt("call", f"B {sequences}, {pages} pages a head", bind(time_calls, sequences, pages, timer))
