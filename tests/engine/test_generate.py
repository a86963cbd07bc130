"""The whole engine: equal to transformers where it is dense, equal to dense where nothing is approximated.

Tests of generation run on every device that is there.
"""

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from scoutattention import LLM, CapacityError, ConfigError, PromptError, SamplingParams, ScoutConfig
from scoutattention.bench.common.transformers_model import make_model
from scoutattention.cache.memory_plan import plan_memory
from scoutattention.config import EngineConfig
from scoutattention.engine import llm as llm_module
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.models.loader import load, open_files
from scoutattention.shape import ModelShape

from ..models import families
from ..tiny import save

FAMILIES = ("llama", "llama-llama3", "mistral", "qwen2", "qwen3")
DENSE = ScoutConfig(budget=None, block_size=8)
GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
PROMPT = [(7 * i * i + 3 * i) % 97 for i in range(75)]


def check_against_transformers(llm: LLM, reference: PreTrainedModel, prompt: list[int]) -> None:
    """64 greedy tokens are the same, and the logits that led to them are within 1e-4."""
    reference.generation_config.eos_token_id = None
    ids = llm.generate(prompt, GREEDY)[0].token_ids
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False)
    assert ids == expected[0, len(prompt) :].tolist()
    whole = prompt + ids
    with torch.no_grad():
        logits = reference(torch.tensor([whole])).logits[0]
    ours = torch.stack([step for step, _ in teacher_forced(llm.engine, whole, len(prompt))])
    assert (ours - logits[len(prompt) :]).abs().max() < 1e-4


def block_bytes(llm: LLM) -> int:
    return llm.engine.store.near_pool.entry_bytes


def far_llm(model, scout: ScoutConfig, blocks: int = 1, sequences: int = 1, **engine_config) -> LLM:
    """An engine whose device has room for `blocks` blocks of each sequence, the open one included."""
    device = engine_config.get("device", "cpu")
    dense = LLM(model, scout=ScoutConfig(budget=None, block_size=scout.block_size), max_num_seqs=1, device=device)
    shape, size = dense.engine.runner.decoder.shape, block_bytes(dense)
    dense.close()
    memory = blocks * sequences * size
    while device == "cuda" and gpu_entries(shape, scout, memory, sequences) < blocks * sequences:
        memory += size
    return LLM(model, scout=scout, device_memory=memory, max_num_seqs=sequences, **engine_config)


def gpu_entries(shape: ModelShape, scout: ScoutConfig, memory: int, sequences: int) -> int:
    """Blocks that fit into so much memory of a GPU, beside the digests of all pages."""
    engine_config = EngineConfig(device="cuda", device_memory=memory, max_num_seqs=sequences)
    try:
        plan = plan_memory(shape, scout, engine_config, 1 << 40, 1 << 40)
    except CapacityError:
        return 0
    return plan.pages if plan.slots is None else plan.slots


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_equals_transformers(tiny_models, family, device):
    path = str(tiny_models[family])
    check_against_transformers(
        LLM(path, scout=DENSE, device=device), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), PROMPT
    )


@pytest.mark.parametrize("budget", [None, 24])
def test_half_precision_runs_prompts_of_few_and_many_tokens(tiny_models, budget, device):
    llm = far_llm(
        str(tiny_models["qwen3"]), ScoutConfig(budget=budget, block_size=8), 3, 2, dtype="bfloat16", device=device
    )
    outs = llm.generate([PROMPT[:5], PROMPT], SamplingParams(max_tokens=20, ignore_eos=True))
    assert [len(out.token_ids) for out in outs] == [20, 20]


def test_dense_equals_transformers_on_a_real_model(monkeypatch):
    """With expanded weights; tests/models has the distance that stored blocks have from these."""
    monkeypatch.setattr(llm_module, "load", partial(load, in_place=False))
    llm = LLM("smollm2", scout=DENSE, max_num_seqs=1)
    prompt = llm.tokenizer.encode("The lighthouse keeper wrote in his diary: " * 12)
    loaded = load("smollm2", in_place=False)
    check_against_transformers(llm, make_model(loaded.decoder, open_files(loaded.path).config), prompt)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [1, 4])
def test_full_budget_and_all_far_equals_dense(tiny_models, family, blocks, device):
    path = str(tiny_models[family])
    expected = LLM(path, scout=DENSE, device=device).generate(PROMPT, GREEDY)[0].token_ids
    scout = ScoutConfig().changed(budget=None, block_size=8, predictor="oracle", true_query_layers=())
    llm = far_llm(path, scout, blocks, device=device)
    assert llm.generate(PROMPT, GREEDY)[0].token_ids == expected
    stats = llm.stats()
    assert stats.far_blocks > 0
    assert stats.kv_bytes_device <= blocks * block_bytes(llm)
    assert stats.cpu_share == 1 if blocks == 1 else stats.cpu_share < 1


def test_a_context_within_the_budget_equals_full_attention(tiny_models, device):
    """Plain scouts, few slots, no layer with the true query: still exact, since nothing is left out."""
    path = str(tiny_models["llama"])
    expected = LLM(path, scout=DENSE, device=device).generate(PROMPT, GREEDY)[0].token_ids
    llm = far_llm(path, ScoutConfig().changed(budget=160, block_size=8, true_query_layers=()), 5, device=device)
    assert llm.generate(PROMPT, GREEDY)[0].token_ids == expected
    assert llm.stats().cpu_share > 0


def test_a_ragged_batch_equals_its_sequences_alone(tiny_models, device):
    path = str(tiny_models["qwen2"])
    prompts = [PROMPT, PROMPT[:3], PROMPT[10:60], PROMPT[:31], PROMPT[5:70]]
    scout = ScoutConfig().changed(budget=40, block_size=8, true_query_layers=(0,))
    params = SamplingParams(max_tokens=30, ignore_eos=True)
    batch = LLM(path, scout=scout, max_num_seqs=3, device_memory="slots", device=device)
    together = [out.token_ids for out in batch.generate(prompts, params)]
    one = LLM(path, scout=scout, max_num_seqs=1, device_memory="slots", device=device)
    alone = [one.generate(p, params)[0].token_ids for p in prompts]
    assert together == alone
    assert batch.stats().far_blocks > 0
    assert batch.engine.store.pages.available() == batch.engine.store.pages.pool.capacity
    assert batch.engine.store.slots.pool.available == batch.engine.store.slots.pool.capacity


def test_sequences_are_calibrated_each_by_itself(tiny_models, device):
    path = str(tiny_models["qwen3"])
    long = [(5 * i * i + 11 * i) % 89 for i in range(600)]
    prompts = [long, PROMPT, long[::-1], long[7:]]
    scout = ScoutConfig().changed(budget=64, block_size=8, predictor="calibrated", correction_dims=8)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    engine = {"scout": scout, "device_memory": "slots", "device": device}
    together = [out.token_ids for out in LLM(path, max_num_seqs=3, **engine).generate(prompts, params)]
    assert together == [LLM(path, max_num_seqs=1, **engine).generate(p, params)[0].token_ids for p in prompts]


@pytest.mark.parametrize("on_miss", ["compute", "fetch", "drop"])
@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_every_rival_is_a_configuration(tiny_models, on_miss, lookahead, device):
    scout = ScoutConfig().changed(budget=32, block_size=8, on_miss=on_miss, lookahead=lookahead, true_query_layers=())
    llm = far_llm(str(tiny_models["llama"]), scout, 5, device=device)
    out = llm.generate(PROMPT, SamplingParams(max_tokens=20, ignore_eos=True))[0]
    assert len(out.token_ids) == 20
    assert llm.stats().recalled_bytes > 0


@pytest.mark.parametrize("on_miss", ["compute", "fetch", "drop"])
@pytest.mark.parametrize(("kv_dtype", "off"), [("int8", 0.04), ("int4", 0.3)])
def test_packed_pages_change_little_and_take_less(tiny_models, kv_dtype, off, on_miss, device):
    """Beside the same engine over pages in the model's dtype, fed the same tokens.

    The digests have no basis, so that both engines choose from equal ones.
    """
    path, tokens = str(tiny_models["llama"]), PROMPT + PROMPT[:20]
    scout = ScoutConfig().changed(budget=64, block_size=8, on_miss=on_miss, recall_target=None, digest="keys2")
    plain, packed = (far_llm(path, scout, 9, kv_dtype=kind, device=device) for kind in ("auto", kv_dtype))
    logits = [
        torch.stack([step for step, _ in teacher_forced(llm.engine, tokens, len(PROMPT))]) for llm in (plain, packed)
    ]
    assert 0 < (logits[0] - logits[1]).std() < off * logits[0].std()
    outs = [llm.generate(PROMPT, SamplingParams(max_tokens=20, ignore_eos=True)) for llm in (plain, packed)]
    assert [len(out[0].token_ids) for out in outs] == [20, 20]
    assert packed.stats().kv_bytes_total < plain.stats().kv_bytes_total * 0.6
    assert packed.stats().recalled_bytes > 0


@pytest.mark.parametrize("budget", [None, 48])
def test_packed_pages_on_the_device_are_attended_to_where_they_are(tiny_models, budget):
    """As the same pages are by the CPU, where a device holds the open block alone and every query is the true one."""
    path, tokens = str(tiny_models["qwen2"]), PROMPT + PROMPT[:20]
    options = {"lookahead": 0, "recall_interval": 0, "max_cpu_share": None, "digest": "keys2"}
    scout = ScoutConfig().changed(budget=budget, block_size=8, **options)
    resident, far = LLM(path, scout=scout, kv_dtype="int8", max_num_seqs=1), far_llm(path, scout, kv_dtype="int8")
    logits = [
        torch.stack([step for step, _ in teacher_forced(llm.engine, tokens, len(PROMPT))]) for llm in (resident, far)
    ]
    assert (logits[0] - logits[1]).abs().max() < 3e-4
    assert resident.engine.store.resident


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("power", [30, -40])
def test_packed_pages_hold_values_of_any_size(tmp_path, dtype, power):
    """Keys and values times a power of two, which queries and outputs take off again, change no answer."""
    model, logits = families.make("qwen2"), []
    for scale in (1.0, 2.0**power):
        with torch.no_grad():
            for layer in model.model.layers:
                attention = layer.self_attn
                for projection, factor in ((attention.q_proj, 1 / scale), (attention.k_proj, scale)):
                    projection.weight *= factor
                    projection.bias *= factor
                attention.v_proj.weight *= scale
                attention.v_proj.bias *= scale
                attention.o_proj.weight /= scale
        llm = LLM(str(save(model, tmp_path / str(scale))), scout=DENSE, kv_dtype="int8", dtype=dtype)
        logits.append(torch.stack([step for step, _ in teacher_forced(llm.engine, PROMPT + PROMPT[:20], len(PROMPT))]))
        llm.close()
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4 if dtype == "float32" else 0.05)


def test_a_packed_ragged_batch_equals_its_sequences_alone(tiny_models):
    prompts = [PROMPT, PROMPT[:3], PROMPT[10:60], PROMPT[:31], PROMPT[5:70]]
    scout, params = ScoutConfig(budget=40, block_size=8), SamplingParams(max_tokens=30, ignore_eos=True)
    path, engine_config = str(tiny_models["qwen2"]), {"scout": scout, "kv_dtype": "int8", "dtype": "bfloat16"}
    batch, one = (LLM(path, max_num_seqs=count, **engine_config) for count in (3, 1))
    together = [out.token_ids for out in batch.generate(prompts, params)]
    assert together == [one.generate(prompt, params)[0].token_ids for prompt in prompts]
    stats = batch.stats()
    assert (stats.far_blocks, stats.kv_bytes_device) == (0, stats.kv_bytes_total)
    assert batch.engine.store.slots.pool.available == 3


def test_stream_gives_the_same_text_in_pieces(tiny_models):
    llm = LLM(str(tiny_models["llama"]), scout=DENSE)
    whole = llm.generate(PROMPT, GREEDY)[0]
    told = []
    chunks = list(llm.stream(PROMPT, GREEDY, on_prompt=lambda done, total: told.append((done, total))))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert told[-1] == (75, 75)
    assert told == sorted(told)


def test_an_abandoned_stream_frees_everything(tiny_models):
    llm = LLM(str(tiny_models["llama"]), scout=DENSE)
    stream = llm.stream(PROMPT, GREEDY)
    next(stream)
    stream.close()
    assert len(llm.generate(PROMPT, SamplingParams(max_tokens=1))) == 1
    assert not llm.engine.busy
    assert llm.engine.store.pages.available() == llm.engine.store.pages.pool.capacity
    assert len(llm.generate(PROMPT, GREEDY)[0].token_ids) == 64


def test_answers_end_at_the_length_limit(tiny_models):
    llm = LLM(str(tiny_models["llama"]), scout=DENSE, max_model_len=80)
    out = llm.generate(PROMPT, GREEDY)[0]
    assert (len(out.token_ids), out.finish_reason) == (5, "length")


def test_seeds_make_samples_repeatable(tiny_models):
    llm = LLM(str(tiny_models["llama"]), scout=DENSE)
    params = [SamplingParams(max_tokens=20, temperature=1.5, seed=seed, ignore_eos=True) for seed in (1, 1, 2)]
    one, same, other = (llm.generate(PROMPT, p)[0].token_ids for p in params)
    assert one == same != other


def test_bad_requests_are_refused_with_number_limit_and_knob(tiny_models):
    path = str(tiny_models["llama"])
    llm = LLM(path, scout=DENSE, max_model_len=80)
    for empty in ("", [], [[]]):
        with pytest.raises(PromptError, match="the prompt is empty"):
            llm.generate([empty] if empty == [] else empty)
    with pytest.raises(PromptError, match=r"the prompt has 80 tokens, and max_model_len=80 leaves room for 79"):
        llm.generate([1] * 80)
    with pytest.raises(ConfigError, match="has no chat template: pass chat=False"):
        llm.generate("hello", chat=True)
    small = LLM(path, scout=DENSE, host_memory=9 * block_bytes(llm))
    with pytest.raises(
        CapacityError, match=r"75 prompt tokens and up to 64 new .* need 18 blocks .* the host pool has 9"
    ):
        small.generate(PROMPT, GREEDY)
    assert len(small.generate(PROMPT[:5], SamplingParams(max_tokens=3, ignore_eos=True))[0].token_ids) == 3
    with pytest.raises(ConfigError, match="no setting 'device_memroy': 'device_memory' is the nearest"):
        LLM(path, device_memroy="1GiB")


def test_a_sequence_within_its_budget_is_attended_to_without_a_choice(tiny_models, monkeypatch):
    """The question is first asked when a block is beyond the budget."""
    path, asked = str(tiny_models["llama"]), []
    llm = LLM(path, scout=ScoutConfig(budget=96, block_size=8), max_num_seqs=1)
    choose = llm.engine.runner.attention.chooser.judge
    monkeypatch.setattr(
        llm.engine.runner.attention.chooser, "judge", lambda layer, *args: asked.append(layer) or choose(layer, *args)
    )
    expected = LLM(path, scout=DENSE).generate(PROMPT, GREEDY)[0].token_ids
    within = 88 - len(PROMPT) + 8  # eleven closed blocks and the open one
    assert llm.generate(PROMPT, SamplingParams(max_tokens=within, ignore_eos=True))[0].token_ids == expected[:within]
    assert not asked
    llm.generate(PROMPT, GREEDY)
    assert asked
