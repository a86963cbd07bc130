"""The GPU benchmark, the CPU standing in for the device: who runs, on what, and what ends an engine's row."""

import gc
import time
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from scoutattention.attention.step import StepStats
from scoutattention.bench.common import profiler
from scoutattention.bench.common.profiler import Event
from scoutattention.bench.gpu import decode as gpu_decode
from scoutattention.bench.gpu import idle as gpu_idle
from scoutattention.bench.gpu.cases import LeftOut, Workload, rivals
from scoutattention.bench.gpu.decode import Bench, Taken, Trace
from scoutattention.bench.gpu.fetch_all import FetchAllAttention
from scoutattention.bench.gpu.idle import busy_seconds, by_name, covered
from scoutattention.bench.gpu.prompts import DummyPrompts, RealPrompts
from scoutattention.bench.gpu.rounds import measure
from scoutattention.cache.memory_plan import work_bytes
from scoutattention.cache.pool import PackedPool
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.errors import CapacityError
from scoutattention.eval.fidelity.ablation import Variant
from scoutattention.eval.fidelity.recorder import Recorder, recorded_variants, recording
from scoutattention.eval.fidelity.run import run
from scoutattention.eval.text import Text
from scoutattention.kernels.triton.base import TritonError
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.loader import load
from scoutattention.models.recording import Recording
from scoutattention.models.shapes.known import shape_config

from ..models.test_recording import ABOUT, make_run

CPU = torch.device("cpu")
BASE = ScoutConfig(budget=64, block_size=16)
ENGINE_CONFIG = EngineConfig(host_memory=8 << 20)
NAMES = ["full", "resident", "fetch", "fetch-ahead", "fetch-all", "compute", "scout-plain", "scout"]


def make_bench(contexts=(256,), batches=(1,), recorded=None, until=None, **more):
    sizes = Workload(contexts, batches, more.pop("engine_config", ENGINE_CONFIG), **({"warm_up": 2, "steps": 4} | more))
    decoder = dummy_decoder(shape_config("tiny"), max(contexts) + sizes.more, CPU)
    clock = time.perf_counter() + 100 if until is None else until
    return Bench(decoder, DummyPrompts(recorded), sizes, clock, lambda told: None)


@pytest.fixture
def engines(monkeypatch):
    """Every engine that the benchmark makes."""
    made = []

    class Noted(Engine):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(gpu_decode, "Engine", Noted)
    return made


def test_rivals_are_settings():
    """Each is what the README says of it."""
    known = {rival.name: rival.scout for rival in rivals(BASE)}
    assert list(known) == NAMES
    assert known["full"].budget is None
    assert known["resident"] == known["scout-plain"]
    assert [known[name].lookahead for name in NAMES[2:]] == [0, 1, 1, 0, 1, 1]
    assert [known[name].ablation.on_miss for name in NAMES[2:]] == ["fetch"] * 2 + ["compute"] * 4
    assert [known[name].ablation.predictor for name in NAMES[6:]] == ["plain", "calibrated"]
    assert [rival.device_memory for rival in rivals(BASE)] == ["all"] * 2 + ["slots"] * 6
    assert [rival.name for rival in rivals(BASE) if rival.fetch_all] == ["fetch-all"]
    assert len({rival.store() for rival in rivals(BASE)}) == 3


def test_pages_in_host_memory_are_packed_for_engines_that_can_read_them(engines):
    """All others keep the model's dtype, and so does what copies whole layers; it has a store of its own then."""
    bench = make_bench(engine_config=replace(ENGINE_CONFIG, kv_dtype="int8"))
    measured = measure(bench, rivals(BASE))
    assert measured.left_out == []
    assert [result.engine for result in measured.results] == [*(n for n in NAMES if n != "fetch-all"), "fetch-all"]
    packed = [isinstance(engine.store.pages.pool, PackedPool) for engine in engines]
    assert packed == [False] * 4 + [True] * 6 + [False] * 2
    by_name = {result.engine: result for result in measured.results}
    assert 0 < by_name["fetch"].link_bytes < by_name["fetch-all"].link_bytes / 2


def test_every_engine_runs_every_case_largest_batches_first(engines):
    measured = measure(make_bench((512, 256), (1, 2)), rivals(BASE))
    assert [(r.batch, r.context) for r in measured.results[::8]] == [(2, 512), (2, 256), (1, 512), (1, 256)]
    assert [result.engine for result in measured.results] == NAMES * 4
    assert (measured.left_out, measured.not_started) == ([], 0)
    for result in measured.results:
        assert result.steps == 4
        assert result.tokens_per_s == pytest.approx(result.batch / result.ms_per_step * 1e3, rel=0.9)
        assert result.device_idle_share is None
    by_name = {result.engine: result for result in measured.results[8:16]}
    for name in ("full", "resident"):
        assert by_name[name].link_bytes == by_name[name].share == by_name["fetch"].unhidden_ms == 0
    assert by_name["fetch"].link_bytes > by_name["compute"].link_bytes
    assert by_name["fetch-all"].link_bytes == engines[21].store.pages.pool.k.nbytes * 2
    assert by_name["fetch-all"].share == 1
    assert by_name["scout"].hidden_ms + by_name["scout"].unhidden_ms > 0
    assert all(by_name[name].share > 0.01 for name in NAMES[2:])
    assert len({id(engine.store) for engine in engines}) == 12, "of full attention, of a budget, of slots: by case"
    assert all(engine.store.pages.available() == engine.plan.pages for engine in engines)


def test_the_cache_is_filled_with_numbers(engines):
    """Page by page: of normal size, no two of a kind, and what slots hold is what pages hold."""
    bench = make_bench(engine_config=replace(ENGINE_CONFIG, max_num_seqs=1))
    (fetch,) = (rival for rival in rivals(BASE) if rival.name == "fetch")
    engine = gpu_decode.make_engine(bench, fetch, (256, 2), None)
    store = engine.store
    for row in range(2):
        store.admit(row, engine.plan.blocks(256), engine.plan.quota(2, 256))
    bench.prompts.place(engine, fetch.scout, 256, 2)
    pool, slots = store.pages.pool, store.slots
    for values in (pool.k, pool.v):
        assert float(values.std()) == pytest.approx(1, abs=0.05)
        assert not torch.equal(values[0, 0], values[0, 1])
    assert not torch.equal(pool.k[0], pool.v[0])
    block = int(slots.content[3, 1, 1, 2])
    assert torch.equal(slots.pool.k[3, slots.near_index[1, 3], 1], pool.k[3, store.pages.table[1, block], 1])
    assert (slots.content[:, :, :, : slots.quota[0]] >= 0).all()
    assert (slots.slot_of[..., 0] < slots.size).all(), "the first block is resident"
    codes = engine.cache.digests.judge._codes
    assert int((codes != 0).sum()) > codes.numel() / 2
    engine.close()


def test_a_recording_says_what_is_resident_trusted_and_chosen():
    """Half of the blocks were resident, fewer than there are slots; scouts were made in all layers but the first.

    The places are the recorded ones, since so many blocks were recorded.
    """
    resident = torch.tensor([True, False, True, False, True, False, False, True])
    source = make_run(layers=4)._replace(resident=resident.expand(4, 2, -1).contiguous())
    trace = Recording(replace(ABOUT, context=128, block_size=16, budget=64), {"plain": source})
    bench = make_bench((128,), recorded=trace)
    scout = next(rival for rival in rivals(BASE) if rival.name == "scout-plain")
    engine = gpu_decode.make_engine(bench, scout, (128, 1), None)
    store = engine.store
    store.admit(0, engine.plan.blocks(128), 6)
    bench.prompts.place(engine, scout.scout, 128, 1)
    held = store.slots.slot_of[:, 0, :, :8] < store.slots.size
    assert held[..., resident].all()
    assert not held.all()
    step = engine.runner.attention.prepare([0])
    chosen = engine.runner.attention.parts.chooser.judge(3, torch.zeros(1, 2, 2, 16), step.batch)
    assert torch.equal(chosen.blocks[0], source.true.blocks[0, 3].long())
    assert engine.runner.attention.trusted[:, 0].tolist() == [False, True, True, True]
    engine.close()


def test_a_row_ends_where_memory_does():
    """On the CPU the device's memory is the host's: so all of them have as much room."""
    few = replace(ENGINE_CONFIG, host_memory=30 * 16 * 1024)  # pages for one sequence of 256 tokens, and not for two
    measured = measure(make_bench((256,), (1, 2, 4), engine_config=few), rivals(BASE))
    assert [result.engine for result in measured.results] == NAMES
    assert [(left.engine, left.batch) for left in measured.left_out] == [(name, 2) for name in NAMES]
    said = "memory: 2 sequences of 265 tokens need 34 blocks of 16 tokens, and 30 fit the host's memory: raise"
    assert all(left.why.startswith(said) for left in measured.left_out)


def test_room_is_the_devices_where_everything_is_there(monkeypatch):
    bench = make_bench((256,), (1,), engine_config=replace(ENGINE_CONFIG, host_memory=1 << 40))
    for rival in rivals(BASE)[:2]:
        room = work_bytes(bench.decoder.shape, rival.scout, gpu_decode.config_for(bench, rival, (256, 4)), 265)
        monkeypatch.setattr(gpu_decode, "free_memory", lambda device, room=room: room + 30 * 16 * 1024)
        with pytest.raises(CapacityError, match="fit the device: lower --batches or --contexts"):
            gpu_decode.check_room(bench, rival, (256, 4))


def test_why_there_is_no_room_is_a_whole_sentence(monkeypatch):
    monkeypatch.setattr(gpu_decode, "free_memory", lambda device: 1 << 20)
    limits = {"device": "cuda", "host_memory": 1 << 40}
    monkeypatch.setattr(gpu_decode, "find_device", lambda name: None)
    bench = make_bench((256,), (1,), engine_config=replace(ENGINE_CONFIG, **limits))
    why = gpu_decode.tried(partial(gpu_decode.check_room, bench, rivals(BASE)[-1], (256, 4)))
    assert why.startswith("memory: ")
    assert why.endswith("lower device_memory, budget, max_num_seqs or max_model_len")


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried", "CUDA error: out of memory"])
def test_a_device_that_is_full_ends_one_row_only(monkeypatch, message):
    decode = gpu_decode.Steps.take

    def take(self):
        if self._runner.attention.__class__.__name__ == "ResidentAttention":
            raise torch.OutOfMemoryError(message)
        return decode(self)

    monkeypatch.setattr(gpu_decode.Steps, "take", take)
    measured = measure(make_bench(), rivals(BASE))
    assert [result.engine for result in measured.results] == NAMES[2:]
    assert measured.left_out == [LeftOut(name, 256, 1, f"memory: {message}") for name in NAMES[:2]]


def test_two_layers_that_do_not_fit_the_device_end_one_row_only(monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_decode, "FetchAllAttention", full)
    measured = measure(make_bench(), rivals(BASE))
    assert [result.engine for result in measured.results] == [name for name in NAMES if name != "fetch-all"]
    assert [left.engine for left in measured.left_out] == ["fetch-all"]


@pytest.fixture
def alive(monkeypatch):
    """How many engines there were whenever one was made; garbage is collected by nobody but the benchmark."""
    made, counts = [], []

    class Noted(Engine):
        def __init__(self, *args, **options) -> None:
            counts.append(sum(engine() is not None for engine in made))
            super().__init__(*args, **options)
            self.itself = self  # as an engine whose steps are captured holds itself
            made.append(weakref.ref(self))

    monkeypatch.setattr(gpu_decode, "Engine", Noted)
    gc.disable()
    yield counts
    gc.enable()


def test_an_engine_that_failed_is_gone_before_the_next_is_made(monkeypatch, alive):
    """Two caches would not fit beside each other."""

    def fill(prompts, store):
        raise CapacityError("too small")

    monkeypatch.setattr(DummyPrompts, "fill", fill)
    left = measure(make_bench(), rivals(BASE)).left_out
    assert [(one.engine, one.why) for one in left] == [(name, "memory: too small") for name in NAMES]
    assert alive == [0, 0, 0]


def test_an_engine_is_gone_before_the_next_is_made(alive):
    """But for the one that keeps the store."""
    assert len(measure(make_bench(), rivals(BASE)).results) == len(NAMES)
    assert alive == [0, 1] * 2 + [0] + [1] * 6


@pytest.mark.parametrize("error", [RuntimeError, ValueError, TritonError])
def test_an_engine_that_fails_is_left_out_and_the_others_run(monkeypatch, error):
    decode = gpu_decode.Steps.take

    def take(self):
        if isinstance(self._runner.attention, FetchAllAttention):
            raise error("a bug\nand more")
        return decode(self)

    monkeypatch.setattr(gpu_decode.Steps, "take", take)
    measured = measure(make_bench(), rivals(BASE))
    assert [result.engine for result in measured.results] == [name for name in NAMES if name != "fetch-all"]
    assert measured.left_out == [LeftOut("fetch-all", 256, 1, f"failed: {error.__name__}: a bug")]
    assert measured.left_out[0].failed


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OSError(12, "Cannot allocate memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_host_that_is_full_is_no_failure(error):
    def full():
        raise error

    assert gpu_decode.tried(full).startswith("memory: ")


def test_no_case_starts_when_time_is_over(engines):
    measured = measure(make_bench((256, 512), until=time.perf_counter()), rivals(BASE))
    assert (measured.results, measured.left_out, engines) == ([], [], [])
    assert measured.not_started == 2 * len(NAMES)


def test_time_that_ends_while_a_store_is_used_ends_the_run(monkeypatch):
    bench = make_bench(until=50.0)
    monkeypatch.setattr(gpu_decode, "make_engine", lambda *args: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(gpu_decode, "run_beside", lambda bench, rival, case, keeper: rival.name)
    clock = iter([48.0, 49.0, 50.0])
    monkeypatch.setattr(gpu_decode.time, "perf_counter", lambda: next(clock))
    made = list(gpu_decode.run_together(bench, list(rivals(BASE)[2:]), (256, 1)))
    assert len(made) == 2


def test_steps_that_are_captured_do_not_count_beside_replays():
    """A captured step takes 0.2 s, once; without replays there is nothing else to tell."""
    rival = rivals(BASE)[0]
    taken = [Taken(0.2, StepStats(recalled_bytes=90), replayed=False), *2 * [Taken(0.01, StepStats(recalled_bytes=3))]]
    result = gpu_decode.to_result(rival, (256, 2), taken, Trace([], []))
    assert (result.steps, result.ms_per_step, result.link_bytes) == (2, 10, 3)
    assert result.tokens_per_s == pytest.approx(200)
    assert gpu_decode.to_result(rival, (256, 2), taken[:1], Trace([], [])).tokens_per_s == pytest.approx(10)


def test_slow_steps_are_fewer(monkeypatch):
    """Of two seconds each: three begin within five seconds, which is one less than are needed."""
    clock = iter(range(100))
    monkeypatch.setattr(gpu_decode.time, "perf_counter", lambda: next(clock) * 1.0)
    steps = object.__new__(gpu_decode.Steps)
    steps.take = lambda: (next(clock), "taken")
    assert len(steps.take_some(1, 32)) == 3
    assert len(steps.take_some(4, 32)) == 4
    assert len(steps.take_some(4, 2)) == 2


def test_replayed_shares_are_those_of_the_recorded_model(tiny_models):
    """A model of random weights is recorded, and other random weights choose alike, and keep alike resident."""
    model = load(str(tiny_models["llama"]))
    variants = recorded_variants(Variant("recorded", BASE.changed(true_query_layers=(0,)), "slots"), 192)
    recorders, text = {variant.name: Recorder() for variant in variants}, Text("a", "What is read is kept. " * 20)
    recorded = run(
        model, EngineConfig(), [text], (192, 24), variants=variants, watch=lambda *told: None, also=recorders
    )
    trace = recording(variants[0].scout, recorders, ("llama", "a"), 192)
    bench = replace(make_bench((192,), recorded=trace, warm_up=0, steps=24), decoder=model.decoder)
    measured = {result.engine: result.share for result in measure(bench, rivals(BASE)).results}
    for name, row in zip(("scout-plain", "scout"), recorded, strict=True):
        assert row.fidelity.cpu_share > 0.02
        assert measured[name] == pytest.approx(row.fidelity.cpu_share, rel=0.25)


def test_a_real_models_prompts_are_read_and_each_is_another(tiny_models, engines):
    model = load(str(tiny_models["llama"]))
    prompts = RealPrompts([(7 * i * i + 3 * i) % 97 for i in range(1000)])
    bench = replace(make_bench((640,), (2,)), decoder=model.decoder, prompts=prompts)
    measured = measure(bench, [rival for rival in rivals(BASE) if rival.name in {"full", "scout"}])
    assert [result.engine for result in measured.results] == ["full", "scout"]
    pool, table = engines[0].store.pages.pool, engines[0].store.pages.table
    first, second = (pool.k[:, table[row, 0]] for row in range(2))
    assert float((first - second).abs().max()) > 0.01


def profiled(monkeypatch, events):
    """A profiler that saw these (device, name, start, end), in microseconds."""
    seen = [
        SimpleNamespace(
            device_type=SimpleNamespace(name=device), name=name, time_range=SimpleNamespace(start=start, end=end)
        )
        for device, name, start, end in events
    ]
    kineto = SimpleNamespace(kineto_results=SimpleNamespace(trace_start_ns=time.time_ns))
    fake = SimpleNamespace(start=lambda: None, stop=lambda: None, events=lambda: seen, profiler=kineto)
    monkeypatch.setattr(profiler, "profile", lambda activities: fake)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profiler, "let_go", lambda: None)
    return gpu_idle.traced(lambda: None, 2)


def test_waiting_for_the_cpu_is_no_idling():
    """Traced steps that did not wait say how long the device works in steps that did."""
    events = [Event("partial", 0.0, 3 * 6e3)]
    trace = Trace(3 * [Taken(0.009, StepStats(unhidden_s=0.001))], events)
    timed = 2 * [Taken(0.010, StepStats(unhidden_s=0.004))]
    assert trace.idle_share(timed) == pytest.approx(0.1), "of 6 ms without waiting, 5 are work"
    assert Trace([], []).idle_share(timed) is None


def test_a_device_works_where_kernels_run(monkeypatch):
    """Copies are events too: a step of nothing else is idle."""
    copy, host = ("CUDA", "Memcpy HtoD", 0.0, 9.0), ("CPU", "launch", 0.0, 9.0)
    assert busy_seconds(profiled(monkeypatch, [("CUDA", "partial", 1.0, 5.0), copy, host]), 2) == pytest.approx(2e-6)
    assert busy_seconds(profiled(monkeypatch, [copy]), 2) == 0


def test_a_profile_without_the_device_says_nothing(monkeypatch):
    assert busy_seconds(profiled(monkeypatch, []), 2) is None
    assert busy_seconds(profiled(monkeypatch, [("CPU", "launch", 0.0, 9.0)]), 2) is None


def test_kernels_are_listed_by_name_the_longest_first():
    """Of two steps: PyTorch's own are one name whatever they were made for; copies are told apart."""
    names = [
        ("_partial_kernel", 3000.0),
        ("_unpack_kernel", 1000.0),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::AddFunctor>(int)", 100.0),
        ("void at::native::(anonymous namespace)::elementwise_kernel<8>(float)", 100.0),
        ("void at::native::vectorized_elementwise_kernel<2, at::native::MulFunctor>(int)", 100.0),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16>(Params)", 600.0),
        ("Memcpy HtoD (Pinned -> Device)", 10.0),
    ]
    kernels = by_name([Event(name, 5.0, 5.0 + length) for name, length in names], 2)
    assert [(one.name, one.ms, one.launches, one.copies) for one in kernels] == [
        ("_partial_kernel", 1.5, 0.5, False),
        ("_unpack_kernel", 0.5, 0.5, True),
        ("cutlass::Kernel2<cutlass_80_tensorop_bf16>", 0.3, 0.5, False),
        ("vectorized_elementwise_kernel", 0.1, 1.0, False),
        ("elementwise_kernel", 0.05, 0.5, False),
        ("Memcpy HtoD (Pinned -> Device)", 0.005, 0.5, True),
    ]


def test_overlapping_spans_count_once():
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4.0
    assert covered([]) == 0.0
