"""Appending and recalling on the device, run by Triton's interpreter: bit for bit what their twins do."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import plain as twins
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.triton.move_blocks import CHUNK, LISTED, append, copy_blocks
from scoutattention.types import Copies

TWINS = PlainOps(torch.device("cpu"))

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
    host, got = pools(2, 11, 3, P, D, dtype=dtype), pools(2, 9, 3, P, D, dtype=dtype)
    want = copies(got)
    places = torch.randperm(2 * 9 * 3)[:13]
    page = torch.randint(0, 11, (13,)).masked_fill(torch.rand(13) < 0.3, -1)
    page[0] = 3
    listed = Copies(places // 27, page, places // 3 % 9, places % 3)
    copy_blocks(host, got, listed, programs=programs)
    TWINS.copy_blocks(host, want, listed)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    layer, page, entry, head = (each[0] for each in listed)
    assert torch.equal(got[1][layer, entry, head], host[1][layer, page, head])


@pytest.mark.parametrize("programs", [1, 3])
def test_few_blocks_in_a_long_list_are_found(programs):
    count = 3 * LISTED * programs + 5
    host, got = pools(1, count, 1, 2, 8), pools(1, count, 1, 2, 8)
    want = copies(got)
    page = torch.full((count,), -1)
    for place in (0, LISTED * programs - 1, LISTED * programs, count - 1):
        page[place] = place
    listed = Copies(torch.zeros_like(page), page, torch.randperm(count), torch.zeros_like(page))
    copy_blocks(host, got, listed, programs=programs)
    TWINS.copy_blocks(host, want, listed)
    assert torch.equal(got[0], want[0])


def test_a_block_may_be_longer_than_a_chunk():
    assert CHUNK < 130 * 64


def test_one_layer_of_a_larger_pool_of_longer_blocks():
    host, got = pools(2, 5, 2, 8, 16), pools(2, 6, 2, 12, 16)
    before = copies(got)
    listed = Copies(*(torch.tensor([number]) for number in (0, 3, 5, 1)))
    copy_blocks((host[0][1:], host[1][1:]), (got[0][1:, :, :, :8], got[1][1:, :, :, :8]), listed)
    assert torch.equal(got[0][1, 5, 1, :8], host[0][1, 3, 1])
    got[0][1, 5, 1, :8] = before[0][1, 5, 1, :8]
    assert torch.equal(got[0], before[0]), "nothing else was written"


def test_no_moves_and_no_sequences():
    got = pools(4, 2, 8, 16)
    before = copies(got)
    none = torch.empty(0, dtype=torch.int64)
    copy_blocks(pools(1, 4, 2, 8, 16), (got[0][None], got[1][None]), Copies(none, none, none, none))
    append(torch.empty(0, 2, 16), torch.empty(0, 2, 16), got, none, none)
    assert torch.equal(got[0], before[0])


def test_bad_arguments_are_named():
    pair, pair5, one = pools(4, 2, 8, 16), pools(1, 4, 2, 8, 16), torch.tensor([0])
    token = torch.randn(1, 2, 16)
    with pytest.raises(KernelError, match=r"entry is torch\.int32"):
        append(token, token, pair, one.int(), one)
    with pytest.raises(KernelError, match=r"k is torch\.float16"):
        append(token.half(), token, pair, one, one)
    with pytest.raises(KernelError, match=r"target\[0\] is \[1, 4, 2, 8, 16\]: it must be \[1, any, 2, 9, 16\]"):
        copy_blocks(pools(1, 4, 2, 9, 16), pair5, Copies(one, one, one, one))
    with pytest.raises(KernelError, match=r"head is \[2\]: it must be \[1\]"):
        copy_blocks(pair5, pair5, Copies(one, one, one, torch.tensor([0, 1])))
    with pytest.raises(KernelError, match=r"source are .* laid out alike"):
        copy_blocks((pair5[0], pools(1, 4, 3, 8, 16)[1][:, :, 1:]), pair5, Copies(one, one, one, one))
