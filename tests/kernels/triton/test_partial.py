"""Attention over slots on the device against float64: in Triton's interpreter, and how a GPU cuts the work."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoutattention.errors import KernelError
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.kernels.triton.partial import partial
from scoutattention.kernels.triton.partial_size import PartialTile, blocks_per_split
from scoutattention.types import BlockList, Partial

from ..cases import CASES, Call, Case, assert_close, exact, make_call
from ..columns import CPU, DTYPES, Column
from ..test_ops_attention import assert_partial

F32 = torch.float32
SPLIT = PartialTile(tokens=16, waves=1000, least=1)
SMALL = [case for case in CASES if case.N <= 24]


EVERYWHERE = PartialTile(tokens=16, warps=4, stages=2, waves=10_000, least=1)
INTERPRETER = Column("triton-interpreted", lambda: TritonOps(CPU))


def attend(call: Call, column: Column = INTERPRETER, **options) -> Partial:
    """The device wants keys and values strided alike, which two slices of larger pools need not be."""
    v = torch.empty_strided(call.k.shape, call.k.stride(), dtype=call.v.dtype).copy_(call.v)
    return column.back(partial(*column.put((call.q, call.k, v, call.blocks)), call.scale, **options))


def want(call: Call) -> Partial:
    return exact(call)._replace(mean_key=None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_partial_is_its_twin(case: Case):
    call = make_call(case, torch.bfloat16)
    assert_close(attend(call), want(call), case.q_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", SMALL[::3], ids=lambda case: case.name)
def test_every_dtype(case: Case, dtype):
    call = make_call(case, dtype)
    assert_close(attend(call), want(call), case.q_scale)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_splitting_changes_nothing(case: Case):
    call = make_call(case, torch.bfloat16)
    assert_close(attend(call, tile=SPLIT), want(call), case.q_scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_splits_of_one_iteration(column, dtype):
    call = make_call(Case("split everywhere", B=2, G=4, S=141, N=70, lengths=(32, 0, 7, 31)), dtype)
    call = replace(call, q=call.q.to(dtype))
    assert_partial(column, attend(call, column, tile=EVERYWHERE), want(call), dtype)


def test_more_splits_than_are_combined_at_a_time(column):
    call = make_call(Case("many splits", H=1, S=40, N=40, P=8, lengths=(8, 0, 3)), torch.float32)
    assert_partial(column, attend(call, column, tile=PartialTile(tokens=16, waves=1000, least=1)), want(call), F32)


def test_every_result_is_written_where_asked(column):
    call = make_call(Case("poisoned", B=2, D=80, lengths=(32, 0, 5)), torch.float32)
    for tile in (None, SPLIT):
        poison = Partial(torch.full((2, 2, 3, 80), torch.nan), torch.full((2, 2, 3), torch.nan))
        out = column.put(poison)
        got = attend(call, column, out=out, tile=tile)
        assert all(torch.equal(mine, there) for mine, there in zip(got[:2], column.back(out)[:2], strict=True))
        assert_partial(column, got, want(call), F32)


def test_memory_that_is_given_is_returned():
    call = make_call(Case("given", D=80), torch.float32)
    out = Partial(torch.empty(1, 2, 3, 80), torch.empty(1, 2, 3))
    assert partial(call.q, call.k, call.v, call.blocks, call.scale, out=out) is out


def test_nothing_beyond_a_length_is_read(column):
    call = make_call(Case("poison", N=6, lengths=(32, 0, 7)), torch.float32)
    expected = want(call)
    index, length = call.blocks.index, call.blocks.length
    listed = torch.zeros(call.k.shape[:3], dtype=torch.bool)
    for h in range(2):
        for slot, count in zip(index[0, h].tolist(), length[0, h].tolist(), strict=True):
            if count:
                listed[slot, h, :count] = True
    call.k[~listed], call.v[~listed] = torch.nan, torch.inf
    assert_partial(column, attend(call, column), expected, F32)


@given(
    rows=st.integers(0, 300),
    blocks=st.integers(0, 5000),
    block_size=st.sampled_from([1, 16, 32, 130]),
    tokens=st.sampled_from([16, 64, 128]),
    processors=st.sampled_from([1, 132]),
)
def test_splits_cover_the_list_in_whole_iterations(rows, blocks, block_size, tokens, processors):
    tile = PartialTile(tokens=tokens)
    per_split = blocks_per_split(rows, blocks, block_size, tile, processors)
    assert per_split * block_size >= tile.least
    assert per_split * block_size % tokens == 0 or tokens % block_size != 0
    splits = -(-blocks // per_split)
    assert splits * max(1, rows) <= max(1, rows) + tile.waves * processors


def test_many_rows_are_not_split_and_a_single_one_is():
    tile = PartialTile()
    assert blocks_per_split(tile.waves * 132, 1000, 32, tile, 132) >= 1000
    assert 1000 / blocks_per_split(1, 1000, 32, tile, 132) > 100


BAD = {
    "dtype of k": (lambda a: {"k": a["k"].double()}, "k is torch.float64"),
    "dtype of v": (lambda a: {"v": a["v"].half()}, r"torch.float32 .* torch.float16 .* alike"),
    "heads of k": (lambda a: {"k": a["k"][:, :1]}, r"k is \[24, 1, 32, 64\]: it must be \[any, 2, any, 64\]"),
    "shape of v": (lambda a: {"v": a["v"][:, :, :5]}, r"\[24, 2, 5, 64\].* alike"),
    "layout of q": (lambda a: {"q": a["q"].transpose(2, 3).contiguous().transpose(2, 3)}, "q has strides"),
    "rows of k": (lambda a: {"k": a["k"].transpose(2, 3).contiguous().transpose(2, 3)}, "k has strides"),
    "dtype of index": (lambda a: {"blocks": a["blocks"]._replace(index=a["blocks"].index.long())}, "int64"),
    "shape of length": (lambda a: {"blocks": a["blocks"]._replace(length=a["blocks"].length[..., :3])}, r"\[1, 2, 3\]"),
    "stride of index": (lambda a: {"blocks": BlockList(*(t[..., ::2] for t in a["blocks"]))}, "stride"),
    "out": (lambda a: {"out": Partial(torch.empty(1, 2, 3, 64), torch.empty(1, 2, 4))}, r"out.lse is \[1, 2, 4\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_is_named(name):
    call = make_call(Case("good"), torch.float32)
    args = {"q": call.q, "k": call.k, "v": call.v, "blocks": call.blocks, "scale": call.scale}
    change, message = BAD[name]
    with pytest.raises(KernelError, match=message):
        partial(**(args | change(args)))
