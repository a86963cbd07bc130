"""Every implementation of what moves keys, values and queries: bit for bit what the definitions say."""

import pytest
import torch
from torch import Tensor

from scoutattention.kernels import plain
from scoutattention.kernels.requests import CallRequest, NearRequest, PartialRequest, TakeRequest
from scoutattention.runtime.handover import FlagTable
from scoutattention.runtime.packed import Packed, pack
from scoutattention.types import BlockList, CallFlags, CloseRequest, Copies, PageSelection, StepRows

from .columns import DTYPES, EXACT, assert_near, every_call, wide
from .sizes import GARBAGE, SIZES, Sizes, chosen, pages_of, queries, scattered, selection, split_request

PACKED = [Sizes(H=1, D=16, P=16), Sizes(H=3, D=80, P=5), Sizes(D=128, P=32)]
"""Sizes of packed pages: of whole words, and of words that are partly used, along channels and along rows."""

pytestmark = pytest.mark.usefixtures("poisoned")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_bits = pytest.mark.parametrize("bits", [8, 4])
on_both_sides = pytest.mark.parametrize("on_host", [False, True], ids=["on the device", "on the host"])


def assert_bits(got, want) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def packed_pair(pools: torch.Tensor, bits: int) -> tuple[Packed, Packed]:
    """Keys and values in codes, as the cache packs them."""
    return pack(pools[0], bits, by_token=False), pack(pools[1], bits, by_token=True)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_page_lists(column, sizes):
    what = selection(sizes)
    got, want = column.call("page_list", what), plain.page_list(what)
    assert_bits(got, want)
    assert want.length.unique().tolist() in ([0, sizes.P], [0], [sizes.P])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("all_first", [False, True])
def test_lists_with_the_open_block(column, sizes, all_first):
    """Sequences with fewer blocks than are chosen, a table whose rows are further apart than they are long."""
    s, what = sizes, selection(sizes)
    candidates = torch.rand(s.B, s.H, s.NB).argsort(-1)
    opened = torch.randint(0, s.S, (s.B,)), torch.randint(0, s.P, (s.B,))
    picks = None if all_first else chosen(s)
    request = NearRequest(what.table, candidates, picks, s.N, torch.randint(0, s.NB + 1, (s.B,)), opened, s.P)
    got = column.call("near_list", request)
    assert_bits(got, plain.near_list(request, plain.page_list))
    assert torch.equal(got.index[..., 0], opened[0].int()[:, None].expand(-1, s.H))
    blocks = candidates[..., : s.N] if picks is None else candidates.gather(-1, picks)
    wanted = blocks < request.closed[:, None, None]
    assert torch.equal(got.length[..., 1:], wanted.int() * s.P)
    assert torch.equal(got.index[..., 1:], plain.page_list(PageSelection(what.table, blocks, wanted, s.P)).index)


@every_call(SIZES, SIZES[2:3])
def test_a_staged_call(column, sizes, dtype):
    what, q = selection(sizes), queries(sizes, dtype)
    want = plain.page_list(what)
    lists = BlockList(*(torch.full(want.index.shape, GARBAGE, dtype=torch.int32) for _ in range(2)))
    to = column.put_on_host((torch.full(q.shape, torch.nan), lists))
    table = FlagTable(column.device)
    _, flags = table.add(), table.add()
    for number in (1, 2):
        column.ops.stage_call(column.put(q), column.put(what), to, flags)
        got_q, got = column.back(to)
        assert torch.equal(got_q, q.float())
        assert_bits(got, want)
        assert (flags.called.item(), flags.counts.tolist()) == (number, [0, number, 0, 0])


@every_call(SIZES, SIZES[2:3])
def test_a_split_that_calls(column, sizes, dtype):
    """What is staged is what is absent, and the pages of all candidates are found by the way."""
    s, q = sizes, queries(sizes, dtype)
    what, call = split_request(s), CallRequest(q, pages_of(s)[:, 0].contiguous(), s.P)
    want = EXACT.split_choice(what)
    lists = BlockList(*(torch.full((s.B, s.H, s.N), GARBAGE, dtype=torch.int32) for _ in range(2)))
    to, table = column.put_on_host((torch.full(q.shape, torch.nan), lists)), FlagTable(column.device)
    _, flags = table.add(), table.add()
    for number in (1, 2):
        there = column.put(what)
        got, pages = column.back(column.ops.split_and_call(there, column.put(call), to, flags))
        assert_bits(got, want)
        assert torch.equal(column.back(there.counts), what.counts)
        assert torch.equal(pages, plain.page_list(PageSelection(call.table, what.candidates, want.absent, 0)).index)
        staged, listed = column.back(to)
        assert torch.equal(staged, q.float())
        assert_bits(listed, plain.page_list(PageSelection(call.table, want.blocks, want.absent, s.P)))
        assert (flags.called.item(), flags.counts.tolist()) == (number, [0, number, 0, 0])


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside attention"])
@pytest.mark.parametrize(("size", "rows"), [(7, 3), (3000, 40), (1024, 1024)])
def test_a_taken_call(column, size, rows, beside):
    """What the CPU has answered is taken; what is late is no keys, and nothing is waited for after it."""
    (result,) = column.put_on_host((torch.randn(size),))
    nothing = torch.where(torch.arange(size) < size - rows, 0.0, -torch.inf)
    table = FlagTable(column.device)
    first, second, third = table.add(), table.add(), table.add()
    for flags, answered in ((first, 7), (second, 6), (third, 7)):
        flags.counts[1] = 7
        flags.answered.fill_(answered)

    s, (blocks, slots) = Sizes(), scattered(Sizes())
    q, (k, v) = queries(s), torch.randn(2, slots, s.H, s.P, s.D)
    near = column.put(PartialRequest(q, k, v, blocks, 0.2))

    def take(flags: CallFlags, timeout_s: float) -> Tensor:
        if not beside:
            return column.back(column.ops.take_call(result, flags, rows, timeout_s))
        partial, taken = column.back(column.ops.partial_and_take(near, TakeRequest(result, flags, rows, timeout_s)))
        assert_near(partial.out, EXACT.partial(*wide((q, k, v)), blocks, 0.2).out, 1e-5)
        return taken

    assert torch.equal(take(first, 60), result)
    assert table.take_late() == 0
    assert torch.equal(take(second, 0.05), nothing)
    # What attention hides does not count; of the interpreter's programs that is all, for that which waits is the first.
    least = 0.05 if not beside else 0.04 if column.name != "triton-interpreted" else 0.0
    assert least * 1e9 <= second.waited.item() < 5e9
    assert torch.equal(take(third, 60), result), "it is there"
    third.counts[1] = 8
    assert torch.equal(take(third, 60), nothing)
    assert third.waited.item() < 5e9
    assert (table.take_late(), table.take_late()) == (second.line, 0)
    assert torch.equal(take(third, 0.05), nothing)
    assert third.waited.item() >= least * 1e9, "it is waited for again"
    assert table.take_late() == third.line


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


@every_bits
@every_call(PACKED, PACKED[1:2])
def test_copies_of_packed_pages(column, sizes, dtype, bits):
    s, layers, entries, moves = sizes, 3, 30, 11
    source = packed_pair(torch.randn(2, layers, s.S, s.H, s.P, s.D), bits)
    place, page = torch.randperm(layers * entries * s.H)[:moves], torch.randint(0, s.S, (moves,))
    copies = Copies(place // (entries * s.H), page, place // s.H % entries, place % s.H)
    got = column.put(tuple(torch.zeros(2, layers, entries, s.H, s.P, s.D).to(dtype)))
    column.ops.copy_blocks(column.put_on_host(source), got, column.put(copies))
    want = tuple(torch.zeros(2, layers, entries, s.H, s.P, s.D).to(dtype))
    EXACT.copy_blocks(source, want, copies)
    if dtype == torch.bfloat16 and column.name == "triton-interpreted":  # the interpreter rounds towards zero
        torch.testing.assert_close(column.back(got), want, rtol=2**-7, atol=0)
    else:
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


@pytest.mark.parametrize("bits", [8, 4])
def test_closed_blocks_of_packed_pages(column, bits):
    s, layers = Sizes(), 3
    opened = torch.randn(2, layers, 9, s.H, s.P, s.D)
    want, what = packed_pair(torch.zeros(2, layers, 6 * s.NB, s.H, s.P, s.D), bits), closing(s)
    got = column.put_on_host(want)
    column.ops.close_blocks(column.put(tuple(opened)), got, column.put(what))
    EXACT.close_blocks(tuple(opened), want, what)
    for mine, theirs in zip(column.back(got), want, strict=True):
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


@every_bits
def test_packed_pages_hold_extremes_and_hide_nothing(column, bits):
    """Written and copied: whether numbers are finite is kept, and they are what the definitions say."""
    new = torch.randn(2, 1, 2, 8, 16)
    new[:, 0, 0, 0, :5] = torch.tensor([3e38, -3e38, 3.4e38, torch.nan, torch.inf])
    new[:, 0, 0, 1, :6] = torch.tensor([-3e38, 1e-38, 3.4e38, 1, -torch.inf, -torch.inf])
    got, want = (packed_pair(torch.zeros(2, 1, 2, 8, 16), bits) for _ in range(2))
    there, here = column.put_on_host(got), torch.zeros(1, dtype=torch.int64)
    column.ops.write_blocks(column.put(tuple(new)), there, column.put(here))
    EXACT.write_blocks(tuple(new), want, here)
    every = Copies(*torch.tensor([[0, 0], [0, 0], [0, 0], [0, 1]]))
    copies, exact = column.put(tuple(torch.zeros(2, 1, 1, 2, 8, 16))), tuple(torch.zeros(2, 1, 1, 2, 8, 16))
    column.ops.copy_blocks(tuple(part[None] for part in there), copies, column.put(every))
    EXACT.copy_blocks(tuple(part[None] for part in want), exact, every)
    for mine, theirs, rows in zip(column.back(copies), exact, new, strict=True):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        assert torch.equal(mine.isfinite().all(-2)[0, 0], rows.isfinite().all(-2)[0])
        torch.testing.assert_close(mine.nan_to_num(0, 0, 0), theirs.nan_to_num(0, 0, 0), rtol=0, atol=0)


@every_bits
@every_call(PACKED, PACKED[1:2])
def test_written_blocks_of_packed_pages(column, sizes, dtype, bits):
    s = sizes
    new, pages = torch.randn(2, 4, s.P, s.H, s.D).to(dtype).transpose(2, 3), torch.randperm(s.S)[:4]
    new[:, 0, :, 0] = 0.25  # channels that do not change
    powers = (-6, 4) if dtype == torch.float16 else (-34, 38)  # the interpreter reads no subnormal bfloat16
    new[:, 1:3] *= 10.0 ** torch.linspace(*powers, s.D)
    got, want = (packed_pair(torch.zeros(2, s.S, s.H, s.P, s.D), bits) for _ in range(2))
    there = column.put_on_host(got)
    column.ops.write_blocks(column.put(tuple(new)), there, column.put(pages))
    EXACT.write_blocks(tuple(new), want, pages)
    for mine, theirs in zip(column.back(there), want, strict=True):
        assert_bits([mine.words, mine.bounds], [theirs.words, theirs.bounds])
        assert theirs.float().count_nonzero() > 0
