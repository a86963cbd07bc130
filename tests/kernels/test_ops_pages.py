"""Every implementation of what moves keys, values and queries: bit for bit what the definitions say."""

import pytest
import torch

from scoutattention.kernels import plain
from scoutattention.runtime.packed import Packed, pack
from scoutattention.types import BlockList, CloseRequest, Copies, StepRows

from .columns import DTYPES, EXACT, every_call
from .sizes import GARBAGE, SIZES, Sizes, queries, selection

pytestmark = pytest.mark.usefixtures("poisoned")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
on_both_sides = pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])


def assert_bits(got, want) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def packed_pair(pools: torch.Tensor) -> tuple[Packed, Packed]:
    """Keys and values in 8 bits, as the cache packs them."""
    return pack(pools[0], 8, by_token=False), pack(pools[1], 8, by_token=True)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_page_lists(column, sizes):
    what = selection(sizes)
    got, want = column.call("page_list", what), plain.page_list(what)
    assert_bits(got, want)
    assert want.length.unique().tolist() in ([0, sizes.P], [0], [sizes.P])


@every_call(SIZES, SIZES[2:3])
def test_a_staged_call(column, sizes, dtype):
    what, q = selection(sizes), queries(sizes, dtype)
    want = plain.page_list(what)
    lists = BlockList(*(torch.full(want.index.shape, GARBAGE, dtype=torch.int32) for _ in range(2)))
    to = column.put_on_host((torch.full(q.shape, torch.nan), lists))
    column.ops.stage_call(column.put(q), column.put(what), to)
    got_q, got = column.back(to)
    assert torch.equal(got_q, q.float())
    assert_bits(got, want)


@every_call(SIZES, SIZES[2:3])
def test_appended_tokens(column, sizes, dtype):
    s = sizes
    pools = torch.randn(2, s.S, s.H, s.P, s.D).to(dtype)
    projected = torch.randn(s.B, s.H, 2 * s.D).to(dtype)
    k, v = projected[..., : s.D], projected[..., s.D :]
    entry, fill = torch.randperm(s.S)[: s.B], torch.randint(0, s.P, (s.B,))
    got, want = column.put(tuple(pools)), tuple(pools.clone())
    column.ops.append(*column.put((k, v)), got, *column.put((entry, fill)))
    plain.append(k, v, want, entry, fill)
    assert_bits(column.back(got), want)
    assert torch.equal(want[0][entry[0], :, fill[0]], k[0])


@on_both_sides
@pytest.mark.parametrize(
    ("P", "D", "dtype"),
    [
        (8, 64, torch.float32),
        *((32, 80, dtype) for dtype in DTYPES),
        (130, 64, torch.bfloat16),
        (1, 7, torch.float32),
    ],
    ids=str,
)
def test_copies(column, P, D, on_host, dtype):
    layers, pages, entries, H, moves = 3, 20, 30, 4, 70
    pools = torch.randn(2, layers, pages, H, P, D).to(dtype)
    place, page = torch.randperm(layers * entries * H)[:moves], torch.randint(0, pages, (moves,))
    layer, entry, head = place // (entries * H), place // H % entries, place % H
    page = page.masked_fill(torch.rand(moves) < 0.2, -1)
    source = column.put_on_host(tuple(pools)) if on_host else column.put(tuple(pools))
    got = column.put(tuple(torch.ones(2, layers, entries, H, P, D).to(dtype)))
    column.ops.copy_blocks(source, got, column.put(Copies(layer, page, entry, head)))
    for mine, here in zip(column.back(got), pools, strict=True):
        want, there = torch.ones(layers, entries, H, P, D).to(dtype), page >= 0
        want[layer[there], entry[there], head[there]] = here[layer[there], page[there], head[there]]
        assert_bits([mine], [want])


def test_copies_of_packed_pages(column):
    s, layers, entries, moves = Sizes(), 3, 30, 11
    source = packed_pair(torch.randn(2, layers, s.S, s.H, s.P, s.D))
    place, page = torch.randperm(layers * entries * s.H)[:moves], torch.randint(0, s.S, (moves,))
    copies = Copies(place // (entries * s.H), page, place // s.H % entries, place % s.H)
    got = column.put(tuple(torch.zeros(2, layers, entries, s.H, s.P, s.D)))
    column.ops.copy_blocks(source, got, column.put(copies))
    want = tuple(torch.zeros(2, layers, entries, s.H, s.P, s.D))
    EXACT.copy_blocks(source, want, copies)
    assert_bits(column.back(got), want)
    assert all(pool.count_nonzero() > 0 for pool in want)


def closing(s: Sizes) -> CloseRequest:
    """Four sequences, two of which are full."""
    closed, fill = torch.randint(0, s.NB, (4,)), torch.tensor([s.P - 1, 0, s.P - 1, s.P - 2])
    table = torch.randperm(6 * s.NB).view(6, s.NB).int()
    return CloseRequest(StepRows(torch.randperm(6)[:4], closed, fill), torch.randperm(9)[:4], table)


@every_dtype
@on_both_sides
def test_closed_blocks(column, on_host, dtype):
    s, layers = Sizes(), 3
    opened, pages = (torch.randn(2, layers, count, s.H, s.P, s.D).to(dtype) for count in (9, 6 * s.NB))
    what, want = closing(s), pages.clone()
    got = column.put_on_host(tuple(pages)) if on_host else column.put(tuple(pages))
    column.ops.close_blocks(column.put(tuple(opened)), got, column.put(what))
    for place in (0, 2):
        page = what.table[what.rows.row[place], what.rows.closed[place]]
        want[:, :, page] = opened[:, :, what.entry[place]]
    assert_bits(column.back(got), tuple(want))


def test_closed_blocks_of_packed_pages(column):
    s, layers = Sizes(), 3
    opened = torch.randn(2, layers, 9, s.H, s.P, s.D)
    got, want = (packed_pair(torch.zeros(2, layers, 6 * s.NB, s.H, s.P, s.D)) for _ in range(2))
    what = closing(s)
    column.ops.close_blocks(column.put(tuple(opened)), got, column.put(what))
    EXACT.close_blocks(tuple(opened), want, what)
    column.back(())
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.float(), theirs.float())
        assert theirs.float().count_nonzero() > 0


@every_dtype
@on_both_sides
def test_written_blocks(column, on_host, dtype):
    s = Sizes()
    new = torch.randn(2, 4, s.P, s.H, s.D).to(dtype).transpose(2, 3)
    pools, pages = torch.randn(2, s.S, s.H, s.P, s.D).to(dtype), torch.randperm(s.S)[:4]
    got = column.put_on_host(tuple(pools)) if on_host else column.put(tuple(pools))
    column.ops.write_blocks(column.put(tuple(new)), got, column.put(pages))
    want = pools.clone()
    want[:, pages] = new
    assert_bits(column.back(got), tuple(want))


def test_written_blocks_of_packed_pages(column):
    s = Sizes()
    new, pages = torch.randn(2, 4, s.P, s.H, s.D).transpose(2, 3), torch.randperm(s.S)[:4]
    got, want = (packed_pair(torch.zeros(2, s.S, s.H, s.P, s.D)) for _ in range(2))
    column.ops.write_blocks(column.put(tuple(new)), got, column.put(pages))
    EXACT.write_blocks(tuple(new), want, pages)
    column.back(())
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine.float(), theirs.float())
        assert theirs.float().count_nonzero() > 0
