"""Log-probabilities of prompts, against a plain forward pass of transformers' model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoutattention import LLM, ModelError, SamplingParams, ScoutConfig
from scoutattention.engine import runner

from ..test_generate import PROMPT

SCORED = SamplingParams(max_tokens=0, prompt_logprobs=3)


def right(path: str, prompt: list[int]) -> torch.Tensor:
    """Log-probabilities of the tokens that come after each of a prompt's, [T, vocab]."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].log_softmax(-1)


def assert_scored(found: list[dict[int, float] | None], path: str, prompt: list[int], top: int) -> None:
    assert found[0] is None
    assert len(found) == len(prompt)
    for token, one, expected in zip(prompt[1:], found[1:], right(path, prompt), strict=False):
        assert next(iter(one)) == token
        assert set(one) == {token, *expected.topk(top).indices.tolist()}
        assert all(abs(value - expected[each]) < 1e-4 for each, value in one.items())


@pytest.fixture
def small_pieces(monkeypatch, request):
    """Logits of few positions are held at once."""
    monkeypatch.setattr(runner, "SCORED_BYTES", request.param)


@pytest.mark.parametrize("small_pieces", [1, 5000, 64 << 20], indirect=True)
@pytest.mark.parametrize("config", [{"budget": None}, {"budget": 32}], ids=["dense", "slots"])
def test_a_prompt_is_scored_in_pieces(tiny_models, small_pieces, config):
    path = str(tiny_models["qwen2"])
    with LLM(path, scout=ScoutConfig(block_size=8, **config)) as llm:
        for prompt in (PROMPT, PROMPT[:2], PROMPT[:1], PROMPT):
            out = llm.generate(prompt, SCORED)[0]
            assert (out.text, out.token_ids, out.finish_reason, out.cached_tokens) == ("", [], "length", 0)
            assert_scored(out.prompt_logprobs, path, prompt, 3)
        assert llm.stats().new_tokens == 0
        assert not llm.engine.scheduler.sequences


def test_an_answer_is_the_same_after_a_prompt_that_was_scored(tiny_models):
    path, plain = str(tiny_models["llama"]), SamplingParams(max_tokens=6, ignore_eos=True)
    asked = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=1, prompt_logprobs=0)
    with LLM(path, scout=ScoutConfig(budget=None, block_size=8)) as llm:
        expected = llm.generate(PROMPT, plain)[0]
        assert expected.prompt_logprobs is None
        out = llm.generate(PROMPT, asked)[0]
        assert (out.token_ids, len(out.logprobs)) == (expected.token_ids, 6)
        assert_scored(out.prompt_logprobs, path, PROMPT, 0)
        chunks = list(llm.stream(PROMPT, asked))
        assert chunks[0].prompt_logprobs == out.prompt_logprobs
        assert {chunk.prompt_logprobs is None for chunk in chunks[1:]} <= {True}


def test_prompts_that_are_kept_do_not_serve_one_that_is_scored_nor_is_it_kept(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=ScoutConfig(budget=None, block_size=8)) as llm:
        params, pages = SamplingParams(max_tokens=0), llm.engine.store.pages
        llm.generate(PROMPT[::-1], SCORED)
        assert pages.prefixes.num_lineages == 0
        assert llm.generate(PROMPT, params)[0].cached_tokens == 0
        before = pages.prefixes.num_lineages, pages.pool.available
        assert before[0] == 1
        assert llm.generate(PROMPT, SCORED)[0].cached_tokens == 0
        assert (pages.prefixes.num_lineages, pages.pool.available) == before
        assert llm.generate(PROMPT, params)[0].cached_tokens > 0


def test_scores_that_are_not_finite_fail(tiny_models, monkeypatch):
    with LLM(str(tiny_models["llama"]), scout=ScoutConfig(budget=None, block_size=8)) as llm:
        decoder = llm.engine.runner.decoder
        normed = decoder.normed_output
        monkeypatch.setattr(decoder, "normed_output", lambda x: normed(x) * (torch.nan if len(x) > 1 else 1))
        with pytest.raises(ModelError, match="the logits of this answer are not finite in float32"):
            llm.generate(PROMPT, SCORED)
        assert llm.generate(PROMPT, SamplingParams(max_tokens=1))[0].finish_reason == "length"
