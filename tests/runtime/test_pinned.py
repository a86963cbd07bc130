"""Pinned memory, on a made-up driver: it is let go where the rest is refused, and when its pool is gone."""

import gc
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoutattention.cache.pool import BlockPool, PackedPool
from scoutattention.errors import CapacityError
from scoutattention.runtime import pinned
from scoutattention.shape import ModelShape

SHAPE = ModelShape(2, 2, 2, 16, 32, 32, 32, 64)


@pytest.fixture
def driver(monkeypatch):
    """Notes the addresses that are pinned; pins no more than `most` at a time."""
    made = SimpleNamespace(now=[], most=100, last_error=0)

    def register(address, size, flags):
        if len(made.now) == made.most:
            made.last_error = 2
            return 2
        made.now.append(address)
        return 0

    def launch(*size, device):
        error, made.last_error = made.last_error, 0
        if error:
            raise torch.AcceleratorError("CUDA error: out of memory")

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=made.now.remove)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch, "ones", launch)
    monkeypatch.setattr(pinned, "STEP", 1024)
    return made


def test_a_pool_is_pinned_until_it_is_no_more(driver):
    pool = BlockPool(SHAPE, 8, 3, "host_memory")
    pool.pin()
    steps = -(-pool.k.nbytes // 1024)
    assert driver.now == [t.data_ptr() + 1024 * step for t in (pool.k, pool.v) for step in range(steps)]
    part = pool.k[0]
    del pool
    gc.collect()
    assert driver.now == []
    assert part.shape[0] == 3


def test_all_bytes_of_a_packed_pool_are_pinned(driver):
    pool = PackedPool(SHAPE, 8, 3, "host_memory", bits=4)
    pool.pin()
    steps = -(-pool.k.nbytes // 1024)
    assert pool.k.memory.nbytes == pool.k.nbytes
    assert driver.now == [t.memory.data_ptr() + 1024 * step for t in (pool.k, pool.v) for step in range(steps)]
    assert pool.k[1, 2].memory.data_ptr() == pool.k.words.data_ptr()
    del pool
    gc.collect()
    assert driver.now == []


def test_what_was_pinned_before_a_refusal_is_let_go(driver):
    driver.most = 3
    with pytest.raises(CapacityError, match="pinned 3072 of 12288 bytes"):
        BlockPool(SHAPE, 8, 3, "host_memory").pin()
    assert driver.now == []


def test_a_refusal_is_not_left_for_the_next_kernel_to_report(driver):
    driver.most = 3
    with pytest.raises(CapacityError):
        BlockPool(SHAPE, 8, 3, "host_memory").pin()
    assert driver.last_error == 0


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 50))
def test_pieces_are_the_range_and_none_is_in_two_steps(start, size, step):
    made = pinned.pieces(start, start + size, step)
    assert [place for piece in made for place in range(*piece)] == list(range(start, start + size))
    assert all(first // step == (end - 1) // step for first, end in made)
    assert len(made) == (start + size - 1) // step - start // step + 1, "no more than needed"


@pytest.mark.gpu
def test_a_gpu_reads_a_pool_where_it_is():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    pool = BlockPool(SHAPE, 8, 3, "host_memory")
    pool.pin()
    assert pool.k.is_pinned()
    assert pool.v[1].is_pinned()
    assert torch.equal(pool.k.cuda().cpu(), pool.k)
