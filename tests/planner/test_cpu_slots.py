"""Slots on a CPU, which is host and device at once: far calls and the device's work share its cores."""

import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from scoutattention import ScoutConfig
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import Computer, Processor
from scoutattention.planner.costs import costs_of
from scoutattention.planner.cpu_costs import PACE, TAKEN_S, late_part
from scoutattention.planner.planner import predict, work_of
from scoutattention.planner.simulator import Drift, Schedule, schedule_of, simulate
from scoutattention.planner.work import Cores, Costs, LayerCosts, page_part
from scoutattention.shape import NamedShape

MODEL = read_model("smollm2-135m", "float32")
LAYERS = MODEL.shape.num_layers
SLOW = replace(PACE, flops=65e9)
"""Cores that are slow enough for a step to wait for far blocks."""
SMOLLM2 = MODEL._replace(weights=98_362_432)
"""As its file has it."""
QWEN = NamedShape("qwen2.5-coder-0.5b", read_model("qwen2.5-0.5b", "float32").shape, tied=False, weights=491_400_064)


def work(share, *, lookahead=1, slots=2.0, context=7936, batch=1, **more):
    scout = ScoutConfig(lookahead=lookahead, max_cpu_share=None, **more)
    return work_of(MODEL, scout, context)._replace(batch=batch, slots=slots, drift=share)


def run(share, *, cores=2, **more):
    """A step with a CPU share in every layer."""
    host = Processor(cores, 16 << 30, 20e9 * cores, "a test's", measured=True, pace=SLOW)
    return predict("scout-slots", work(share, **more), Computer("a test's", host))


def test_without_far_blocks_nothing_is_waited_for():
    found = run(0.0)
    assert found.unhidden == pytest.approx([LAYERS * TAKEN_S], abs=LAYERS * 1e-6)
    assert found.hidden[0] < 1e-4


def test_a_slot_for_every_block_is_a_step_in_one_memory():
    host = Computer("a test's", Processor(2, 16 << 30, 40e9, "a test's", measured=True))
    for context in (512, 1024, 1984):
        one = predict("scout", work(0.5, context=context), host)
        assert predict("scout-slots", work(0.5, context=context), host) == one
    assert run(0.5, context=1985).hidden[0] > 0, "62 blocks have slots"


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_more_lookahead_never_waits_longer(share, batch):
    waits = [run(share, lookahead=ahead, slots=0.25, batch=batch).unhidden[0] for ahead in (0, 1, 2, 4)]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(waits))
    assert waits[0] > 5 * waits[1] or share == 0.1


def test_calls_in_a_queue_gain_from_help_too():
    """A worker that is always late: it does no more with more lookahead, and so no step is longer."""
    layer = LayerCosts(1.0, 0.0, 0.0, 1.0, 0.0, 1.0, far_call=0.0, far=20.0, fetch=0.0, recall=0.0)
    costs = Costs(layer, 0.0, Cores(beside=1.0, slowed=0.5, helped=2.0, taken=0.0))
    schedules = [Schedule("scout-slots", 8, ahead, frozenset({0})) for ahead in (1, 2, 4)]
    found = [simulate(costs, schedule, [[1.0] * 8]) for schedule in schedules]
    assert found[0].unhidden[0] > 0.5 * found[0].step_s
    assert all(after.step_s <= before.step_s for before, after in pairwise(found))


def test_more_far_blocks_take_longer():
    steps = [run(share, slots=0.25) for share in (0.0, 0.1, 0.3, 0.6, 1.0)]
    assert all(one.hidden[0] + one.unhidden[0] < two.hidden[0] + two.unhidden[0] for one, two in pairwise(steps))
    assert all(one.step_s < two.step_s for one, two in pairwise(steps))


def test_one_core_hides_nothing_for_free():
    """With one core a step is longer by all that the worker does; with more, by a part of it."""
    for cores, least, most in ((1, 0.999, 1.001), (2, 0.1, 0.9), (16, 0.0, 0.1)):
        none, some = (run(share, cores=cores, guard=None) for share in (0.0, 0.5))
        worked = costs_of(
            "scout-slots",
            work(0.5, guard=None),
            Computer("", Processor(cores, 1 << 34, 20e9 * cores, "", measured=True, pace=SLOW)),
        ).layer.far
        longer = (some.step_s - none.step_s) / (LAYERS * 0.5 * worked)
        assert least <= longer <= most


def test_a_layer_that_waits_is_helped():
    """What is left of a call goes twice as fast once the main thread joins the one worker."""
    host = Computer("a test's", Processor(2, 16 << 30, 40e9, "a test's", measured=True, pace=SLOW))
    of = work(0.5, lookahead=0, slots=0.25)
    costs = costs_of("scout-slots", of, host)
    alone = costs._replace(cores=costs.cores._replace(helped=1.0))
    shares = list(Drift(0.5, spread=0.0).steps(1, LAYERS))
    helped, unhelped = (simulate(one, schedule_of("scout-slots", LAYERS, of.scout), shares) for one in (costs, alone))
    assert helped.unhidden[0] == pytest.approx(unhelped.unhidden[0] / 2, rel=0.01)
    assert helped.hidden[0] == pytest.approx(unhelped.hidden[0], rel=0.01)
    gained = unhelped.unhidden[0] - helped.unhidden[0]
    assert unhelped.step_s - helped.step_s == pytest.approx(gained), "and the worker is idle sooner"


def test_the_guard_reads_again_only_after_scouts():
    assert late_part(work(0.5)) > late_part(work(0.1)) > 0
    assert late_part(work(0.5, lookahead=0)) == late_part(work(0.5, guard=None)) == 0


def test_packed_pages_are_read_sooner():
    host = Computer("a test's", Processor(2, 16 << 30, 40e9, "a test's", measured=True))
    plain, packed = (
        predict("scout-slots", work(0.5, slots=0.25)._replace(kv_dtype=kind), host) for kind in ("auto", "int8")
    )
    assert packed.hidden[0] < 0.9 * plain.hidden[0]
    of = work(0.5)
    long, short = (costs_of("scout-slots", of._replace(kv_dtype=kind), host).layer.far for kind in ("auto", "int8"))
    assert long - short == pytest.approx((1 - page_part(of._replace(kv_dtype="int8"))) * read_s(of, 4, host))


def read_s(of, number_bytes, computer):
    """Seconds of reading the chosen keys and values of a layer."""
    numbers = of.scout.budget_blocks * of.scout.block_size * 2 * MODEL.shape.num_kv_heads * MODEL.shape.head_dim
    return number_bytes * numbers / computer.host.bandwidth


def test_numbers_of_two_bytes_are_read_in_half_the_time():
    """And computing with them takes as long."""
    host = Computer("a test's", Processor(2, 16 << 30, 40e9, "a test's", measured=True))
    of = work(0.5, slots=0.25)
    half = of._replace(shape=replace(of.shape, dtype="bfloat16"))
    long, short = (costs_of("scout-slots", one, host).layer.far for one in (of, half))
    read = read_s(of, 4, host)
    assert long - short == pytest.approx(read / 2)
    assert short > read


MEASURED = [
    # ms of a step, hidden, unhidden; drift by a recording: docs/lab/2026-11-27-planner-pace.md.
    # Constants come from the first ten; none from the last three, of Qwen2.5-Coder-0.5B.
    (SMOLLM2, "float32", 4096, 1, {"drift": 0.0468}, 17.24, 0.124, 0.0048),
    (SMOLLM2, "float32", 4096, 4, {"drift": 0.0468}, 32.76, 0.438, 0.0055),
    (SMOLLM2, "float32", 4096, 1, {"drift": 0.7492, "slots": 0.25, "lookahead": 0}, 10.54, 1.450, 0.4572),
    (SMOLLM2, "float32", 4096, 4, {"drift": 0.7492, "slots": 0.25, "lookahead": 0}, 19.79, 3.493, 2.3707),
    (SMOLLM2, "bfloat16", 7936, 1, {"drift": 0.0721}, 15.59, 0.164, 0.0047),
    (SMOLLM2, "bfloat16", 7936, 1, {"drift": 0.7544, "slots": 0.25, "lookahead": 0}, 12.12, 1.246, 0.1395),
    (SMOLLM2, "bfloat16", 2048, 1, {"drift": 0.085, "budget": 256}, 13.14, 0.031, 0.0047),
    (SMOLLM2, "bfloat16", 2048, 4, {"drift": 0.085, "budget": 256}, 18.72, 0.147, 0.0048),
    (SMOLLM2, "bfloat16", 2048, 1, {"drift": 0.4944, "slots": 0.5, "budget": 256}, 13.28, 0.243, 0.0048),
    (SMOLLM2, "bfloat16", 2048, 4, {"drift": 0.4944, "slots": 0.5, "budget": 256}, 20.71, 0.956, 0.0048),
    (QWEN, "float32", 2048, 1, {"drift": 0.7422, "slots": 0.25, "lookahead": 0, "budget": 512}, 15.65, 0.492, 0.0173),
    (QWEN, "float32", 2048, 1, {"drift": 0.0823, "budget": 512}, 21.63, 0.092, 0.0039),
    (QWEN, "float32", 2048, 1, {"drift": 0.7422, "slots": 0.25, "budget": 512}, 21.54, 0.548, 0.0039),
]


def test_steps_that_were_measured():
    """The median errors are at most a fifth: of steps, of hidden and of unhidden time."""
    host = Computer("two cores", Processor(2, 16 << 30, 50e9, "the lab note", measured=True))
    errors = []
    for model, dtype, context, batch, more, *measured in MEASURED:
        scout = ScoutConfig(budget=more.get("budget", 1024), lookahead=more.get("lookahead", 1))
        of = work_of(model._replace(shape=replace(model.shape, dtype=dtype)), scout, context)
        if more.get("slots"):
            of = of._replace(slots=more["slots"], scout=replace(scout, max_cpu_share=None))
        found = predict("scout-slots", of._replace(batch=batch, drift=more["drift"]), host)
        seconds = (found.step_s, found.hidden[0], found.unhidden[0])
        errors.append([abs(one * 1e3 / ms - 1) for one, ms in zip(seconds, measured, strict=True)])
    assert all(statistics.median(of) < 0.2 for of in zip(*errors, strict=True))


IN_ONE_MEMORY = [
    # ms of a step, from the same note.
    ("scout", 1024, 1, 6.45),
    ("full", 1024, 1, 5.56),
    ("scout", 1024, 4, 13.17),
    ("full", 1024, 4, 11.55),
    ("scout", 4096, 1, 7.15),
    ("full", 4096, 1, 9.68),
    ("scout", 4096, 4, 15.49),
    ("full", 4096, 4, 28.48),
]


def test_steps_in_one_memory_that_were_measured():
    """The median error is at most a fifth."""
    host = Computer("two cores", Processor(2, 16 << 30, 50e9, "the lab note", measured=True))
    steps = [
        predict(design, work_of(SMOLLM2, ScoutConfig(), context)._replace(batch=batch), host).step_s * 1e3 / ms
        for design, context, batch, ms in IN_ONE_MEMORY
    ]
    assert statistics.median(abs(part - 1) for part in steps) < 0.2
