"""The chooser: sink and recent blocks always, then the blocks whose upper bounds weigh most."""

import pytest
import torch

from scoutattention.attention.choose import Choice, TopChooser
from scoutattention.attention.prompt.prefill import block_mass
from scoutattention.config import ScoutConfig
from scoutattention.runtime.workers import Workers

from .rig import Rig

WORKERS = Workers(2)


def choose(rig: Rig, layer: int, q: torch.Tensor) -> Choice:
    chooser = TopChooser(rig.config, rig.digests, rig.store.pages.table)
    return chooser.judge(layer, q, rig.store.prepare(range(len(rig.keys))))


@pytest.mark.parametrize(("sink", "recent"), [(0, 0), (1, 1), (2, 3)])
def test_sink_and_recent_come_first(sink, recent):
    config = ScoutConfig(block_size=4, budget=40, sink_blocks=sink, recent_blocks=recent)
    rig = Rig(config, None, workers=WORKERS)
    rig.add(90)
    choice = choose(rig, 0, torch.randn(1, 2, 3, 16))
    assert choice.blocks.shape == (1, 2, 9)
    assert choice.valid.all()
    always = {*range(sink), *range(22 - recent, 22)}
    for head in range(2):
        assert set(choice.blocks[0, head, : sink + recent].tolist()) == always
        assert len(set(choice.blocks[0, head].tolist())) == 9


def test_a_planted_block_is_found():
    rig = Rig(ScoutConfig().changed(block_size=4, budget=16, digest="minmax"), None, workers=WORKERS)
    rig.add(90)
    q = torch.randn(1, 2, 3, 16)
    page = rig.store.pages.page(0, 13)
    rig.digests.judge._values[1, page] = 100.0  # a key there may be as large as this in any channel
    rig.digests.judge._values[1, page, :, 16:] = -100.0
    assert (choose(rig, 1, q).blocks == 13).any(-1).all()
    assert not (choose(rig, 0, q).blocks == 13).any(-1).all()


def test_blocks_that_do_not_exist_are_not_valid():
    rig = Rig(ScoutConfig(block_size=4, budget=40), None, workers=WORKERS)
    for tokens in (90, 11, 2):
        rig.add(tokens)
    choice = choose(rig, 0, torch.randn(3, 2, 3, 16))
    assert choice.valid.sum(-1).tolist() == [[9, 9], [2, 2], [0, 0]]
    for row, closed in enumerate([22, 2, 0]):
        assert (choice.blocks[row][choice.valid[row]] < closed).all()


def test_block_mass_is_the_last_queries_attention():
    torch.manual_seed(0)
    q, k = torch.randn(5, 2, 3, 16), torch.randn(23, 2, 16)
    mass = block_mass(q, k, 4, 0.25)
    assert mass.shape == (2, 5)
    expected = torch.zeros(2, 23)
    for w in range(5):
        for h in range(2):
            for g in range(3):
                seen = 23 - 5 + w + 1
                expected[h, :seen] += torch.softmax(k[:seen, h] @ q[w, h, g] * 0.25, 0)
    assert torch.allclose(mass, expected[:, :20].unflatten(1, (5, 4)).sum(-1), atol=1e-5)
