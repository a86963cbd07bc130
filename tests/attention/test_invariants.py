"""Invariants I1 to I5 of the cache (I6, merge over partitions, is the kernels'), each over random histories."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.config import ScoutConfig
from scoutattention.runtime.workers import Workers

from .rig import SHAPE, RecordingWorkers, Rig, attended

WORKERS = Workers(2)
few = settings(max_examples=15, deadline=None)
prompts = st.lists(st.integers(1, 100), min_size=1, max_size=3)
sizes = st.sampled_from([1, 4, 8])


def scout(block_size: int, **options) -> ScoutConfig:
    settings = {
        "budget": 6 * block_size,
        "true_query_layers": (),
        "recall_interval": 2,
        "digest": "minmax",
        "guard": None,
    }
    return ScoutConfig().changed(block_size=block_size, **(settings | options))


def drop_random(rig: Rig) -> None:
    """Empty about half of the slots of every layer."""
    slots = rig.store.slots
    slots.complete = lambda batch: [False] * batch.size  # which no sequence need be any more
    dropped = (slots.content >= 0) & (torch.rand(slots.content.shape) < 0.5)
    layer, row, head, _ = torch.nonzero(dropped, as_tuple=True)
    slots.slot_of[layer, row, head, slots.content[dropped]] = slots.size
    slots.content[dropped] = -1
    slots.near_length[..., 1:][dropped] = 0


@few
@given(prompts, sizes, st.integers(0, 9), st.integers(0, 2**31))
def test_i1_a_closed_block_has_a_page_and_never_changes(lengths, block_size, quota, seed):
    rig = Rig(scout(block_size), quota, seed, WORKERS)
    for tokens in lengths:
        rig.add(tokens)
    for _ in range(2 * block_size + 1):
        rig.step()
    pages = rig.store.pages
    for row, tokens in enumerate(lengths):
        closed = (tokens + 2 * block_size + 1) // block_size
        assert rig.store.closed[row] == closed
        for block in range(closed):
            page, span = pages.page(row, block), slice(block * block_size, (block + 1) * block_size)
            for layer in range(SHAPE.num_layers):
                keys, values = rig.keys[row][layer][span], rig.values[row][layer][span]
                assert torch.equal(pages.pool.k[layer, page], keys.transpose(0, 1))
                assert torch.equal(pages.pool.v[layer, page], values.transpose(0, 1))
                bounds = torch.cat([keys.amax(0), keys.amin(0)], -1)
                assert torch.equal(rig.digests.judge._values[layer, page], bounds)


@few
@given(prompts, sizes, st.integers(0, 9), st.integers(0, 2**31))
def test_i2_dropping_slots_between_steps_loses_nothing(lengths, block_size, quota, seed):
    rig = Rig(scout(block_size, budget=None, predictor="oracle"), quota, seed, WORKERS)
    for tokens in lengths:
        rig.add(tokens)
    for _ in range(block_size + 2):
        drop_random(rig)
        qs, outs, _ = rig.step()
        assert rig.error(qs, outs) < 1e-5


@few
@given(prompts, sizes, st.integers(2, 9), st.sampled_from(["compute", "fetch", "drop"]), st.integers(0, 2**31))
def test_i3_and_i5_always_blocks_are_attended_and_none_twice(lengths, block_size, quota, on_miss, seed):
    quota = max(quota, 5) if on_miss == "fetch" else quota
    rig = Rig(scout(block_size, on_miss=on_miss), quota, seed, RecordingWorkers(2))
    for tokens in lengths:
        rig.add(tokens)
    for _ in range(block_size + 2):
        if on_miss == "compute":
            drop_random(rig)
        closed = list(rig.store.closed)
        seen: dict[tuple[int, int, int], list[int]] = {}

        def note(layer, seen=seen):
            pools = (rig.store.pages.pool.k[layer].data_ptr(), rig.store.slots.pool.k[layer].data_ptr())
            mine = [entry for entry in rig.workers.lists if entry[0].data_ptr() in pools]
            for k, blocks in mine:
                for (row, head), named in attended(rig, k, blocks).items():
                    seen.setdefault((layer, row, head), []).extend(named)
            rig.workers.lists = [entry for entry in rig.workers.lists if entry[0].data_ptr() not in pools]

        rig.step(between=note)
        for layer in range(SHAPE.num_layers):
            for row in range(len(lengths)):
                for head in range(SHAPE.num_kv_heads):
                    named = seen[layer, row, head]
                    assert len(named) == len(set(named)), "a block was attended twice"
                    always = {-1} | {b for b in range(closed[row]) if b == 0 or b == closed[row] - 1}
                    assert always <= set(named)
    rig.workers.close()


@few
@given(prompts, sizes, st.integers(0, 9), st.sampled_from(["compute", "drop"]), st.integers(0, 2**31))
def test_i4_residency_changes_only_between_steps(lengths, block_size, quota, on_miss, seed):
    rig = Rig(scout(block_size, on_miss=on_miss), quota, seed, WORKERS)
    for tokens in lengths:
        rig.add(tokens)
    changed = False
    for _ in range(block_size + 4):
        before = rig.store.slots.content.clone()

        def unchanged(layer, before=before):
            assert torch.equal(rig.store.slots.content, before)

        rig.step(between=unchanged)
        changed |= not torch.equal(rig.store.slots.content, before)
    assert changed or quota < 3, "a block was closed and none of the slots took it"


@few
@given(prompts, sizes, st.integers(0, 30), st.sampled_from(["compute", "fetch", "drop"]), st.integers(0, 2**31))
def test_a_sequence_has_absent_blocks_only_where_it_has_more_blocks_than_slots(lengths, size, quota, on_miss, seed):
    """So that the host need not ask the device."""
    quota = max(quota, 5) if on_miss == "fetch" else quota
    rig = Rig(scout(size, on_miss=on_miss, recall_interval=1, recall_target=None), quota, seed, WORKERS)
    for tokens in lengths:
        rig.add(tokens)
    slots, rows = rig.store.slots, len(lengths)
    for step in range(2 * size + 3):
        closed = torch.tensor(rig.store.closed[:rows])
        held = slots.near_length[:, :rows, :, 1:].count_nonzero(-1)
        complete = (held == closed[:, None]).all(-1).all(0)
        assert complete.tolist() == slots.complete(rig.store.prepare(range(rows))) == (closed <= quota).tolist(), step
        rig.step()
