"""Blocks reach neighbouring pages by copies of whole runs, and scattered ones by a kernel; the pages are the same."""

import pytest
import torch

from scoutattention.cache import page_runs as module
from scoutattention.cache.digests.make import make_digests
from scoutattention.cache.page_runs import PageRun, page_runs
from scoutattention.cache.pages import Pages
from scoutattention.cache.pool import BlockPool, PackedPool
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.triton.ops import TritonOps

from ..attention.rig import SHAPE

SIZE, CAPACITY, BLOCKS = 8, 20, 6


@pytest.mark.parametrize(
    ("pages", "runs"),
    [
        ([], []),
        ([7], [(0, 7, 1)]),
        ([3, 4, 5], [(0, 3, 3)]),
        ([5, 4, 3], [(0, 5, 1), (1, 4, 1), (2, 3, 1)]),
        ([2, 3, 9, 10, 11, 0], [(0, 2, 2), (2, 9, 3), (5, 0, 1)]),
    ],
)
def test_runs(pages, runs):
    assert page_runs(pages) == [PageRun(*run) for run in runs]


class QueuedOps(PlainOps):
    """As of a GPU, in whose stead a CPU computes; counts what a kernel would write."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.deferred = True
        self.written = 0

    def write_blocks(self, blocks, target, pages):
        super().write_blocks(blocks, target, pages)
        self.written += 1


def make_pool(bits):
    if bits is None:
        return BlockPool(SHAPE, SIZE, CAPACITY, "host_memory")
    return PackedPool(SHAPE, SIZE, CAPACITY, "host_memory", bits=bits)


def written(ops, bits, taken):
    """What is kept in the pages of a row, which has these."""
    pool = make_pool(bits)
    if ops.device.type == "cuda":
        pool.pin()
    pages = Pages(pool, None, 1, CAPACITY, ops)
    pages.admit(0, BLOCKS)
    pages._taken[0][:] = taken
    pages.table[0, :BLOCKS] = torch.tensor(taken)
    torch.manual_seed(0)
    k, v = torch.randn(2, BLOCKS, SIZE, SHAPE.num_kv_heads, SHAPE.head_dim).transpose(2, 3).to(ops.device)
    for layer in range(SHAPE.num_layers):
        pages.write_prompt(layer, 0, k[:0], v[:0])
        pages.write_prompt(layer, 0, k[:2] + layer, v[:2])
        pages.write_prompt(layer, 0, k[2:] + layer, v[2:], 2)
    if ops.device.type == "cuda":
        torch.cuda.synchronize()
    return [part.clone() for part in pool.content]


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("step", [1 << 30, 200])
@pytest.mark.parametrize("taken", [[4, 5, 6, 7, 8, 9], [0, 3, 4, 5, 18, 19]])
def test_what_engines_copy_is_what_a_kernel_writes(bits, step, taken, monkeypatch):
    """Whatever part of the pool was pinned by one call."""
    monkeypatch.setattr(module, "STEP", step)
    ops = QueuedOps()
    engines, kernel = (written(each, bits, taken) for each in (ops, PlainOps(torch.device("cpu"))))
    for one, other in zip(engines, kernel, strict=True):
        assert torch.equal(one, other)
    assert ops.written == (0 if bits is None else 2 * SHAPE.num_layers), "packed blocks are packed by it"


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("taken", [[4, 5, 6, 7, 8, 9], [0, 3, 4, 5, 18, 19]])
def test_what_a_gpu_s_engines_copy_is_what_a_cpu_writes(bits, taken):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    made = (written(each, bits, taken) for each in (TritonOps(torch.device("cuda")), PlainOps(torch.device("cpu"))))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_many_runs_are_written_by_a_kernel(monkeypatch):
    monkeypatch.setattr("scoutattention.cache.pages.MOST_RUNS", 3)
    ops, taken = QueuedOps(), [1, 3, 5, 7, 9, 11]
    engines, kernel = (written(each, None, taken) for each in (ops, PlainOps(torch.device("cpu"))))
    for one, other in zip(engines, kernel, strict=True):
        assert torch.equal(one, other)
    assert ops.written == SHAPE.num_layers, "the first two blocks are few runs"


def test_a_row_that_comes_back_has_one_run():
    """Beside rows that stay."""
    pages = Pages(make_pool(None), None, 3, CAPACITY, QueuedOps())
    for row in range(3):
        pages.admit(row, BLOCKS)
    for row in (1, 0, 1):
        pages.release(row)
        pages.admit(row, BLOCKS)
    assert [len(page_runs(taken)) for taken in pages._taken] == [1, 1, 1]


@pytest.mark.parametrize("digest", ["two-stage", "keys2", "minmax"])
def test_a_prompt_without_a_whole_block_is_not_digested(digest):
    """Of whose digests fewer dimensions are kept than its heads have."""
    ops = QueuedOps()
    pool = make_pool(None)
    digests = make_digests(digest, SHAPE, pool, ops, rows=1, dims=(4, 9))
    pages = Pages(pool, digests.put, 1, CAPACITY, ops)
    pages.admit(0, 1)
    before = [part.clone() for part in digests.content()]
    pages.digest_prompt(0, 0, torch.zeros(0, SHAPE.num_kv_heads, SIZE, SHAPE.head_dim))
    for part, old in zip(digests.content(), before, strict=True):
        assert torch.equal(part, old)
