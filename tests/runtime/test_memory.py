"""Memory for the native kernels: it is what `torch.empty` gives, and lives as long as its tensor."""

import gc

import pytest
import torch

from scoutattention.errors import CapacityError
from scoutattention.runtime.memory import Arena, empty


@pytest.mark.parametrize("shape", [(3, 4, 5), (1,), (0, 7), (2, 1 << 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_memory_has_the_shape_and_keeps_what_is_written(shape, dtype):
    memory = empty(shape, dtype)
    assert memory.shape == shape
    assert memory.dtype == dtype
    assert memory.is_contiguous()
    part = memory.fill_(3)[-1:]
    del memory
    gc.collect()
    assert (part == 3).all()


def test_two_tensors_share_no_memory():
    first, second = (empty((1000,), torch.float32).fill_(i) for i in range(2))
    assert first.sum() == 0
    assert second.sum() == 1000


def test_tensors_of_an_arena_are_aligned_and_share_nothing():
    arena = Arena(piece=4096)
    shapes = [(3, 5), (1,), (700,), (100, 100), (0, 7), (31,)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.bfloat16]
    taken = [arena.take(shape, dtype).fill_(i) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]
    assert [tensor.shape for tensor in taken] == shapes
    assert [tensor.dtype for tensor in taken] == dtypes
    assert all((tensor == i).all() for i, tensor in enumerate(taken))
    assert all(tensor.data_ptr() % 64 == 0 for tensor in taken)


def test_small_tensors_of_an_arena_lie_in_one_piece():
    arena = Arena(piece=4096)
    first, second, third = (arena.take((256,), torch.float32) for _ in range(3))
    assert second.data_ptr() == first.data_ptr() + 1024
    assert third.data_ptr() == second.data_ptr() + 1024


def test_memory_that_the_system_refuses_is_named_with_its_size():
    with pytest.raises(CapacityError, match=r"the system refused memory for 1024\.0 TiB"):
        empty((1 << 50,), torch.uint8)
