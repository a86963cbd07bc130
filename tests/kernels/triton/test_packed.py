"""What the table of operations does not ask of the kernels for packed pages: what is not read, and bad arguments."""

from dataclasses import replace

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.triton.packed_pages.blocks import copy_packed_blocks
from scoutattention.kernels.triton.packed_pages.partial import partial_packed
from scoutattention.kernels.triton.packed_pages.write import write_packed_blocks
from scoutattention.runtime.packed import empty_packed, pack
from scoutattention.types import BlockList

from ..columns import assert_near

H, P, D, S = 2, 8, 16, 5


def packed_pair(bits=8, *shape: int):
    rows = torch.randn(2, *(shape or (S, H, P, D)))
    return pack(rows[0], bits, by_token=False), pack(rows[1], bits, by_token=True)


def call(**changed):
    torch.manual_seed(0)
    index, length = torch.randint(0, S, (1, H, 3)).int(), torch.full((1, H, 3), P).int()
    args = {"q": torch.randn(1, H, 2, D), "k_v": packed_pair(), "blocks": BlockList(index, length), "scale": 0.3}
    return args | changed


def moves(count: int = 3) -> list[torch.Tensor]:
    return [torch.arange(count), torch.arange(count), torch.arange(count) % H]


@pytest.mark.parametrize("bits", [8, 4])
def test_pages_that_are_skipped_are_not_read(column, bits):
    """Their bounds are no numbers, and their indices lead nowhere."""
    pools = packed_pair(bits)
    index = torch.tensor([[[0, 2**31 - 1, 3], [1, 4, 2**31 - 1]]]).int()
    length = torch.tensor([[[P, 0, 3], [1, 5, 0]]]).int()
    args = call(k_v=pools, blocks=BlockList(index, length))
    want = reference.partial(args["q"].double(), *pools, args["blocks"], 0.3)
    for pool in pools:
        pool.bounds[2] = torch.nan
        pool.bounds[0, 1], pool.bounds[1, 0] = torch.inf, torch.nan
    q, blocks = column.put((args["q"], args["blocks"]))
    got = column.back(partial_packed(q, column.put_on_host(pools), blocks, 0.3))
    assert_near(got.out, want.out, 1e-4)
    assert_near(got.lse, want.lse, 1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_layer_of_a_pool_that_keeps_bounds_behind_words(column, bits):
    """Written, copied and attended to in a pool as the cache takes it; other layers stay as they are."""
    new, pages = torch.randn(2, 3, H, P, D), torch.tensor([4, 0, 2])
    pools = tuple(empty_packed((3, S, H, P, D), bits, by_token=by_token) for by_token in (False, True))
    for pool in pools:
        pool.memory.fill_(7)
    there = column.put(pools)
    layer = there[0][1], there[1][1]
    write_packed_blocks(*column.put((new[0], new[1])), layer, column.put(pages))
    got = column.put(tuple(torch.zeros(2, 6, H, P, D)))
    copy_packed_blocks(layer, got, *column.put((pages, torch.tensor([5, 1, 3]), torch.tensor([0, 1, 1]))))
    blocks = column.put(BlockList(pages.int().expand(1, H, 3), torch.full((1, H, 3), P).int()))
    partial = column.back(partial_packed(column.put(call()["q"]), layer, blocks, 0.3))
    back, copied = column.back(there), column.back(got)
    want = tuple(pack(rows, bits, by_token=by_token) for rows, by_token in zip(new, (False, True), strict=True))
    for mine, theirs, rows in zip(back, want, copied, strict=True):
        assert torch.equal(mine[1][pages].words, theirs.words)
        assert torch.equal(mine[1][pages].bounds, theirs.bounds)
        assert (mine.words[::2] == 7).all()
        assert torch.equal(rows[[5, 1, 3], [0, 1, 1]], theirs.float()[[0, 1, 2], [0, 1, 1]])
    every = BlockList(torch.arange(3).int().expand(1, H, 3), torch.full((1, H, 3), P).int())
    exact = reference.partial(call()["q"].double(), *want, every, 0.3)
    assert_near(partial.out, exact.out, 1e-4)


def test_nothing_to_do():
    pools, got = packed_pair(), tuple(torch.zeros(2, S, H, P, D))
    copy_packed_blocks(pools, got, *moves(0))
    write_packed_blocks(torch.empty(0, H, P, D), torch.empty(0, H, P, D), pools, torch.empty(0, dtype=torch.int64))
    assert not got[0].any()


def test_bad_arguments_are_named():
    (k, v), slots, one = packed_pair(), tuple(torch.zeros(2, S, H, P, D)), torch.tensor([0])
    new = torch.randn(1, H, P, D)
    for act, message in [
        (lambda: copy_packed_blocks((k, k), slots, *moves()), "only values by token"),
        (lambda: copy_packed_blocks((k, packed_pair(4)[1]), slots, *moves()), r"8 bits.* and .*4 bits.* must be alike"),
        (
            lambda: copy_packed_blocks((k, v), tuple(t[:, :1] for t in slots), *moves()),
            r"target\[0\] is \[5, 1, 8, 16\]",
        ),
        (lambda: copy_packed_blocks((k, v), (slots[0], slots[1].half()), *moves()), "target are .* laid out alike"),
        (lambda: copy_packed_blocks((k, v), slots, one, one, one.int()), r"head is torch\.int32"),
        (lambda: write_packed_blocks(new, new[..., :8], (k, v), one), r"v is \[1, 2, 8, 8\]"),
        (lambda: write_packed_blocks(new, new, (k, v), one.int()), r"pages is torch\.int32"),
        (lambda: write_packed_blocks(new, new, (replace(k, bounds=k.bounds.float()), v), one), r"k.bounds is torch\.f"),
        (lambda: write_packed_blocks(new, new, (replace(k, words=k.words[:, :, :2]), v), one), r"target.k.words is"),
        (lambda: partial_packed(**call(q=torch.randn(1, H, 2, 8))), r"k.bounds is \[5, 2, 2, 16\]"),
        (lambda: partial_packed(**call(q=torch.randn(1, 1, 2, D))), r"k.bounds is \[5, 2, 2, 16\]"),
        (lambda: partial_packed(**call(blocks=BlockList(torch.zeros(1, H, 3), call()["blocks"].length))), "index is"),
    ]:
        with pytest.raises(KernelError, match=message):
            act()
