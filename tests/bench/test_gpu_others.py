"""Other programs in the GPU benchmark, on a CPU; how fast engines read prompts; and what is drawn of all."""

import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from scoutattention.bench.common.transformers_model import make_model
from scoutattention.bench.gpu import decode as gpu_decode
from scoutattention.bench.gpu import prefill as gpu_prefill
from scoutattention.bench.gpu import transformers as gpu_transformers
from scoutattention.bench.gpu.cases import LeftOut, Result, other_programs, rivals
from scoutattention.bench.gpu.prefill import prefill_speeds
from scoutattention.bench.gpu.rounds import measure
from scoutattention.bench.plot import gpu_png
from scoutattention.config import EngineConfig
from scoutattention.engine.engine import Engine
from scoutattention.errors import CapacityError
from scoutattention.models.formats.dummy import dummy_decoder
from scoutattention.models.shapes.known import shape_config

from .test_gpu_decode import BASE, CPU, ENGINE_CONFIG, NAMES, make_bench

FULL, OFFLOADED = other_programs(BASE)
TINY = shape_config("tiny")
ROPE = shape_config("llama-3.1-8b")["rope_scaling"] | {"original_max_position_embeddings": 64}


def bench_of(raw=TINY, **more):
    bench = make_bench(**more)
    decoder = dummy_decoder(raw, 4096, CPU)
    return replace(bench, decoder=decoder, config_json=raw)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"tie_word_embeddings": True},
        {"rope_scaling": ROPE, "rope_theta": 500_000},
        {"architectures": ["Qwen3ForCausalLM"], "head_dim": 32, "rope_theta": 1_000_000},
        {"architectures": ["Qwen2ForCausalLM"]},
        {"attention_bias": True},
    ],
    ids=str,
)
def test_it_is_the_same_model(changed):
    """Its logits are those of this engine, from the same memory."""
    raw = {**TINY, **changed}
    bench, tokens = bench_of(raw), list(range(40, 90))
    model = make_model(bench.decoder, raw)
    with torch.inference_mode():
        theirs = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    engine = Engine(bench.decoder, BASE, EngineConfig(max_model_len=64, max_num_seqs=1, host_memory=8 << 20))
    engine.store.admit(0, engine.plan.blocks(64), 0)
    ours = engine.runner.prefill(0, tokens)
    engine.close()
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert model.model.layers[1].mlp.up_proj.weight.data_ptr() in range(
        bench.decoder.weights.layers[1].gate_up.data_ptr(), bench.decoder.weights.layers[1].gate_up.data_ptr() + 2**20
    )
    assert all(not tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_it_runs_every_case_in_its_turn():
    told = []
    bench = replace(bench_of(contexts=(256, 128), batches=(1, 2)), tell=told.append)
    measured = measure(bench, (*rivals(BASE)[:1], FULL))
    cases = [("full", 256, 2), ("transformers", 256, 2), ("full", 128, 2), ("transformers", 128, 2)]
    cases += [(name, context, 1) for name, context, _ in cases]
    assert [(one.engine, one.context, one.batch) for one in measured.results] == cases
    assert told == measured.results
    assert all(one.tokens_per_s > 0 and one.steps == 4 and one.link_bytes == 0 for one in measured.results)


def test_its_cache_is_offloaded_where_that_is_asked_for(monkeypatch):
    """Without a GPU it only counts: the streams that it needs are not there."""
    bench, made = bench_of(), []

    class Cache:
        def __init__(self, **options) -> None:
            made.append(options["offloading"])

        def update(self, k, v, layer) -> None:
            made.append(tuple(k.shape))

    monkeypatch.setattr(gpu_transformers, "DynamicCache", Cache)
    monkeypatch.setattr(gpu_transformers, "forward", lambda model, cache, ids: ids[:, 0])
    steps = gpu_transformers.TransformersSteps(bench, OFFLOADED, (256, 3))
    assert made == [True, *[(3, 2, 256, 16)] * 4]
    assert steps.take()[1].recalled_bytes == 3 * 256 * bench.decoder.shape.kv_bytes_per_token


def test_room_is_planned_before_memory_is_taken(monkeypatch):
    """Of 265 tokens: four layers and three more on the device, or three of them and all four on the host."""
    free = SimpleNamespace(bytes=None)
    monkeypatch.setattr(gpu_transformers, "free_memory", lambda device: free.bytes)
    bench = bench_of(engine_config=replace(ENGINE_CONFIG, host_memory=10**9))
    whole = bench.decoder.shape.kv_bytes(256 + bench.workload.more)
    for rival, layers in ((FULL, 7), (OFFLOADED, 3)):
        free.bytes = whole * layers // 4 * 10 // 9 + 10
        gpu_decode.check_room(bench, rival, (256, 1))
        free.bytes -= 20
        with pytest.raises(CapacityError, match=f"takes {whole * layers // 4} bytes, and the device has .*--batches"):
            gpu_decode.check_room(bench, rival, (256, 1))
    free.bytes = None
    few = bench_of(engine_config=replace(ENGINE_CONFIG, host_memory=whole))
    gpu_decode.check_room(few, OFFLOADED, (256, 1))
    with pytest.raises(CapacityError, match=f"takes {2 * whole} bytes, and the host has {whole}.*raise --host-memory"):
        gpu_decode.check_room(few, OFFLOADED, (256, 2))


def test_a_program_that_fails_is_left_out(monkeypatch):
    def broken(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_transformers, "make_model", broken)
    measured = measure(bench_of(), (FULL,))
    assert measured.left_out == [LeftOut("transformers", 256, 1, "memory: CUDA out of memory")]


def test_it_is_not_loaded_where_it_does_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "scoutattention.bench.gpu.transformers", None)
    bench = bench_of()
    assert len(measure(bench, rivals(BASE)[:2]).results) == 2
    with pytest.raises(ImportError):
        gpu_decode.check_room(bench, FULL, (256, 1))


def test_every_engine_reads_a_prompt():
    bench = bench_of(contexts=(256, 128))
    length, speeds, left_out = prefill_speeds(bench, (*rivals(BASE), FULL))
    assert (length, left_out) == (256, [])
    assert list(speeds) == [*NAMES, "transformers"]
    assert all(speed > 0 for speed in speeds.values())


def test_long_prompts_are_cut_and_what_fails_is_told(monkeypatch):
    monkeypatch.setattr(gpu_prefill, "LONGEST", 64)

    def full(bench, rival, case, like):
        raise CapacityError("too small")

    monkeypatch.setattr(gpu_prefill, "make_engine", full)
    length, speeds, left_out = prefill_speeds(bench_of(), rivals(BASE)[:1])
    assert (length, speeds) == (64, {})
    assert left_out == [LeftOut("full", 64, 1, "memory: too small")]
    assert prefill_speeds(bench_of(until=time.perf_counter()), rivals(BASE)) == (64, {}, [])


def drawn(engine, context, batch, tokens_per_s):
    return Result(engine, context, batch, 4, 1e3 * batch / tokens_per_s, tokens_per_s, None, 0, 0, 0, 0)


def test_the_best_batch_over_contexts_and_every_batch_of_a_context_that_has_several(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    gpu_png(
        [
            *(drawn("full", 32768, batch, speed) for batch, speed in ((4, 90.0), (1, 30.0))),
            *(drawn("scout", 32768, batch, speed) for batch, speed in ((8, 70.0), (4, 80.0))),
            drawn("full", 8192, 4, 120.0),
        ],
        "random weights, budget 1024",
    )
    assert figures[0].get_suptitle() == "random weights, budget 1024"
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["full", "scout"]
    top = figures[0].axes[: len(figures[0].axes) // 2]
    lines = [
        {line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines} for axes in top
    ]
    assert [axes.get_title().partition(":")[0] for axes in top] == ["best batch", "context 32,768"]
    assert lines[0] == {"full": [(8192, 120.0), (32768, 90.0)], "scout": [(32768, 80.0)]}
    assert lines[1] == {"full": [(1, 30.0), (4, 90.0)], "scout": [(4, 80.0), (8, 70.0)]}
