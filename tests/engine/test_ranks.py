"""An engine over two ranks, which are threads here, gives the tokens and the counts of an engine over one."""

from types import SimpleNamespace

import pytest

from scoutattention import LLM, ConfigError, EngineConfig, SamplingParams, ScoutConfig
from scoutattention.engine import engine
from scoutattention.engine.engine import Engine
from scoutattention.engine.scheduler import Sequence
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.models.loader import load

from ..runtime.test_ranks import on_ranks

LONG = [(5 * i * i + 11 * i) % 89 for i in range(600)]
PROMPTS = [LONG[:75], LONG[:3], LONG[200:250], LONG]
# Two ranks round otherwise than one. Min/max digests show it least: codes and main dimensions turn with the last bit.
SCOUT = ScoutConfig(budget=40, block_size=8).changed(digest="minmax")
SLOTS = {"device_memory": "slots"}
CASES = {
    "full attention": ("llama-bias", ScoutConfig(budget=None, block_size=8), {}),
    "everything on the device": ("qwen2", SCOUT, {}),
    "scouts": ("qwen3", SCOUT, SLOTS),
    "scouts that one rank alone would trust": ("qwen2", SCOUT.changed(predictor="plain", min_scout_cosine=0.6), SLOTS),
    "two layers ahead, packed pages": ("qwen2", SCOUT.changed(lookahead=2), SLOTS | {"kv_dtype": "int8"}),
    "a device of 15 blocks": ("llama", SCOUT, {"device_memory": 15 * 6144}),
    "a limit of the CPU's share": (
        "llama",
        SCOUT.changed(max_cpu_share=0.02, recall_target=None, recall_interval=3),
        SLOTS,
    ),
    "fetching": ("mistral", SCOUT.changed(on_miss="fetch"), SLOTS),
}


def params(number: int) -> SamplingParams:
    """Every other one greedy; each of its own length, some with a penalty."""
    values = {"temperature": float(number % 2), "repetition_penalty": 1.2 if number == 2 else 1.0, "seed": number}
    return SamplingParams(max_tokens=10 + 5 * number, ignore_eos=True, **values)


def answers(engine: Engine, tokenizer):
    """Tokens of all prompts, and what the engine counted."""
    requests = [
        Sequence(i, prompt, params(i), len(prompt) + params(i).max_tokens, tokenizer)
        for i, prompt in enumerate(PROMPTS)
    ]
    for request in requests:
        engine.add(request)
    while engine.busy:
        engine.step()
    engine.close()
    stats = engine.stats
    counts = (stats.near_blocks, stats.far_blocks, stats.guarded_heads, stats.recalled_bytes, stats.kv_bytes_device)
    return [request.output_ids for request in requests], (*counts, stats.kv_bytes_total, stats.new_tokens)


@pytest.mark.parametrize(("family", "scout", "engine_config"), CASES.values(), ids=CASES)
def test_two_ranks_answer_as_one(tiny_models, tmp_path, family, scout, engine_config):
    path = str(tiny_models[family])
    one = LLM(path, scout=scout, max_num_seqs=3, **engine_config)
    expected = answers(one.engine, one.tokenizer)

    def work(ranks):
        model = load(path, ranks=ranks)
        config = EngineConfig(max_num_seqs=3, tensor_parallel_size=2, **engine_config)
        return answers(Engine(model.decoder, scout, config), model.tokenizer)

    assert on_ranks(2, tmp_path, work) == [expected, expected]
    far_blocks = expected[1][1]
    assert (far_blocks > 0) == ("device_memory" in engine_config)


def test_ranks_draw_the_same_tokens_without_a_seed(tiny_models, tmp_path):
    def work(ranks):
        model = load(str(tiny_models["llama"]), ranks=ranks)
        engine = Engine(model.decoder, SCOUT, EngineConfig(tensor_parallel_size=2))
        request = Sequence(0, [1, 2], SamplingParams(temperature=5.0, ignore_eos=True), 22, model.tokenizer)
        engine.add(request)
        while engine.busy:
            engine.step()
        return request.output_ids

    first, second = on_ranks(2, tmp_path, work)
    assert first == second


def test_the_plan_is_made_for_what_the_poorest_rank_has(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "free_memory", lambda index: (900, 700)[index])
    monkeypatch.setattr(engine, "available_memory", lambda: 5000)
    monkeypatch.setattr(
        engine, "plan_memory", lambda shape, scout, engine_config, host, devices: (shape, host, devices)
    )

    def work(ranks):
        decoder = SimpleNamespace(ranks=ranks, config=SimpleNamespace(shape="whole"))
        return engine.make_plan(decoder, SCOUT, EngineConfig(tensor_parallel_size=2), ranks.index)

    assert on_ranks(2, tmp_path, work) == [("whole", 5000, 1400)] * 2


def test_ranks_cannot_be_fed_known_tokens(tiny_models, tmp_path):
    def work(ranks):
        engine = Engine(
            load(str(tiny_models["llama"]), ranks=ranks).decoder, SCOUT, EngineConfig(tensor_parallel_size=2)
        )
        with pytest.raises(ConfigError, match=r"2 ranks cannot be fed .*: set tensor_parallel_size to 1"):
            next(teacher_forced(engine, LONG, 100))

    on_ranks(2, tmp_path, work)


def test_an_engine_alone_is_no_group(tiny_models):
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=2 needs as many ranks, and here is 1"):
        Engine(load(str(tiny_models["llama"])).decoder, SCOUT, EngineConfig(tensor_parallel_size=2))
