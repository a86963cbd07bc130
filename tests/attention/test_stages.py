"""A choice in two stages: one look at all blocks for each layer and sequence, and candidates for the true query."""

from dataclasses import replace

import pytest
import torch

from scoutattention.attention.choose import TopChooser
from scoutattention.cache.memory_plan import kept_dims, key_code_bytes, scan_dims
from scoutattention.config import ScoutConfig
from scoutattention.runtime.workers import Workers

from .rig import SHAPE, Rig

WORKERS = Workers(2)


def config(**options) -> ScoutConfig:
    return ScoutConfig().changed(block_size=4, **({"budget": 24} | options))


def chooser_of(rig: Rig) -> TopChooser:
    return TopChooser(rig.config, rig.digests, rig.store.pages.table)


def watch_scores(rig: Rig, stage: str) -> list[tuple[int, torch.Tensor, int]]:
    """Fills with what is scored from now on: the layer, the closed blocks of each sequence, and the width."""
    kind, seen = getattr(rig.digests, stage), []
    top = kind.top

    def watched(layer, q, rows, pages, closed, how):
        seen.append((layer, closed.clone(), pages.shape[-1]))
        return top(layer, q, rows, pages, closed, how)

    kind.top = watched
    return seen


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_every_sequence_is_scanned_once_in_a_layer_and_step(lookahead):
    """Also where some sequences of a batch have scouts that are trusted, and others not."""
    rig = Rig(config(lookahead=lookahead, min_scout_cosine=-1), 9, workers=WORKERS)
    for tokens in (400, 230, 120):
        rig.add(tokens)
    rig.attention.trusted[:, 1] = torch.tensor([True, False, True])
    rig.attention.trusted[:, 2] = False
    scans, judged = watch_scores(rig, "scan"), watch_scores(rig, "judge")
    for _ in range(3):
        closed = torch.tensor(rig.store.closed[:3])
        rig.step()
        for layer in range(SHAPE.num_layers):
            looks = torch.stack([blocks for at, blocks, _ in scans if at == layer])
            assert torch.equal(looks.sum(0), closed)
            assert ((looks == 0) | (looks == closed)).all()
        assert [width for *_, width in judged] == [24] * SHAPE.num_layers
        scans.clear()
        judged.clear()


def test_what_is_judged_was_found():
    rig = Rig(config(), None, workers=WORKERS)
    rig.add(400)
    rig.add(90)
    chooser, batch, q = chooser_of(rig), rig.store.prepare([0, 1]), torch.randn(2, 2, 3, 16)
    found = chooser.scan(1, q, batch)
    assert found.candidates.shape == (2, 2, 24)
    assert torch.equal(found.blocks, found.candidates[..., :5])
    choice = chooser.judge(1, torch.randn(2, 2, 3, 16), batch, found.candidates)
    assert torch.equal(choice.candidates, found.candidates)
    for row, closed in enumerate((100, 22)):
        for head in range(2):
            assert {*choice.blocks[row, head, :2].tolist()} == {0, closed - 1}
            assert {*choice.blocks[row, head].tolist()} <= {*found.candidates[row, head].tolist()}
    assert (choice.blocks[1] < 22).all()
    assert torch.equal(chooser.judge(1, q, batch).candidates, found.candidates), "without candidates it finds its own"


def test_with_as_many_candidates_as_blocks_the_choice_is_that_of_all():
    rig = Rig(config(candidates=20), None, workers=WORKERS)
    rig.add(400)
    chooser, batch, q = chooser_of(rig), rig.store.prepare([0]), torch.randn(1, 2, 3, 16)
    every, found = chooser.judge(2, q, batch), chooser.scan(2, torch.randn(1, 2, 3, 16), batch)
    assert found.candidates.shape == (1, 2, 100)
    among = chooser.judge(2, q, batch, found.candidates)
    assert torch.equal(every.blocks, among.blocks)
    torch.testing.assert_close(every.wishes, among.wishes)


def test_a_planted_block_is_found_by_a_scan_and_chosen():
    rig = Rig(config(), None, workers=WORKERS)
    rig.add(400)
    q = torch.randn(1, 2, 3, 16)
    keys = q.mean(2).transpose(0, 1).expand(-1, 4, -1)[None] * 5  # a block that every query head likes
    place = SHAPE.num_layers - 1
    pages = place * rig.store.pages.pool.capacity + rig.store.pages.table[:1, 40].long()
    rig.digests.put(keys, pages, torch.tensor([place * rig.store.num_rows]))
    chooser, batch = chooser_of(rig), rig.store.prepare([0])
    assert (chooser.scan(place, q, batch).blocks[..., 2] == 40).all()
    assert (chooser.judge(place, q, batch).blocks[..., 2] == 40).all()


def test_digests_cost_a_small_part_of_a_long_cache():
    """Of keys and values in bfloat16 at 32k tokens: what a layer reads of digests in a step, and what is kept."""
    shape, scout, tokens = replace(SHAPE, head_dim=128), ScoutConfig(), 32768
    size, blocks = scout.block_size, tokens // scout.block_size
    kept, first = key_code_bytes(kept_dims(shape), size), key_code_bytes(scan_dims(shape), size)
    cache = blocks * 2 * size * shape.head_dim * 2
    assert 100 * (blocks * first + scout.candidate_blocks * kept) / cache < 5.5
    assert 100 * blocks * kept / cache < 6


def test_a_row_keeps_its_basis_when_it_moves():
    rig = Rig(config(), None, workers=WORKERS)
    rig.add(100)
    rig.add(120)
    before = [part[:, 1].clone() for part in rig.digests.judge.basis]
    rig.store.release(0)
    rig.store.move(1, 0)
    for part, kept in zip(rig.digests.judge.basis, before, strict=True):
        assert torch.equal(part[:, 0], kept)
        assert kept.any()
