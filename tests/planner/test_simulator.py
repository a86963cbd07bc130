"""The simulator: the order of the engine's layers, and steps that were measured."""

import statistics
import time
from dataclasses import replace
from itertools import pairwise

import pytest

from scoutattention import ScoutConfig
from scoutattention.hardware.measure import Pace, PerSequence
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import Computer, Processor, find_computer
from scoutattention.planner.costs import costs_of
from scoutattention.planner.planner import predict
from scoutattention.planner.simulator import Drift, Schedule, schedule_of, simulate
from scoutattention.planner.work import Costs, LayerCosts, Work

SCOUT = ScoutConfig()
SIMPLE = LayerCosts(1.0, 1.0, 1.0, 1.0, 0.0, 1.0, far_call=2.0, far=10.0, fetch=10.0, recall=0.0)


def run(design, share, *, layers=8, own=(0,), lookahead=1, costs=SIMPLE, traced=False):
    schedule = Schedule(design, layers, lookahead, frozenset(own))
    return simulate(Costs(costs, 0.0), schedule, Drift(share, spread=0.0).steps(1, layers), traced=traced)


def test_a_short_far_call_hides_behind_a_layer():
    few, many = run("scout", 0.1), run("scout", 0.9)
    assert few.waited == pytest.approx([2.0 + 1.0 - 2.0]), "layer 0 alone waits: for all but 2 stages"
    assert few.far == [8 * 3.0]
    assert few.hidden == pytest.approx([24.0 - 1.0])
    assert many.waited[0] > 8 * 5.0, "11 s for the CPU, 5 s for the device"


def test_more_lookahead_absorbs_an_uneven_layer():
    shares = [[0.05] * 8 for _ in range(1)]
    shares[0][4] = 0.7
    waits = {}
    for lookahead in (1, 2):
        schedule = Schedule("scout", 8, lookahead, frozenset({0}))
        waits[lookahead] = simulate(Costs(SIMPLE, 0.0), schedule, shares).waited[0]
    assert waits[2] < waits[1]


def test_the_same_layer_waits_for_every_call():
    found = run("compute", 0.1, own=range(8))
    assert found.waited == pytest.approx([8 * (3.0 - 1.0)]), "but for near attention"
    assert found.idle == pytest.approx(16.0 / found.steps[0])


def test_full_attention_waits_for_nothing():
    found = run("full", 0.1, costs=replace(SIMPLE, ahead=0, judge=0, far_call=0, far=0))
    assert (found.steps, found.waited, found.far) == ([8 * 3.0], [0.0], [0.0])


def test_recall_holds_up_a_quarter_that_comes_too_soon():
    slow = run("scout", 0.0, costs=replace(SIMPLE, recall=20.0))
    assert slow.link == [8 * 20.0]
    assert slow.waited[0] > run("scout", 0.0).waited[0] + 100


def test_fetched_blocks_go_over_the_link_and_not_to_the_cpu():
    found = run("fetch-ahead", 0.5)
    assert found.far == [0.0]
    assert found.link[0] == pytest.approx(8 * 5.0, rel=1e-3)
    beside = Schedule("fetch-ahead", 8, 1, frozenset({0}), beside=True)
    hidden = simulate(Costs(SIMPLE, 0.0), beside, Drift(0.1, spread=0.0).steps(1, 8))
    assert hidden.waited[0] < found.waited[0]


def test_spans_follow_each_other_on_every_clock():
    spans = run("scout", 0.3, traced=True).spans
    assert {span.lane for span in spans} == {"device", "worker 1"}
    for lane in ("device", "worker 1"):
        of = [span for span in spans if span.lane == lane]
        assert all(first.end_s <= then.start_s for first, then in pairwise(of))
    assert {span.layer for span in spans} == {*range(8)}
    assert run("scout", 0.3).spans == []


def test_schedules_are_those_of_the_engine():
    one, two = (schedule_of("scout", 9, replace(SCOUT, lookahead=ahead)) for ahead in (1, 2))
    assert [one.targets(layer) for layer in (0, 1, 8)] == [[1], [2], []]
    assert two.targets(0) == [1, 2]
    assert schedule_of("scout", 9, replace(SCOUT, lookahead=0)).own == set(range(9))
    assert schedule_of("scout", 9, SCOUT.changed(true_query_layers=(0, 3))).own == {0, 3}


def test_drift_has_its_mean():
    steps = list(Drift(0.08, seed=1).steps(400, 10))
    assert statistics.fmean(share for step in steps for share in step) == pytest.approx(0.08, rel=0.05)
    assert list(Drift(0.0).steps(1, 2)) == [[0.0, 0.0]]


def test_a_thousand_steps_of_forty_layers_take_no_time():
    known = read_model("qwen3-14b")
    work = Work(known.shape, known.tied, 65536, 32, SCOUT)
    costs = costs_of("scout", work, find_computer("a100-80gb-pcie"))
    start = time.perf_counter()
    found = simulate(costs, schedule_of("scout", 40, SCOUT), Drift(0.085).steps(1000, 40))
    assert len(found.steps) == 1000
    assert time.perf_counter() - start < 10


MEASURED = [
    # ms: docs/lab/2026-11-26-gpu-step-rewritten.md of one H100, docs/lab/2026-11-27-h200.md of one H200, whose engine
    # is the faster one. The first four rows gave constants of costs.py, and one came from full attention's on the H200.
    ("h100-16-cores", "full", 32768, 8, 20.43),
    ("h100-16-cores", "full", 8192, 4, 8.91),
    ("h100-16-cores", "scout", 32768, 8, 16.21),
    ("h100-16-cores", "scout", 8192, 4, 12.90),
    ("h100-16-cores", "full", 32768, 12, 27.0),
    ("h100-16-cores", "full", 65536, 6, 26.9),
    ("h100-16-cores", "full", 32768, 1, 8.6),
    ("h200", "full", 8192, 4, 6.01),
    ("h200", "full", 8192, 8, 7.21),
    ("h200", "full", 32768, 4, 9.24),
    ("h200", "full", 32768, 8, 13.90),
    ("h200", "full", 65536, 4, 13.62),
    ("h200", "full", 65536, 6, 17.82),
    ("h200", "scout", 8192, 4, 8.77),
    ("h200", "scout", 8192, 8, 9.62),
    ("h200", "scout", 32768, 4, 9.09),
    ("h200", "scout", 32768, 8, 10.35),
    ("h200", "scout", 8192, 4, 9.13),  # these four without corrections, which are predicted alike
    ("h200", "scout", 8192, 8, 10.41),
    ("h200", "scout", 32768, 4, 9.58),
    ("h200", "scout", 32768, 8, 10.70),
]

PACKED = [
    # ms, pages in 8 bits: the H100's in the same lab note, the H200's in docs/speed.md. No constant is from these runs.
    ("h100-16-cores", "compute", 32768, 8, 18.9),
    ("h100-16-cores", "scout", 32768, 8, 14.3),
    ("h200", "scout", 65536, 4, 9.98),
    ("h200", "scout", 65536, 6, 10.67),
    ("h200", "scout", 65536, 18, 16.18),
    ("h200", "scout", 65536, 4, 10.07),  # these three without corrections
    ("h200", "scout", 65536, 6, 10.80),
    ("h200", "scout", 65536, 18, 16.88),
]


@pytest.mark.parametrize(
    ("hardware", "design", "context", "batch", "ms", "kv_dtype"),
    [(*case, "auto") for case in MEASURED] + [(*case, "int8") for case in PACKED],
)
def test_steps_that_were_measured_on_gpus(hardware, design, context, batch, ms, kv_dtype):
    known = read_model("qwen3-8b")
    work = Work(known.shape, known.tied, context, batch, SCOUT, kv_dtype=kv_dtype)
    assert predict(design, work, find_computer(hardware)).step_s * 1e3 == pytest.approx(ms, rel=0.25)


def test_the_cpu_is_as_busy_as_was_measured():
    """7.3 ms of CPU time, 0.96 waited for, and 26.2 MB over the link: one H100, `scout-plain`, 32k, batch 8."""
    known = read_model("qwen3-8b")
    work = Work(known.shape, known.tied, 32768, 8, SCOUT)
    found = predict("scout", work, find_computer("h100-16-cores"))
    assert found.far[0] == pytest.approx(7.3e-3, rel=0.2)
    assert found.waited[0] == pytest.approx(0.96e-3, rel=0.4)


CPU_STEPS = [
    # ms: docs/lab/2026-11-23-cpu-decode-step.md, two cores that read 50 GB/s, SmolLM2.
    ("float32", "scout", 1, 7936, 26.8),
    ("float32", "full", 1, 7936, 33.5),
    ("float32", "scout", 4, 7936, 33.7),
    ("float32", "full", 4, 7936, 65.7),
    ("float32", "full", 1, 1024, 21.2),
    ("float32", "full", 4, 1024, 26.5),
    ("bfloat16", "scout", 1, 7936, 15.3),
    ("bfloat16", "full", 1, 7936, 16.4),
    ("bfloat16", "scout", 4, 7936, 20.7),
    ("bfloat16", "full", 4, 7936, 34.4),
    ("bfloat16", "full", 1, 1024, 10.8),
    ("bfloat16", "full", 4, 1024, 13.9),
]
NONE, LAYER = PerSequence(0.0, 0.0), PerSequence(100e-6, 0.0)
SLOW = Pace(150e9, NONE, full=LAYER, choice=PerSequence(88e-6, 0.0), slots=NONE, scout=NONE)
"""Fitted to these steps, and operations per second as measured: docs/lab/2026-11-23-matrix-products.md."""
TWO_CORES = Computer(
    "two cores",
    Processor(2, 16 << 30, 50e9, "docs/lab/2026-11-23-cpu-decode-step.md", measured=True, pace=SLOW),
)


def test_products_of_many_rows_are_bound_by_computing():
    """23.6 and 27.1 ms of products at 32 rows: docs/lab/2026-11-23-matrix-products.md, bfloat16, both ways."""
    known = read_model("smollm2-135m")
    work = Work(known.shape, known.tied, 128, 32, SCOUT)
    costs = costs_of("full", work, TWO_CORES)
    products = 30 * (costs.layer.before + costs.layer.after - LAYER.first) + costs.head
    assert products == pytest.approx(25e-3, rel=0.2)


@pytest.mark.parametrize(("batch", "ms"), [(1, 9.8 / 2), (4, 16.5 / 2)])
def test_products_with_weights_in_few_bits(batch, ms):
    """96 MB, in ms of two threads on a machine that reads 26 GB/s: docs/lab/2026-11-26-stored-weights.md."""
    known = read_model("smollm2-135m")
    work = Work(replace(known.shape, dtype="float32"), known.tied, 128, batch, SCOUT, weights=96_000_000)
    costs = costs_of(
        "full", work, Computer("slow", replace(TWO_CORES.host, bandwidth=26e9, pace=replace(SLOW, flops=65e9)))
    )
    products = 30 * (costs.layer.before + costs.layer.after - LAYER.first) + costs.head
    assert products * 1e3 == pytest.approx(ms, rel=0.2)


def test_steps_that_were_measured_on_a_cpu():
    """The median error is at most a fifth."""
    known = read_model("smollm2-135m")
    errors = []
    for dtype, design, batch, context, ms in CPU_STEPS:
        work = Work(replace(known.shape, dtype=dtype), known.tied, context, batch, SCOUT)
        errors.append(abs(predict(design, work, TWO_CORES).step_s * 1e3 / ms - 1))
    assert statistics.median(errors) < 0.2
