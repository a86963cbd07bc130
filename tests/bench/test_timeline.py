"""Recording: what is watched works as before, and a timeline tells every moment of a decode step once."""

import time
from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.bench.common import profiler as profiling
from scoutattention.bench.common.profiler import Event, Profiler, events_of
from scoutattention.bench.timeline.build import Piece, pieces
from scoutattention.bench.timeline.kernels import spans_of, with_layers, with_waits
from scoutattention.bench.timeline.recorder import Recorder
from scoutattention.bench.timeline.watch import Watch, Watched
from scoutattention.models.loader import load
from scoutattention.runtime.graphs import Graphs
from scoutattention.trace.chrome import from_json, to_json
from scoutattention.trace.span import Span
from scoutattention.trace.timeline import far_time, stage_seconds

from ..engine import test_generate
from ..runtime.test_graphs import FAR, tapes  # noqa: F401  # a fixture

PROMPT = [(7 * i * i + 3 * i) % 97 for i in range(100)]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
STAGES = ["project", "append", "near", "merge", "mlp"]
"""Of every layer, in their order."""
AHEAD = ["scout", "choose", "hand over"]
"""Of a later layer, in the layer before it."""


def far_llm(path, **options):
    """An engine whose device holds 5 blocks of one sequence."""
    scout = ScoutConfig().changed(budget=48, block_size=8, true_query_layers=(), recall_interval=2, **options)
    block = load(path).decoder.shape.block_bytes(8)
    return LLM(path, scout=scout, device_memory=5 * block, max_num_seqs=1)


@pytest.fixture(scope="module")
def recorded(tiny_models):
    """A timeline of an answer, its statistics, and its tokens."""
    llm = far_llm(str(tiny_models["llama"]))
    recorder = Recorder(llm.engine)
    recorder.begin()
    with llm:
        tokens = llm.generate(PROMPT, PARAMS)[0].token_ids
    return SimpleNamespace(timeline=recorder.timeline(), stats=llm.stats(), tokens=tokens, steps=recorder.steps)


def by_lane(timeline):
    lanes = defaultdict(list)
    for span in sorted(timeline.spans, key=lambda span: span.start_s):
        lanes[span.lane].append(span)
    return lanes


def test_a_watched_engine_answers_alike(recorded, tiny_models):
    with far_llm(str(tiny_models["llama"])) as llm:
        assert llm.generate(PROMPT, PARAMS)[0].token_ids == recorded.tokens
    assert recorded.stats.far_blocks > 0
    assert recorded.steps == len(recorded.timeline.steps()) == PARAMS.max_tokens - 1


def test_spans_of_a_lane_do_not_overlap(recorded):
    lanes = by_lane(recorded.timeline)
    assert {"scheduler", "device", "link"} < lanes.keys()
    for spans in lanes.values():
        assert all(one.end_s <= other.start_s for one, other in pairwise(spans))
        assert all(span.start_s <= span.end_s for span in spans)


def test_a_step_adds_up(recorded):
    timeline = recorded.timeline
    total = sum(step.end_s - step.start_s for step in timeline.steps())
    assert sum(stage_seconds(timeline).values()) == pytest.approx(total)
    assert recorded.stats.decode_s * 0.99 <= total < recorded.stats.decode_s * 2


def test_every_layer_has_its_stages_in_order(recorded):
    layers = range(1 + max(span.layer for span in recorded.timeline.spans if span.layer is not None))
    for step in recorded.timeline.steps():
        device = by_lane(recorded.timeline.part(step))["device"]
        for layer in layers:
            own = [span.name for span in device if span.layer == layer]
            places = [own.index(stage) for stage in STAGES]
            assert places == sorted(places)
            if layer:
                ahead = [own.index(stage) for stage in AHEAD]
                assert ahead == sorted(ahead)
                assert ahead[-1] < places[1]


def test_a_wait_ends_after_the_work_that_it_waits_for(recorded):
    arrows, known = recorded.timeline.arrows, set(recorded.timeline.spans)
    assert arrows
    gives = [arrow for arrow in arrows if arrow.end.name == "far"]
    waits = [arrow for arrow in arrows if arrow.start.name == "far"]
    assert len(gives) == len(waits) == len(arrows) / 2
    for arrow in arrows:
        assert {arrow.start, arrow.end} <= known
        assert arrow.start.layer == arrow.end.layer
        assert arrow.start.start_s <= arrow.end.end_s
    assert all(arrow.start.end_s <= arrow.end.end_s for arrow in waits)
    assert {arrow.start.name for arrow in gives} == {"hand over"}
    assert {arrow.end.name for arrow in waits} == {"wait far"}


def test_hidden_and_waited_time_agree_with_the_statistics(tiny_models):
    llm = far_llm(str(tiny_models["llama"]))
    recorder = Recorder(llm.engine)
    recorder.begin()
    submit = llm.engine.workers.submit

    def slowly(*args, **options):  # so that what is hidden is more than the moments between two clocks
        job = submit(*args, **options)
        time.sleep(1e-3)
        return job

    llm.engine.workers.submit = slowly
    with llm:
        llm.generate(PROMPT, PARAMS)
        llm.engine.workers.submit = submit
    times, stats = far_time(recorder.timeline()), llm.stats()
    assert times.waited_s == pytest.approx(stats.unhidden_cpu_s, rel=1e-3)
    assert times.hidden_s == pytest.approx(stats.hidden_cpu_s, rel=0.25, abs=1e-3)


def test_a_recording_survives_its_file(recorded):
    back = from_json(to_json({"scout": recorded.timeline}))["scout"]
    assert (len(back.spans), len(back.arrows)) == (len(recorded.timeline.spans), len(recorded.timeline.arrows))
    assert far_time(back).waited_s == pytest.approx(far_time(recorded.timeline).waited_s, abs=1e-6)
    assert far_time(back).hidden_s == pytest.approx(far_time(recorded.timeline).hidden_s, abs=1e-6)


def test_prompts_are_told_without_what_is_inside(recorded):
    prompts = [span for span in recorded.timeline.spans if span.name == "prompt"]
    assert {span.lane for span in prompts} == {"scheduler", "device"}
    began = recorded.timeline.steps()[0].start_s
    assert all(span.end_s <= began for span in prompts)
    assert all(span.name == "prompt" for span in recorded.timeline.spans if span.start_s < began)


def replaced(*things):
    """Names of methods that objects have of their own."""
    return [
        name
        for thing in things
        for name, value in vars(thing).items()
        if callable(value) and hasattr(type(thing), name)
    ]


def parts_of(engine):
    parts = engine.runner.attention.parts
    return (
        *(engine, engine.runner, engine.runner.decoder, engine.workers, engine.store, engine.store.transfers),
        *(engine.runner.attention, engine.runner.attention.exchange, parts.chooser, parts.predictor, parts.far),
        *(parts.far.transport, parts.ops),
    )


def test_nothing_is_left_after_the_last_step(tiny_models):
    with far_llm(str(tiny_models["llama"])) as llm:
        assert not replaced(*parts_of(llm.engine))
        recorder = Recorder(llm.engine, most=3)
        recorder.begin()
        assert len(replaced(*parts_of(llm.engine))) > 15
        llm.generate(PROMPT, PARAMS)
        assert not replaced(*parts_of(llm.engine))
        assert recorder.steps == len(recorder.timeline().steps()) == 3
        assert not llm.engine.workers.take_tasks()


def test_nobody_looks_at_a_clock_for_an_engine_that_is_not_watched(tiny_models, monkeypatch):
    looks = []
    monkeypatch.setattr("scoutattention.bench.timeline.watch.perf_counter", lambda: looks.append(1) or 0.0)
    with far_llm(str(tiny_models["llama"])) as llm:
        llm.generate(PROMPT, PARAMS)
        assert not looks
        Recorder(llm.engine).begin()
        llm.generate(PROMPT, PARAMS)
        assert looks


def test_full_attention_is_recorded_too(tiny_models):
    llm = LLM(str(tiny_models["llama"]), scout=ScoutConfig(budget=None))
    recorder = Recorder(llm.engine)
    recorder.begin()
    with llm:
        llm.generate(PROMPT, PARAMS)
    assert {"project", "append", "near", "mlp", "head"} < stage_seconds(recorder.timeline()).keys()
    assert not recorder.timeline().arrows


def test_workers_are_told_of_steps_that_are_replayed(tiny_models, tapes):  # noqa: F811
    llm = test_generate.far_llm(str(tiny_models["llama"]), FAR, 5, 2, kernels="plain")
    llm.engine.runner._graphs = Graphs(tapes)
    recorder = Recorder(llm.engine)
    recorder.begin()
    with llm:
        llm.generate(PROMPT, PARAMS)
    timeline, layers = recorder.timeline(), llm.engine.runner.decoder.shape.num_layers
    replayed = [part for part in map(timeline.part, timeline.steps()) if all(one.name != "mlp" for one in part.spans)]
    assert len(replayed) == tapes.played > 6
    works = [span for part in replayed for span in part.spans if span.lane.startswith("worker")]
    assert {span.name for span in works} == {"far"}
    assert {span.layer for span in works} == set(range(layers)), "those whose scouts are not trusted too"


@pytest.mark.gpu
def test_a_gpu_has_lanes_of_its_own(tiny_models):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    llm = test_generate.far_llm(str(tiny_models["llama"]), FAR, 5, 2, device="cuda")
    recorder = Recorder(llm.engine)
    recorder.begin()
    with llm:
        llm.generate(PROMPT, SamplingParams(max_tokens=40, ignore_eos=True))
    timeline, layers = recorder.timeline(), range(llm.engine.runner.decoder.shape.num_layers)
    assert {"host", "device", "scheduler"} < set(timeline.lanes())
    for step in timeline.steps()[8:]:  # of which most are replayed
        spans = timeline.part(step).spans
        for stage in ("near", "append"):
            assert {span.layer for span in spans if span.lane == "device" and span.name == stage} == set(layers)
    assert any(arrow.end.lane == "device" for arrow in timeline.arrows)


def test_each_moment_belongs_to_the_innermost_call():
    calls = [
        Watched("near", None, 3.0, 4.0),
        Watched("near", None, 5.0, 6.0),
        Watched("merge", None, 4.5, 7.0),
        Watched("attend", 2, 1.0, 8.0),
        Watched("head", None, 8.5, 9.0),
        Watched("step", None, 0.0, 9.0),
    ]
    assert pieces(calls) == [
        Piece("step", None, 0.0, 1.0),
        Piece("attend", 2, 1.0, 3.0),
        Piece("near", 2, 3.0, 4.0),
        Piece("attend", 2, 4.0, 4.5),
        Piece("merge", 2, 4.5, 5.0),
        Piece("guard", 2, 5.0, 6.0),
        Piece("merge", 2, 6.0, 7.0),
        Piece("attend", 2, 7.0, 8.0),
        Piece("step", None, 8.0, 8.5),
        Piece("head", None, 8.5, 9.0),
    ]


def test_pieces_of_one_stage_are_joined():
    calls = [Watched("hand over", None, 2.0, 3.0), Watched("hand over", 4, 1.0, 5.0)]
    assert pieces(calls) == [Piece("hand over", 4, 1.0, 5.0)]


def test_a_watched_method_that_raises_is_noted():
    class Thing:
        def fail(self):
            raise ValueError("no")

    thing, watch = Thing(), Watch()
    watch.watch(thing, "fail", "failing")
    with pytest.raises(ValueError, match="no"):
        thing.fail()
    watch.end()
    assert [Watched(*call).name for call in watch.calls] == ["failing"]
    assert not vars(thing)


def test_a_profile_is_on_the_clock_of_other_spans():
    a = torch.ones(64, 64)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        before = time.perf_counter()
        torch.mm(a, a)
        after = time.perf_counter()
    (product,) = (event for event in events_of(profiler, "CPU") if event.name == "aten::mm")
    assert before - 1e-3 <= product.start / 1e6 <= product.end / 1e6 <= after + 1e-3


class FakeProfile:
    """PyTorch's profiler of two steps of two layers on a GPU, as it is started and stopped."""

    def __init__(self, activities):
        self.running = False

    def start(self):
        self.running = True

    def stop(self):
        assert self.running


def test_kernels_are_on_the_lanes_of_device_and_link(monkeypatch):
    names = ["_append_kernel", "void cutlass::gemm(int)", "_partial_kernel", "_take_kernel", "_join_kernel"] * 2
    names += ["Memcpy HtoD (Pinned -> Device)", "_copy_kernel", "top_blocks"]
    events = [Event(name, 1e6 + 10 * place, 1e6 + 10 * place + 8) for place, name in enumerate(names)]
    monkeypatch.setattr(profiling, "profile", FakeProfile)
    monkeypatch.setattr(profiling, "events_of", lambda profiler, device: events)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profiling, "let_go", lambda: None)
    profiler = Profiler()
    profiler.end()
    assert spans_of(profiler.events) == []
    profiler.begin()
    profiler.end()
    spans = with_layers(spans_of(profiler.events), 2)
    stages = ["append", "cutlass::gemm", "near", "wait far", "merge"]
    assert [(span.lane, span.name, span.layer) for span in spans] == [
        *(("device", stage, 0) for stage in stages),
        *(("device", stage, 1) for stage in stages),
        ("link", "copy", 0),
        ("link", "copy", 1),
        ("device", "choose", None),
    ]
    assert spans[2] == Span("device", "near", 0, 1.00002, pytest.approx(1.000028))


def test_near_attention_that_takes_far_results_ends_with_the_wait():
    names = ["_partial_kernel", "_combine_kernel"] * 3
    spans = with_layers(spans_of(Event(name, 1e6 * at, 1e6 * at + 8e5) for at, name in enumerate(names)), 3)
    taken = with_waits(spans, {0: 0.5, 2: 0.9})
    assert [(span.name, span.layer, span.start_s, span.end_s) for span in taken] == [
        ("near", 0, 0.0, pytest.approx(0.3)),
        ("wait far", 0, pytest.approx(0.3), 0.8),
        ("near", 0, 1.0, 1.8),
        ("near", 1, 2.0, 2.8),
        ("near", 1, 3.0, 3.8),
        ("near", 2, 4.0, 4.0),
        ("wait far", 2, 4.0, 4.8),
        ("near", 2, 5.0, 5.8),
    ]
    assert with_waits(taken, {0: 0.1}) == taken, "a kernel of its own waits"


def test_products_of_few_rows_are_a_stage_and_the_last_one_is_the_heads():
    events = [Event("_product_kernel", 10 * place, 10 * place + 8) for place in range(7)]
    spans = with_layers(spans_of(events), 3)
    assert {(span.lane, span.name) for span in spans} == {("device", "product")}
    assert [span.layer for span in spans] == [0, 0, 1, 1, 2, 2, None]
    assert {span.layer for span in with_layers(spans_of(events[:5]), 3)} == {None}, "no layer can be told"


def test_a_step_that_also_reads_a_prompt_is_told_without_it(tiny_models):
    with far_llm(str(tiny_models["llama"])) as llm:
        engine = llm.engine
        recorder = Recorder(engine)
        recorder.begin()
        answer = llm.submit(PROMPT, PARAMS)  # streamed, so the engine decodes before it reads the next prompt
        others = [llm.submit(PROMPT[:50], PARAMS) for _ in range(2)]
        for one in (answer, *others):
            one.wait()
        timeline = recorder.timeline()
    prompts = [span for span in timeline.spans if span.name == "prompt" and span.lane == "device"]
    assert len(prompts) >= 3
    for spans in by_lane(timeline).values():
        assert all(one.end_s <= other.start_s for one, other in pairwise(spans))
