"""Memory for the native kernels: it is what `torch.empty` gives, and lives as long as its tensor."""

import gc

import pytest
import torch

from scoutattention.kernels.memory import empty


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
