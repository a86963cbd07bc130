"""Every implementation of what the end of a step decides: exactly what the definitions say, ties too."""

from dataclasses import dataclass

import pytest
import torch

from scoutattention.types import (
    RecallRequest,
    ShareCounts,
    SharePolicy,
    ShareRequest,
    SlotTables,
    StepRows,
    WantedRequest,
)

from .columns import EXACT, assert_near
from .sizes import masks

pytestmark = pytest.mark.usefixtures("poisoned")
LAYERS, ROWS = 5, 6

POLICIES = [
    SharePolicy(0.05, 8, 0.085, 1e-4, 0.03),
    SharePolicy(None, 3, None, 0.0, 0.03),
    SharePolicy(0.05, 0, 0.5, 1e-4, 0.03),
]


@dataclass(frozen=True)
class Recalls:
    """Slots of rows with `blocks` blocks at most, and how many a recall moves; kinds: different values of interest."""

    B: int = 3
    H: int = 2
    slots: int = 7
    blocks: int = 30
    most: int = 3
    always: tuple[int, int] = (1, 1)
    kinds: int = 1000


RECALLS = [
    Recalls(),
    Recalls(kinds=3),
    Recalls(kinds=1),
    Recalls(B=1, H=1, slots=1, blocks=2, most=1),
    Recalls(slots=20, blocks=20, most=9, always=(0, 0)),
    Recalls(H=4, slots=65, blocks=300, most=16, always=(3, 2)),
    Recalls(slots=0),
]


@pytest.mark.parametrize("guarded", [False, True])
def test_counted_shares(column, guarded):
    B, H = 3, 2
    counts = torch.randint(0, 99, (3, LAYERS, 2 * ROWS * H))[:, :, : 2 * B * H].view(3, LAYERS, 2, B, H)
    every = masks(LAYERS + 1, ROWS)[:, :B]
    what = ShareCounts(counts, every[:LAYERS], every[LAYERS:], guarded, torch.tensor([1, 2, 3]))
    there = column.put(what)
    got, want = column.ops.count_shares(there), EXACT.count_shares(what)
    assert torch.equal(column.back(got), want)
    assert torch.equal(column.back(there.totals), what.totals)
    assert want.shape == (2, LAYERS + 1, B)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_followed_shares(column, policy):
    chosen = torch.randint(0, 60, (LAYERS + 1, 3))
    shares = torch.stack((chosen, (chosen * torch.rand(chosen.shape) * 0.3).long()))
    progress, threshold = torch.rand(LAYERS, ROWS), torch.rand(ROWS) * 0.01
    what = ShareRequest(shares, torch.randperm(ROWS)[:3], progress, threshold, policy, torch.tensor(4))
    there = column.put(what)
    got, want = column.ops.follow_shares(there), EXACT.follow_shares(what)
    assert torch.equal(column.back(got), want)
    assert torch.equal(column.back(there.progress), what.progress)
    assert torch.equal(column.back(there.recalls), what.recalls)
    assert_near(column.back(there.threshold), what.threshold, 1e-6)
    assert (what.recalls > 4) == (policy.interval > 0)


def request(s: Recalls) -> RecallRequest:
    """Tables that agree with each other: some slots are empty, and some rows have fewer than the others."""
    closed, size = torch.randint(s.blocks // 2, s.blocks, (s.B,)), 4
    row, quota = torch.randperm(ROWS)[: s.B], torch.randint(s.slots // 2, s.slots + 1, (ROWS,))
    shape = (LAYERS, ROWS, s.H)
    content = torch.full((*shape, s.slots), -1)
    slot_of = torch.full((*shape, s.blocks), s.slots)
    for place in range(s.B):
        for layer in range(LAYERS):
            for head in range(s.H):
                held = min(int(quota[row[place]]), int(closed[place]) - int(torch.randint(0, 4, ())))
                slots, blocks = torch.randperm(int(quota[row[place]]))[:held], torch.randperm(int(closed[place]))[:held]
                content[layer, row[place], head, slots] = blocks
                slot_of[layer, row[place], head, blocks] = slots
    interest = torch.randint(0, s.kinds, (*shape, s.blocks)) / s.kinds
    length = torch.nn.functional.pad((content >= 0).int() * size, (1, 0))
    index = torch.randint(0, 99, (ROWS, 1 + s.slots)).int()
    lists = torch.full((2, *shape, 1 + s.most), 77)
    return RecallRequest(
        SlotTables(content, slot_of, interest, length, index, quota),
        StepRows(row, closed, torch.where(torch.rand(s.B) < 0.5, size - 1, 1)),
        *(masks(LAYERS, s.B), s.always, torch.randint(0, 999, (ROWS, s.blocks)).int(), tuple(lists)),
        recalled=torch.tensor(5),
        size=size,
    )


@pytest.mark.parametrize("sizes", RECALLS, ids=str)
def test_recalled(column, sizes):
    for seed in range(3):
        torch.manual_seed(seed)
        what = request(sizes)
        there = column.put(what)
        column.ops.recall(there)
        EXACT.recall(what)
        for name, mine, theirs in zip(SlotTables._fields, column.back(there.slots), what.slots, strict=True):
            assert torch.equal(mine, theirs), name
        (page, entry), (want_page, want_entry) = column.back(there.copies), what.copies
        assert torch.equal(page, want_page)
        assert torch.equal(entry[want_page >= 0], want_entry[want_page >= 0])
        assert torch.equal(column.back(there.recalled), what.recalled)
        others = [row for row in range(ROWS) if row not in what.rows.row.tolist()]
        assert (page[:, others] == 77).all(), "lists of other sequences stay"
        assert what.recalled > 5 or sizes.slots < 2 or sizes.kinds == 1


@pytest.mark.parametrize("sizes", RECALLS, ids=str)
def test_given_slots(column, sizes):
    for layer in range(LAYERS):
        torch.manual_seed(layer)
        slots, rows, *_ = whole = request(sizes)
        blocks = torch.rand(sizes.B, sizes.H, sizes.blocks).argsort(-1)[..., : sizes.blocks // 2].contiguous()
        absent = slots.slot_of[layer, rows.row].gather(-1, blocks) == sizes.slots
        absent &= blocks < rows.closed[:, None, None]
        what = WantedRequest(
            *(slots, layer, rows, blocks, absent, sizes.always, whole.table, torch.tensor(5), whole.size)
        )
        there = column.put(what)
        got, want = column.ops.give_wanted(there), EXACT.give_wanted(what)
        for name, mine, theirs in zip(SlotTables._fields, column.back(there.slots), what.slots, strict=True):
            assert torch.equal(mine, theirs), name
        given = want.page >= 0
        assert torch.equal(column.back(got.page), want.page)
        for mine, theirs in zip(column.back(got), want, strict=True):
            assert torch.equal(mine[given], theirs[given])
        assert torch.equal(column.back(there.fetched), what.fetched)
        assert what.fetched - 5 == given.sum()
