"""Looking on: the numbers are right, and nobody notices."""

import pytest
import torch

from scoutattention.attention.choose import Choice
from scoutattention.attention.observer import Attended, Chosen
from scoutattention.attention.scout import ScoutAttention
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.eval.fidelity.layers import LayerWatch
from scoutattention.models.loader import load

from ..attention.rig import SHAPE, RandomPredictor, Rig, set_parts
from ..attention.test_invariants import scout


class Watched(Rig):
    """A rig whose attention is looked at."""

    def __post_init__(self):
        super().__post_init__()
        self.watch = LayerWatch(SHAPE.num_layers)
        assert isinstance(self.attention, ScoutAttention)
        set_parts(self.attention, observer=self.watch)


def always(*blocks):
    """Would choose these blocks for any query."""
    return lambda q: choice(*blocks)


def choice(*blocks):
    chosen = torch.tensor(blocks)[None, None]
    return Choice(
        chosen, torch.zeros(chosen.shape), torch.tensor([6]), torch.arange(6)[None, None], torch.zeros(1, 1, 6)
    )


def test_numbers_of_two_steps_by_hand():
    watch = LayerWatch(2)
    resident = torch.tensor([[[True, True, False, False, False, False]]])
    q, weight = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[0.25]]])
    for scouted, scout_query, w in (((0, 1, 2, 4), [3.0, 4.0], weight), ((0, 2, 3, 1), [2.0, 0.0], 3 * weight)):
        theirs = choice(*scouted)
        watch.chose(1, torch.tensor([[[scout_query]]]), Chosen(theirs.blocks, theirs.valid, resident))
        watch.attended(0, q, always(0), Attended(torch.zeros(1, 1, 1)))
        watch.attended(1, q, always(0, 2, 3, 5), Attended(w, torch.tensor([[w is weight]])))
    layers = watch.result()
    assert layers.cosine == [None, pytest.approx((0.6 + 1.0) / 2)]
    assert layers.far_recall == [None, pytest.approx((1 + 2) / 6)]
    assert watch.far_recall == layers.far_recall[1]
    assert layers.guarded == [None, 0.5]
    assert watch.guarded == 0.5
    assert layers.share == [0.0, 0.5]
    assert layers.w == [0.0, 0.5]
    assert layers.w_p95 == [0.0, pytest.approx(0.25 + 0.95 * 0.5)]


def test_blocks_that_do_not_count_are_not_counted():
    watch = LayerWatch(1)
    blocks, valid, resident = ([0, 1], [True, False], [False, True, False])
    watch.chose(0, None, Chosen(*(torch.tensor([[values]]) for values in (blocks, valid, resident))))
    watch.attended(0, torch.ones(1, 1, 1, 2), always(2), Attended(torch.ones(1, 1, 1)))
    layers = watch.result()
    assert (layers.share, layers.cosine, layers.far_recall) == ([1.0], [None], [None])


def test_weight_is_the_softmax_mass_of_the_far_keys():
    """Every closed block is far and attended with the true query: only the open block's mass is near."""
    rig = Watched(scout(4, budget=None, lookahead=0), 0)
    rig.add(46)
    qs, _, _ = rig.step()
    for layer, seen in enumerate(rig.watch.result().w):
        scores = torch.einsum("hgd,thd->hgt", qs[layer][0], rig.keys[0][layer]) * SHAPE.scale
        assert seen == pytest.approx(float(scores.softmax(-1)[..., :44].sum(-1).mean()), abs=1e-5)


def test_random_scouts_have_no_cosine_and_chance_recall():
    rig = Watched(scout(4, budget=40, recall_interval=0, max_cpu_share=None), 4)
    assert isinstance(rig.attention.parts.predictor, RandomPredictor)
    rig.add(200)
    stats = [rig.step()[2] for _ in range(8)]
    layers = rig.watch.result()
    assert layers.cosine[0] is None  # the first layer has nothing to be predicted from
    assert all(abs(cosine) < 0.15 for cosine in layers.cosine[1:])
    assert 0.05 < rig.watch.far_recall < 0.4
    share = sum(step.far_blocks for step in stats) / sum(step.chosen_blocks for step in stats)
    assert sum(layers.share) / 3 == pytest.approx(share)


def test_fetched_blocks_were_absent_when_they_were_chosen():
    rig = Watched(scout(4, budget=40, on_miss="fetch"), 10)
    rig.add(200)
    stats = rig.step()[2]
    assert stats.far_blocks > 0
    assert sum(rig.watch.result().share) / 3 == pytest.approx(stats.far_blocks / stats.chosen_blocks)
    assert rig.watch.result().w == [0.0] * 3


@pytest.mark.parametrize("options", [{}, {"on_miss": "fetch"}, {"lookahead": 2}, {"far_query": "true"}])
def test_looking_changes_no_logit(tiny_models, options):
    model = load(str(tiny_models["llama"]))
    tokens = model.tokenizer.encode("A watched pot boils as any other does. " * 8)
    config = ScoutConfig().changed(budget=64, block_size=16, true_query_layers=(), **options)
    machine = EngineConfig(max_num_seqs=1, device_memory=8 * model.decoder.shape.block_bytes(16))
    results = []
    for observer in (None, LayerWatch(3)):
        engine = Engine(model.decoder, config, machine, observer)
        results.append(torch.stack([logits for logits, _ in teacher_forced(engine, tokens, len(tokens) - 12)]))
        engine.close()
    assert torch.equal(*results)
    assert sum(cosine is not None for cosine in observer.result().cosine) >= 1
