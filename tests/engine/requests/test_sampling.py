"""Settings of sampling, against the definitions of transformers, and log-probabilities."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from scoutattention import LLM, ConfigError, SamplingParams, ScoutConfig
from scoutattention.engine.sampler import NOT_FINITE, draw, draw_of, drawing_of
from scoutattention.runtime.graphs import Graphs

from ...runtime.test_graphs import FAR
from ...runtime.test_graphs import tapes as tapes_of_steps
from ..test_generate import PROMPT, far_llm

tapes = tapes_of_steps
DENSE = ScoutConfig(budget=None, block_size=8)
PROMPTS = [PROMPT, PROMPT[:20], PROMPT[30:33]]
WARPERS = {
    "top_k": ({"top_k": 5}, [TopKLogitsWarper(5)]),
    "all": ({"top_k": -1}, []),
    "min_p": ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
    "together": ({"top_k": 7, "top_p": 0.8}, [TopKLogitsWarper(7), TopPLogitsWarper(0.8)]),
    "cold": ({"temperature": 1e-37, "top_k": 3}, [TopKLogitsWarper(1)]),
}


@pytest.mark.parametrize(("values", "warpers"), WARPERS.values(), ids=WARPERS)
def test_tokens_are_chosen_from_as_by_transformers(values, warpers):
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(3)) * 2
    params = SamplingParams(**{"temperature": 0.7, **values})
    count = 4000
    chances = torch.linspace(0, 1 - 1e-6, count)
    draws = [draw_of(params, float(chance)) for chance in chances]
    tokens = draw(logits.expand(count, -1), torch.tensor(draws).T, drawing_of(draws))
    warped = LogitsProcessorList([TemperatureLogitsWarper(0.7), *warpers])(torch.zeros(1, 1), logits)
    share = torch.bincount(tokens, minlength=40) / count
    assert (share - warped.softmax(-1)[0]).abs().max() < 1e-3
    assert not share[warped[0].isinf()].any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_draw_nothing(temperature, wrong):
    logits = torch.randn(4, 30)
    logits[1, 5], logits[2, 7], logits[3] = wrong, -torch.inf, -torch.inf
    draws = [draw_of(SamplingParams(temperature=temperature), 0.3)] * 4
    tokens = draw(logits, torch.tensor(draws).T, drawing_of(draws)).tolist()
    assert [token == NOT_FINITE for token in tokens] == [False, True, False, True]


def reference(path: str, prompt: list[int], params: SamplingParams, count: int) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy tokens of transformers' model with penalties, and the log-probabilities before these."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    repeated = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)
    ids, kept = list(prompt), []
    for _ in range(count):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1]
        kept.append(logits[0].log_softmax(-1))
        said = torch.bincount(torch.tensor(ids[len(prompt) :], dtype=torch.int64), minlength=logits.shape[-1])
        logits = repeated(torch.tensor([ids]), logits.clone())
        logits = logits - params.frequency_penalty * said - params.presence_penalty * (said > 0)
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], kept


PENALTIES = [
    SamplingParams(max_tokens=7, ignore_eos=True, repetition_penalty=1.5, logprobs=3),
    SamplingParams(max_tokens=5, ignore_eos=True, frequency_penalty=0.4, presence_penalty=0.3, logprobs=0),
    SamplingParams(max_tokens=9, ignore_eos=True),
]


def test_penalties_and_logprobs_are_those_of_their_definitions(tiny_models):
    """In a batch whose rows move when the sequences end, one after the other."""
    path = str(tiny_models["qwen2"])
    with LLM(path, scout=DENSE, max_num_seqs=3) as llm:
        for _ in range(2):
            outs = llm.generate(PROMPTS, PENALTIES)
            for out, prompt, params in zip(outs, PROMPTS, PENALTIES, strict=True):
                ids, logprobs = reference(path, prompt, params, params.max_tokens)
                assert out.token_ids == ids
                if params.logprobs is None:
                    assert out.logprobs is None
                    continue
                for token, found, right in zip(ids, out.logprobs, logprobs, strict=True):
                    likeliest = right.topk(params.logprobs).indices.tolist()
                    assert next(iter(found)) == token
                    assert set(found) == {token, *likeliest}
                    assert all(abs(value - right[one]) < 1e-4 for one, value in found.items())


def test_penalties_change_what_is_said(tiny_models):
    with LLM(str(tiny_models["qwen2"]), scout=DENSE) as llm:
        plain = llm.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))[0].token_ids
        for values in ({"repetition_penalty": 1.5}, {"frequency_penalty": 1.0}, {"presence_penalty": 2.0}):
            assert llm.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True, **values))[0].token_ids != plain


def test_streamed_logprobs_are_those_of_the_answer(tiny_models):
    params = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=2)
    with LLM(str(tiny_models["llama"]), scout=DENSE) as llm:
        whole = llm.generate(PROMPT, params)[0]
        streamed = [one for chunk in llm.stream(PROMPT, params) for one in chunk.logprobs]
    assert streamed == [pytest.approx(one, abs=1e-5) for one in whole.logprobs]


def test_several_answers_to_a_prompt(tiny_models):
    params = SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.5, seed=7, n=3)
    with LLM(str(tiny_models["llama"]), scout=DENSE) as llm:
        outs = [out.token_ids for out in llm.generate(PROMPTS[:2], params)]
        each = [SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.5, seed=7 + i) for i in range(3)]
        assert outs == [llm.generate(prompt, one)[0].token_ids for prompt in PROMPTS[:2] for one in each]
        assert len({tuple(ids) for ids in outs}) > 3
        with pytest.raises(ConfigError, match="a stream is one answer to one prompt, and here are 3: use generate"):
            llm.stream(PROMPT, params)


def test_a_captured_step_draws_by_every_setting(tiny_models, tapes):
    """As steps that are not captured do."""
    values = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "temperature": 0.8}
    params = [SamplingParams(max_tokens=12, ignore_eos=True, seed=seed, logprobs=1, **values) for seed in (1, 2)]
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    expected = llm.generate([PROMPT, PROMPT[:61]], params)
    llm.engine.runner._graphs = Graphs(tapes)
    found = llm.generate([PROMPT, PROMPT[:61]], params)
    assert tapes.played > 2
    assert [out.token_ids for out in found] == [out.token_ids for out in expected]
    assert [out.logprobs for out in found] == [out.logprobs for out in expected]
