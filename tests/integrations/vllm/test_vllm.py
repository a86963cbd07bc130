"""The plugin inside vLLM, in the environment of `make test-vllm`; each run of vLLM is a process of its own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.eval.text import first_tokens, prose
from scoutattention.models.resolve import resolve
from scoutattention.models.text import Tokenizer

from ...models import families
from ...tiny import save
from .expand import expand_gguf

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("SCOUT_VLLM_PYTHON", "")
NEW = 16
LONG = int(os.environ.get("SCOUT_VLLM_LONG", "3000"))
"""Tokens of the longest of eight requests."""
BLOCK = 128
"""Tokens of a block of vLLM on a CPU."""
LEAD = 0.01
"""Nats by which a next token leads at least: then a block that is chosen otherwise for a last bit changes none."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="vLLM has an environment of its own: run make test-vllm"),
]


def ask(model, batches, scout=None, tokens=NEW, watched=False, environment=(), **llm):
    """What vLLM answers to batches of prompts; with scout's settings, with the plugin."""
    extra = {} if scout is None else {"additional_config": {"scout": scout}}
    question = {
        "llm": {"model": str(model), "max_model_len": 1024} | extra | llm,
        "batches": batches,
        "tokens": tokens,
        "watched": watched,
        "environment": dict(environment),
    }
    done = subprocess.run(
        [PYTHON, "-m", "tests.integrations.vllm.asked"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def prompts(*lengths, vocab=250):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return expand_gguf(resolve("smollm2"), tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A tiny model whose heads have a size that vLLM's own attention knows."""
    return save(families.make("qwen3", num_attention_heads=4, num_key_value_heads=2), tmp_path_factory.mktemp("qwen3"))


def test_within_budget_the_answers_are_those_of_vllm(smollm2, qwen3):
    for model, vocab in ((smollm2, 40_000), (qwen3, 250)):
        batch = [prompts(300, 200, vocab=vocab)]
        stock = ask(model, batch)["answers"]
        assert ask(model, batch, scout={"budget": None})["answers"] == stock
        assert ask(model, batch, scout={"budget": 4096, "device_memory": "slots"})["answers"] == stock


def test_with_a_budget_the_answers_are_those_of_the_engine(qwen3):
    settings = {"budget": 96, "block_size": 8}
    batch = prompts(700, 431)
    for memory in ("slots", "all"):
        answer = ask(qwen3, [batch], scout=settings | {"device_memory": memory}, max_num_batched_tokens=256)
        scout = ScoutConfig(**settings, calibration=None)
        llm = LLM(str(qwen3), scout=scout, device="cpu", device_memory=memory, max_model_len=1024, dtype="float32")
        params = SamplingParams(max_tokens=NEW, temperature=0.0, ignore_eos=True)
        assert answer["answers"][0] == [list(output.token_ids) for output in llm.generate(batch, params)]
        assert (answer["far"] > 0) == (memory == "slots")


def test_requests_that_vllm_would_have_wait_run_at_once_and_answer_as_alone(tmp_path):
    """Eight requests, and memory of vLLM for two of them."""
    model = families.make("qwen3", num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LONG + 64)
    save(model, tmp_path)
    batch = prompts(*[LONG - 3 * n for n in range(8)])
    limits = {"max_model_len": LONG + 64, "num_gpu_blocks_override": 2 * -(-(LONG + 64) // BLOCK) + 1, "watched": True}
    settings = {"budget": 256, "device_memory": "slots"}
    together = ask(tmp_path, [batch], scout=settings, **limits)
    assert (together["running"], together["blocks"]) == (8, 1)
    alone = ask(tmp_path, [[one] for one in batch], scout=settings, **limits)
    assert alone["running"] == 1
    assert together["answers"][0] == [one for (one,) in alone["answers"]]
    stock = ask(tmp_path, [batch], tokens=2, **limits)
    assert stock["running"] < 4
    assert stock["blocks"] == -(-(LONG + 1) // BLOCK)


def test_a_long_text_is_continued_as_the_engine_continues_it(smollm2):
    """A budget of 1,024 of 7,000 tokens; of vLLM's own memory a request has one block."""
    settings, length, start = {"budget": 1024, "device_memory": "slots"}, 7000, 100
    prompt = first_tokens(Tokenizer.from_directory(smollm2), prose(), start + length)[start:]
    answer = ask(smollm2, [[prompt]], scout=settings, max_model_len=length + NEW, watched=True)
    method = ScoutConfig(budget=1024, calibration=None)
    engine = LLM(str(smollm2), scout=method, device_memory="slots", max_model_len=length + NEW, dtype="float32")
    params = SamplingParams(max_tokens=NEW, ignore_eos=True, logprobs=2)
    (expected,) = engine.generate([prompt], params)
    for first, second in (sorted(one.values(), reverse=True)[:2] for one in expected.logprobs):
        assert first - second > LEAD
    assert answer["answers"] == [[list(expected.token_ids)]]
    assert answer["far"] > 0
    assert answer["blocks"] == 1


def test_two_ranks_answer_as_one(qwen3):
    batch = [prompts(700, 431)]
    settings = {"budget": 96, "block_size": 8, "device_memory": "slots"}
    one = ask(qwen3, batch, scout=settings)["answers"]
    assert ask(qwen3, batch, scout=settings, tensor_parallel_size=2)["answers"] == one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"enable_prefix_caching": True}, "vLLM's enable_prefix_caching=True does not run with scout"),
        ({"scout": {"budgt": 1}}, "scout in vLLM has no setting 'budgt': write budget"),
    ],
)
def test_what_does_not_run_is_refused_before_a_model_is_loaded(qwen3, changes, message):
    with pytest.raises(AssertionError, match=message):
        ask(qwen3, [], **({"scout": {"budget": 96}} | changes))
