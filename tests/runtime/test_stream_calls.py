"""The calls of a whole step: captured in a CUDA graph and replayed on a GPU, and by the interpreter without one."""

import time
from collections.abc import Callable

import pytest
import torch

from scoutattention.attention.far_stream import StreamTransport
from scoutattention.cache.pool import BlockPool
from scoutattention.errors import KernelError
from scoutattention.kernels import plain, reference
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.runtime.workers import Workers
from scoutattention.shape import ModelShape
from scoutattention.types import PageSelection, Partial

from .handovers import DELAY

LAYERS, B, H, G, D, P, S, N = 5, 2, 2, 3, 64, 8, 40, 9
SHAPE = ModelShape(LAYERS, H * G, H, D, 8, 8, 8, 8, "bfloat16")
SCALE = D**-0.5


class Calls:
    """A step of LAYERS layers, each of whose calls is made a layer ahead."""

    def __init__(self, device: str, workers: Workers, timeout_s: float = 60.0) -> None:
        self.device = torch.device(device)
        pool = BlockPool(SHAPE, P, S, "host_memory")
        if device == "cuda":
            pool.pin()
        pool.k.normal_()
        pool.v.normal_()
        self.pool = pool
        self.transport = StreamTransport(pool, TritonOps(self.device), workers, SCALE, timeout_s=timeout_s)
        self.table = torch.randperm(S)[None].int().expand(B, S).contiguous().to(self.device)
        self.q = torch.zeros(LAYERS, B, H, G, D, device=self.device)
        self.blocks = torch.zeros(LAYERS, B, H, N, dtype=torch.int64, device=self.device)
        self.wanted = torch.zeros(LAYERS, B, H, N, dtype=torch.bool, device=self.device)

    def draw(self) -> None:
        """Other queries and other lists, in place."""
        self.q.copy_(torch.randn(self.q.shape))
        self.blocks.copy_(torch.rand(LAYERS, B, H, S).argsort(-1)[..., :N])
        self.wanted.copy_(torch.rand(self.wanted.shape) < 0.7)

    def selection(self, layer: int) -> PageSelection:
        return PageSelection(self.table, self.blocks[layer], self.wanted[layer], P)

    def step(self) -> list[Partial]:
        pending, taken = [], []
        for layer in range(LAYERS + 1):
            if layer < LAYERS:
                what = self.selection(layer)
                pending.append(self.transport.start(layer, "scout", self.q[layer], what, with_mean_key=layer % 2 == 0))
            if layer > 0:
                taken.append(pending[layer - 1].wait())
        return taken

    def captured(self) -> Callable[[], list[Partial]]:
        """The step as it is replayed, after it ran once."""
        self.transport.reset()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.transport.times()
        if self.device.type == "cpu":
            return self.step
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.step()

        def replay() -> list[Partial]:
            graph.replay()
            torch.cuda.synchronize()
            return results

        return replay

    def check(self, results: list[Partial]) -> None:
        for layer, got in enumerate(results):
            lists = plain.page_list(self.selection(layer))
            lists = type(lists)(*(part.cpu() for part in lists))
            q, k, v = self.q[layer].cpu(), self.pool.k[layer], self.pool.v[layer]
            want = reference.partial(q, k, v, lists, SCALE, with_mean_key=layer % 2 == 0)
            for mine, theirs in zip(got, want, strict=True):
                assert mine is theirs is None or torch.allclose(mine.cpu(), theirs, rtol=1e-3, atol=1e-3)


def test_every_replay_calls_and_takes_anew(device):
    with Workers() as workers:
        calls = Calls(device, workers)
        run = calls.captured()
        for _ in range(200 if device == "cuda" else 3):
            calls.draw()
            calls.transport.reset()
            results = run()
            assert calls.transport.times().hidden_s >= 0
            calls.check(results)


def test_a_cpu_that_does_not_answer_fails_one_step(device):
    with Workers() as workers:
        calls = Calls(device, workers, timeout_s=DELAY)
        run = calls.captured()
        calls.draw()
        calls.wanted.fill_(True)
        calls.transport.reset()
        calls.transport._flags.thread.end()  # nobody looks for calls
        begin = time.perf_counter()
        results = run()
        assert DELAY <= time.perf_counter() - begin < (LAYERS - 1) * DELAY, "only the first is waited for"
        for partial in results:
            assert not partial.out.any()
            assert partial.lse.isneginf().all()
        message = rf"layer 0, scout call 2 of {B * H * N} pages failed: the CPU had not seen the call, 0\.2 s after"
        with pytest.raises(KernelError, match=message):
            calls.transport.times()
        calls.transport.reset()
        calls.check(run())
        calls.transport.times()


def test_a_list_that_is_refused_fails_one_step(device):
    with Workers() as workers:
        calls = Calls(device, workers)
        run = calls.captured()
        calls.draw()
        calls.wanted.fill_(True)
        table = calls.table.clone()
        calls.table.fill_(S)
        calls.transport.reset()
        for partial in run():
            assert partial.lse.isneginf().all()
        with pytest.raises(
            KernelError, match=r"layer 0, scout call 2 of \d+ pages failed: block index 40 is outside 0..39"
        ):
            calls.transport.times()
        calls.table.copy_(table)
        calls.transport.reset()
        calls.check(run())
        calls.transport.times()
