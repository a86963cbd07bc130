"""Sums over ranks, which here are threads, over gloo."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from scoutattention.errors import ConfigError, RankError
from scoutattention.runtime import ranks
from scoutattention.runtime.ranks import ALONE, Group, gathered
from scoutattention.shape import ModelShape


def on_ranks(size, folder, work, patience_s=60.0):
    """What `work(ranks)` returns on each of `size` ranks."""
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda index: work(Group(folder, index, size, patience_s=patience_s)), range(size)))


META = torch.device("meta")


class Gpu:
    """Stands for NCCL, and for a GPU that is done after so many looks at it; its memory is `meta`."""

    def __init__(self) -> None:
        self.summed: list[torch.Tensor] = []
        self.aborted = threading.Event()
        self.capturing = False
        self.looks = 0
        self.fault: Exception | None = None

    def allreduce(self, tensors, options) -> None:
        assert options.asyncOp is False, "on the current stream"
        if self.fault is not None:
            raise self.fault
        self.summed += tensors

    def abort(self) -> None:
        self.aborted.set()

    def record(self) -> None:
        assert not self.capturing, "a graph cannot be waited for while it is captured"

    def query(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(ranks, "_join_nccl", lambda *args: made)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: made.capturing)
    monkeypatch.setattr(torch.cuda, "Event", lambda: made)
    return made


@pytest.mark.parametrize("size", [2, 3])
def test_sums_are_the_same_on_every_rank_and_leave_what_was_given(tmp_path, size):
    def work(ranks):
        mine = torch.arange(4.0).view(2, 2).T + ranks.index
        counts = torch.tensor([2**40 + ranks.index])
        return mine.clone(), ranks.sum(mine), mine, ranks.sum(counts)

    for given, total, kept, counts in on_ranks(size, tmp_path, work):
        assert torch.equal(total, torch.arange(4.0).view(2, 2).T * size + sum(range(size)))
        assert torch.equal(given, kept)
        assert counts.tolist() == [size * 2**40 + sum(range(size))]


def test_half_precision_is_added_in_float32(tmp_path):
    """In bfloat16 256 + 1 is 256, and some sum begins with that, whatever the order of the ranks."""
    mine = 1 + 255 * torch.eye(3, dtype=torch.bfloat16)
    totals = on_ranks(3, tmp_path, lambda ranks: ranks.sum(mine[ranks.index]))
    assert [(total.dtype, total.tolist()) for total in totals] == [(torch.bfloat16, [258.0] * 3)] * 3


def test_gathered_is_in_the_order_of_ranks(tmp_path):
    found = on_ranks(2, tmp_path, lambda ranks: gathered(ranks, torch.tensor([5, 7]) * (1 + ranks.index)))
    assert [each.tolist() for each in found] == [[[5, 7], [10, 14]]] * 2
    assert gathered(ALONE, torch.tensor([5, 7])).tolist() == [[5, 7]]


def test_a_silent_rank_is_an_error_in_time(tmp_path):
    asked = threading.Event()

    def work(ranks):
        if ranks.index:
            return asked.wait(30)
        try:
            with pytest.raises(RankError, match=r"rank 0 of 2 lost another rank, .* silent for 0.5 s"):
                ranks.sum(torch.zeros(1))
        finally:
            asked.set()
        return True

    assert on_ranks(2, tmp_path, work, patience_s=0.5) == [True, True]


def test_a_rank_that_does_not_come_is_an_error_in_time(tmp_path):
    with pytest.raises(RankError, match="rank 1 of 2 lost another rank"):
        Group(tmp_path, 1, 2, patience_s=0.2)


def test_a_sum_is_made_where_the_tensor_is(tmp_path, gpu):
    group = Group(tmp_path, 0, 1, META)
    assert len(gpu.summed) == 1, "NCCL connects before anything is captured"
    assert group.sum(torch.tensor([3, 4])).tolist() == [3, 4]
    assert len(gpu.summed) == 1
    total = group.sum(torch.ones((2, 3), device=META, dtype=torch.bfloat16).T)
    assert (total.device, total.dtype, total.shape) == (META, torch.bfloat16, (3, 2))
    assert (gpu.summed[1].dtype, gpu.summed[1].is_contiguous()) == (torch.float32, True)


def test_a_gpu_is_waited_for_unless_its_sum_is_captured(tmp_path, gpu):
    group = Group(tmp_path, 0, 1, META)
    gpu.looks = 3
    group.sum(torch.ones(1, device=META))
    assert gpu.looks == -1
    gpu.looks, gpu.capturing = 3, True
    group.sum(torch.ones(1, device=META))
    assert gpu.looks == 3
    gpu.capturing = False
    group.settle()
    assert gpu.looks == -1


@pytest.mark.parametrize(("patience_s", "ended"), [(0.05, False), (60.0, True)])
def test_a_gpu_that_waits_for_a_lost_rank_is_let_go(tmp_path, gpu, patience_s, ended):
    there = [True]
    group = Group(tmp_path, 0, 1, META, patience_s=patience_s, all_there=lambda: there[0])
    there[0], gpu.looks = not ended, 10**9
    with pytest.raises(RankError, match=r"rank 0 of 1 lost another rank, .*: the GPU still waits for it"):
        group.settle()
    assert gpu.aborted.is_set()


def test_what_nccl_says_is_one_sentence_and_a_fault_of_the_gpu_is_its_own(tmp_path, gpu):
    group = Group(tmp_path, 0, 1, META)
    gpu.fault = RuntimeError("NCCL error: remote process exited\nand many more lines")
    with pytest.raises(RankError, match=r"lost another rank, .*: NCCL error: remote process exited$"):
        group.sum(torch.ones(1, device=META))
    gpu.fault = torch.AcceleratorError("CUDA error: unspecified launch failure")
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        group.sum(torch.ones(1, device=META))


def test_nccl_lives_as_long_as_its_group(tmp_path, gpu):
    group = Group(tmp_path, 0, 1, META)
    assert not gpu.aborted.wait(0.05)
    del group
    gc.collect()
    assert gpu.aborted.wait(5)


def test_gpus_without_nccl_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size=2 on GPUs needs NCCL, .* set tensor_parallel_size to 1"
    ):
        Group(tmp_path, 0, 2, torch.device("cuda", 0), patience_s=0.2)


def test_a_shape_is_shared_evenly_or_refused():
    shape = ModelShape(2, 12, 6, 16, 64, 96, 100, max_positions=64)
    mine = shape.split(3)
    assert (mine.num_query_heads, mine.num_kv_heads, mine.group_size) == (4, 2, 2)
    assert (mine.intermediate_size, mine.hidden_size, mine.vocab_size) == (32, 64, 100)
    assert 3 * mine.kv_bytes_per_token == shape.kv_bytes_per_token
    assert shape.split(1) == shape
    with pytest.raises(ConfigError, match=r"4 ranks cannot share the model's 6 KV heads .* a divisor of 6"):
        shape.split(4)
    with pytest.raises(ConfigError, match=r"cannot share the model's 100 feed-forward .* a divisor of 2"):
        ModelShape(2, 6, 6, 16, 64, 100, 100, max_positions=64).split(6)
