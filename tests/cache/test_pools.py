"""Pools hand out what they have, tables know whose it is, and rows can move."""

from dataclasses import replace

import pytest
import torch

from scoutattention.cache.digests.make import make_digests
from scoutattention.cache.digests.stages import Stages
from scoutattention.cache.pages import Pages
from scoutattention.cache.pool import BlockPool, PackedPool
from scoutattention.cache.prefix import Prefix
from scoutattention.cache.slots import Slots
from scoutattention.cache.store import KVStore
from scoutattention.errors import CapacityError
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.reference import min_max
from scoutattention.kernels.reference_recall import Moves
from scoutattention.kernels.triton.base import INTERPRETED
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.runtime.packed import pack
from scoutattention.runtime.workers import Workers
from scoutattention.types import StepRows, WantedRequest

from ..attention.rig import SHAPE, make_pages

OPS = NativeOps(Workers(1))
TRITON = TritonOps(torch.device("cpu")) if INTERPRETED else OPS


def test_a_pool_never_gives_an_entry_twice_and_takes_it_back():
    pool = BlockPool(SHAPE, 4, 6, knob="host_memory")
    first, second = pool.take(4), pool.take(2)
    assert sorted(first + second) == list(range(6))
    assert pool.entry_bytes == 3 * 2 * 2 * 4 * 16 * 4 == pool.k[:, 0].nbytes + pool.v[:, 0].nbytes
    with pytest.raises(CapacityError, match=r"1 blocks .* 0 of 6 are free: raise host_memory"):
        pool.take(1)
    pool.give(first)
    assert pool.available == 4


def test_a_refused_request_takes_nothing():
    pool = BlockPool(SHAPE, 4, 3, knob="host_memory")
    with pytest.raises(CapacityError):
        pool.take(4)
    assert pool.available == 3


def test_a_slot_filled_anew_has_its_new_block_alone():
    store = KVStore(make_pages(4, 10, 2, 5, OPS)[0], Slots(SHAPE, 4, 10, 2, 5), OPS)
    pages, slots = store.pages, store.slots
    for row in range(2):
        store.admit(row, 5, 2)
    pages.pool.k.normal_()
    pages.pool.v.normal_()
    rows, wanted = StepRows(*torch.tensor([[1], [5], [0]])), torch.ones(1, 2, 1, dtype=torch.bool)
    slots.interest[2, 1, :, 4] = 1.0
    for block in (3, 2, 4, 1):
        chosen = torch.full((1, 2, 1), block)
        copies = OPS.give_wanted(
            WantedRequest(slots.tables, 2, rows, chosen, wanted, (0, 0), pages.table, torch.tensor(0), 4)
        )
        store.transfers.copy(copies)
        page, entry = int(pages.table[1, block]), int(copies.entry[0])
        assert torch.equal(slots.pool.k[2, entry], pages.pool.k[2, page])
        assert torch.equal(slots.pool.v[2, entry], pages.pool.v[2, page])
    assert slots.content[2, 1, 0].tolist() == [4, 1, -1, -1, -1]
    assert slots.slot_of[2, 1, 0].tolist() == [slots.size, 1, slots.size, slots.size, 0]
    assert slots.near_length[2, 1, 0].tolist() == [0, 4, 4, 0, 0, 0]
    assert (slots.content[:, 0] == -1).all()


def test_a_moved_row_is_the_same_sequence():
    store = KVStore(make_pages(4, 20, 3, 5, OPS)[0], Slots(SHAPE, 4, 20, 3, 5), OPS)
    for row in range(3):
        store.admit(row, 5, row + 1)
        k = torch.randn(11, 2, 16)
        for layer in range(3):
            store.write_prompt(layer, row, k, k)
        store.finish_prompt(row, 11)
    pages, near, quota = store.pages.table[2].tolist(), store.slots.near_index[2].tolist(), store.slots.quota[2]
    store.release(0)
    store.move(2, 0)
    assert store.pages.table[0].tolist() == pages
    assert store.slots.near_index[0].tolist() == near
    assert store.slots.quota[0] == quota == 3
    assert (store.closed[0], store.fill[0]) == (2, 3)
    assert torch.equal(store.pages.pool.k[0, store.pages.page(0, 1)], k[4:8].transpose(0, 1))
    for row in (0, 1):
        store.release(row)
    assert store.pages.pool.available == 20
    assert store.slots.pool.available == 20


def make_packed_store(bits: int) -> tuple[KVStore, Stages]:
    pool = PackedPool(SHAPE, 4, 20, "host_memory", bits=bits)
    digests = make_digests("minmax", SHAPE, pool, OPS, rows=1, dims=(16, 16))
    return KVStore(Pages(pool, digests.put, 3, 5, OPS), Slots(SHAPE, 4, 20, 3, 5), OPS), digests


@pytest.mark.parametrize("bits", [8, 4])
def test_a_packed_pool_takes_the_bytes_that_it_says(bits):
    pool = PackedPool(SHAPE, 8, 6, "host_memory", bits=bits)
    parts = (pool.k.words, pool.k.bounds, pool.v.words, pool.v.bounds)
    assert pool.entry_bytes == sum(part[:, 0].nbytes for part in parts)
    assert sum(part.untyped_storage().nbytes() for part in (pool.k.words, pool.v.words)) == 6 * pool.entry_bytes
    assert pool.entry_bytes < BlockPool(SHAPE, 8, 6, "host_memory").entry_bytes * (bits + 8) / 32 + 1


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_pages_are_written_once_and_recalled_as_they_were_kept(bits):
    store, digests = make_packed_store(bits)
    store.admit(1, 5, 2)
    k, v = torch.randn(11, 2, 16), torch.randn(11, 2, 16)
    for layer in range(3):
        store.write_prompt(layer, 1, k, v)
        store.digest_prompt(layer, 1, k, 0)
    store.finish_prompt(1, 11)
    one = torch.tensor([1])
    store.transfers.copy_now(2 * one, Moves(one, torch.tensor([0]), torch.tensor([1]), torch.tensor([1])))
    keys, values = k[4:8].transpose(0, 1), v[4:8].transpose(0, 1)
    kept = pack(keys, bits, by_token=False), pack(values, bits, by_token=True)
    assert store.transfers.head_bytes == sum(part[0].nbytes for part in kept)
    entry = int(store.slots.near_index[1, 2])
    assert torch.equal(store.slots.pool.k[2, entry, 0], kept[0].float()[0])
    assert torch.equal(store.slots.pool.v[2, entry, 0], kept[1].float()[0])
    opened = int(store.slots.near_index[1, 0])
    assert torch.equal(store.slots.pool.k[2, opened, :, :3], k[8:].transpose(0, 1))
    page = store.pages.page(1, 1)
    assert torch.equal(digests.judge._values[2, page], min_max(keys)), "digests are of the keys, not of what was kept"


def test_packed_bytes_of_a_sequence():
    """Two closed blocks in packed pages and the open one on the device, where one of them has a slot as well."""
    store, _ = make_packed_store(8)
    store.admit(0, 5, 1)
    store.closed[0] = 2
    page, slot = store.pages.pool.entry_bytes, store.slots.pool.entry_bytes
    assert store.cache_bytes(1) == (2 * page + slot, 2 * slot)


def test_a_block_that_fills_up_is_packed():
    store, _ = make_packed_store(8)
    store.admit(0, 5, 1)
    new = torch.randn(4, 3, 2, 16)
    for token in new:
        batch = store.prepare([0])
        store.begin(batch)
        for layer in range(3):
            store.append(layer, token[layer, None], 2 * token[layer, None], batch)
        store.close(batch)
        store.end(batch)
    assert store.closed == [1, 0, 0]
    page, block = store.pages.page(0, 0), new.permute(1, 2, 0, 3)
    assert torch.equal(store.pages.pool.k[:, page].float(), pack(block, 8, by_token=False).float())
    assert torch.equal(store.pages.pool.v[:, page].float(), pack(2 * block, 8, by_token=True).float())


def test_blocks_are_digested_as_those_of_their_sequence_and_layer():
    """A prompt's, and those that steps fill up."""
    put = []
    pages = Pages(BlockPool(SHAPE, 4, 20, "host_memory"), lambda *what: put.append(what), 3, 5, OPS)
    store = KVStore(pages, Slots(SHAPE, 4, 20, 3, 5), OPS)
    for row in (2, 1):
        store.admit(row, 5, 1)
    k = torch.randn(7, 2, 16)
    for layer in range(3):
        store.digest_prompt(layer, 1, k, 1)
        _, places, owners = put.pop()
        assert (places.tolist(), owners.tolist()) == ([20 * layer + pages.page(1, 1)], [3 * layer + 1])
    batch = replace(store.prepare([1, 2]), full=(0, 1))
    store.close(batch)
    _, places, owners = put.pop()
    assert places.tolist() == [20 * layer + pages.page(row, 0) for layer in range(3) for row in (1, 2)]
    assert owners.tolist() == [3 * layer + row for layer in range(3) for row in (1, 2)]


@pytest.mark.parametrize(
    "change",
    [
        lambda store, batch: store.admit(1, 5, 1),
        lambda store, batch: store.release(0),
        lambda store, batch: store.move(0, 1),
        lambda store, batch: store.shrink(0, 0),
        lambda store, batch: store.finish_prompt(0, 9),
        lambda store, batch: store.end(batch),
        lambda store, batch: store.prepare([0]),
    ],
)
def test_a_step_that_was_prepared_is_right_until_something_changes(change):
    store, _ = make_packed_store(8)
    store.admit(0, 5, 1)
    store.finish_prompt(0, 6)
    batch = store.prepare([0, 2], 1)
    assert store.is_prepared(batch, range(0, 3, 2), 1)
    assert not store.is_prepared(batch, [0, 1], 1)
    assert not store.is_prepared(batch, [0, 2], 2)
    change(store, batch)
    assert not store.is_prepared(batch, [0, 2], 1)


def test_a_sequence_has_room_while_a_page_is_left():
    store, _ = make_packed_store(8)
    store.admit(0, 2, 1)
    for tokens, room in ((4, True), (7, True), (8, False)):
        store.finish_prompt(0, tokens)
        assert store.has_room([0]) == room


@pytest.mark.parametrize("ops", [OPS, PlainOps(torch.device("cpu")), TRITON], ids=lambda ops: type(ops).__name__)
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_a_row_goes_on_behind_pages_of_another(ops, bits):
    """What it reads of them is what was kept, and what it writes does not touch them."""
    pool = (
        BlockPool(SHAPE, 4, 20, "host_memory") if bits is None else PackedPool(SHAPE, 4, 20, "host_memory", bits=bits)
    )
    digests = make_digests("minmax", SHAPE, pool, ops, rows=1, dims=(16, 16))
    store = KVStore(Pages(pool, digests.put, 3, 5, ops), Slots(SHAPE, 4, 20, 3, 5), ops)
    store.admit(0, 4, 2)
    k, v = torch.randn(2, 11, 2, 16)
    for layer in range(3):
        store.write_prompt(layer, 0, k + layer, v + layer)
    store.finish_prompt(0, 11)
    store.admit(2, 5, 2, Prefix(None, (store.pages.page(0, 0), store.pages.page(0, 1))))
    new_k, new_v = torch.randn(2, 7, 2, 16)
    for layer in range(3):
        store.write_prompt(layer, 2, new_k, new_v)
    for layer in range(3):
        for found, whole, by_token in zip(
            store.read_prefix(layer, 2), (k + layer, v + layer), (False, True), strict=True
        ):
            blocks = whole[:8].view(2, 4, 2, 16).transpose(1, 2)
            kept = blocks if bits is None else pack(blocks, bits, by_token=by_token).float()
            assert torch.equal(found, kept.transpose(1, 2).flatten(0, 1))
    store.finish_prompt(2, 15)
    assert (store.closed[2], store.fill[2]) == (3, 3)
    own = store.pages.pool.k[2, store.pages.page(2, 2)]
    assert torch.equal(
        own.float(),
        new_k[:4].transpose(0, 1) if bits is None else pack(new_k[:4].transpose(0, 1), bits, by_token=False).float(),
    )
    opened = store.slots.pool.k[2, store.slots.open_entry(2), :, :3]
    assert torch.equal(opened, new_k[4:].transpose(0, 1))
    assert [part.shape for part in store.read_prefix(0, 1)] == [(0, 2, 16)] * 2


def test_a_row_is_given_back_when_nothing_writes_to_it_any_more(monkeypatch):
    """A prompt that was broken off may still be on its way to the pages."""
    store = KVStore(make_pages(4, 10, 2, 5, OPS)[0], Slots(SHAPE, 4, 10, 2, 5), OPS)
    store.admit(0, 3, 2)
    free_then = []
    monkeypatch.setattr(store.side, "join", lambda: free_then.append(store.pages.pool.available))
    store.release(0)
    assert free_then == [7]
    assert store.pages.pool.available == 10


@pytest.mark.parametrize("resident", [False, True])
def test_blocks_of_several_rows_are_closed_together(resident):
    pages, digests = make_pages(4, 20, 3, 5, OPS)
    store = KVStore(pages, None if resident else Slots(SHAPE, 4, 20, 3, 5), OPS)
    for row, begun in enumerate((0, 2, 0)):
        store.admit(row, 5, 1)
        store.finish_prompt(row, begun)
    new = torch.randn(4, 3, 3, 2, 16)  # steps, layers, rows, heads
    closed = []
    for token in new:
        batch = store.prepare(range(3))
        store.begin(batch)
        for layer in range(3):
            store.append(layer, token[layer], -token[layer], batch)
        closed.append(batch.full)
        store.close(batch)
        store.end(batch)
    assert closed == [(), (1,), (), (0, 2)]
    assert store.closed == [1, 1, 1]
    for row in (0, 2):
        page, block = pages.page(row, 0), new[:, :, row].permute(1, 2, 0, 3)
        assert torch.equal(pages.pool.k[:, page], block)
        assert torch.equal(pages.pool.v[:, page], -block)
        assert torch.equal(digests.judge._values[:, page], min_max(block))


@pytest.mark.parametrize(("closed", "width"), [(0, 64), (63, 64), (64, 128), (127, 128), (299, 300)])
def test_tables_of_captured_steps_have_room_for_the_next_block(closed, width):
    """Else the step after it is closed would have another key."""
    ops = NativeOps(Workers(1))
    ops.deferred = True
    store = KVStore(make_pages(4, 300, 1, 300, ops)[0], Slots(SHAPE, 4, 10, 1, 300), ops)
    store.admit(0, 300, 2)
    store.closed[0] = closed
    assert store.prepare([0]).width == width
