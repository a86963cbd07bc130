"""Appending and recalling on the device, run by Triton's interpreter: bit for bit what their twins do."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import plain as twins
from scoutattention.kernels.triton.move_blocks import CHUNK, append, copy_blocks

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def pools(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)


def copies(pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pair[0].clone(), pair[1].clone()


@pytest.mark.parametrize("dtype", DTYPES)
def test_append_is_its_twin(dtype):
    got = pools(20, 3, 16, 80, dtype=dtype)
    want = copies(got)
    projected = torch.randn(4, 3, 160).to(dtype)
    k, v = projected[..., :80], projected[..., 80:]
    entry, fill = torch.tensor([7, 0, 19, 3]), torch.tensor([0, 15, 4, 4])
    append(k, v, got, entry, fill)
    twins.append(k, v, want, entry, fill)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[0][19, :, 4], k[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("P", "D", "programs"), [(32, 64, 4), (32, 80, 100), (130, 64, 3), (1, 7, 1)])
def test_copy_blocks_is_its_twin(dtype, P, D, programs):
    host, got = pools(11, 3, P, D, dtype=dtype), pools(9, 3, P, D, dtype=dtype)
    want = copies(got)
    places = torch.randperm(9 * 3)[:13]
    page, entry, head = torch.randint(0, 11, (13,)), places // 3, places % 3
    copy_blocks(host, got, page, entry, head, programs=programs)
    twins.copy_blocks(host, want, page, entry, head)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[1][entry[0], head[0]], host[1][page[0], head[0]])


def test_a_block_may_be_longer_than_a_chunk():
    assert CHUNK < 130 * 64


def test_one_layer_of_a_larger_pool_of_longer_blocks():
    host, got = pools(2, 5, 2, 8, 16), pools(2, 6, 2, 12, 16)
    before = copies(got)
    moves = torch.tensor([3]), torch.tensor([5]), torch.tensor([1])
    copy_blocks((host[0][1], host[1][1]), (got[0][1, :, :, :8], got[1][1, :, :, :8]), *moves)
    assert torch.equal(got[0][1, 5, 1, :8], host[0][1, 3, 1])
    got[0][1, 5, 1, :8] = before[0][1, 5, 1, :8]
    assert torch.equal(got[0], before[0]), "nothing else was written"


def test_no_moves_and_no_sequences():
    got = pools(4, 2, 8, 16)
    before = copies(got)
    none = torch.empty(0, dtype=torch.int64)
    copy_blocks(pools(4, 2, 8, 16), got, none, none, none)
    append(torch.empty(0, 2, 16), torch.empty(0, 2, 16), got, none, none)
    assert torch.equal(got[0], before[0])


def test_bad_arguments_are_named():
    pair, one = pools(4, 2, 8, 16), torch.tensor([0])
    token = torch.randn(1, 2, 16)
    with pytest.raises(KernelError, match=r"entry is torch\.int32"):
        append(token, token, pair, one.int(), one)
    with pytest.raises(KernelError, match=r"k is torch\.float16"):
        append(token.half(), token, pair, one, one)
    with pytest.raises(KernelError, match=r"target\[0\] is \[4, 2, 8, 16\]: it must be \[any, 2, 9, 16\]"):
        copy_blocks(pools(4, 2, 9, 16), pair, one, one, one)
    with pytest.raises(KernelError, match=r"head is \[2\]: it must be \[1\]"):
        copy_blocks(pair, pair, one, one, torch.tensor([0, 1]))
    with pytest.raises(KernelError, match=r"source are .* laid out alike"):
        copy_blocks((pair[0], pools(4, 3, 8, 16)[1][:, 1:]), pair, one, one, one)
