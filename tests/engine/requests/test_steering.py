"""Requests that choose among tokens: a bias, a least length, and JSON, alone and beside others."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from scoutattention import LLM, ConfigError, SamplingParams, ScoutConfig
from scoutattention.models import text
from scoutattention.models.structured.json_schema import JsonSchemas
from scoutattention.runtime.graphs import Graphs

from ...models.text.backends import byte_backend
from ...runtime.test_graphs import FAR
from ...runtime.test_graphs import tapes as tapes_of_steps
from ..test_generate import PROMPT, far_llm

tapes = tapes_of_steps
DENSE = ScoutConfig(budget=None, block_size=8)
END = 255
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["x", "yes"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
AS_JSON = SamplingParams(max_tokens=200, json_schema=json.dumps(SCHEMA), temperature=1.0, seed=4)
REQUESTS = [
    (PROMPT[:40], AS_JSON),
    (PROMPT, SamplingParams(max_tokens=30, logit_bias={END: 100}, min_tokens=9)),
    (
        PROMPT[:61],
        SamplingParams(max_tokens=20, ignore_eos=True, logit_bias={"7": 4.5, "9": -100}, temperature=0.8, seed=1),
    ),
    (PROMPT[:20], SamplingParams(max_tokens=25, ignore_eos=True)),
    (PROMPT[5:30], SamplingParams(max_tokens=12, ignore_eos=True, repetition_penalty=1.3, logit_bias={3: 2})),
]


@pytest.fixture(scope="module")
def llm(tiny_models):
    with LLM(str(tiny_models["qwen3"]), scout=DENSE, max_num_seqs=3, dtype="float32") as made:
        yield made


def test_a_bias_is_added_to_the_logits(tiny_models):
    path, bias = str(tiny_models["qwen2"]), {3: 6.0, 5: -100.0, 17: 2.5}
    params = SamplingParams(max_tokens=12, ignore_eos=True, logit_bias=bias, logprobs=0)
    model, ids = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), list(PROMPT)
    added = torch.zeros(256)
    added[list(bias)] = torch.tensor(list(bias.values()))
    kept = []
    for _ in range(params.max_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        ids.append(int((logits + added).argmax()))
        kept.append(float(logits.log_softmax(-1)[ids[-1]]))
    with LLM(path, scout=DENSE) as llm:
        (out,) = llm.generate(PROMPT, params)
        (free,) = llm.generate(PROMPT, SamplingParams(max_tokens=12, ignore_eos=True))
    assert out.token_ids == ids[len(PROMPT) :] != free.token_ids
    assert [next(iter(one.values())) for one in out.logprobs] == pytest.approx(kept, abs=1e-4)  # before the bias


def test_no_end_is_drawn_before_the_least_length(llm):
    at_once = SamplingParams(max_tokens=20, logit_bias={END: 100})
    assert llm.generate(PROMPT, at_once)[0].token_ids == [END]
    for least in (1, 4):
        (out,) = llm.generate(PROMPT, SamplingParams(max_tokens=20, logit_bias={END: 100}, min_tokens=least))
        assert len(out.token_ids) == least + 1
        assert (out.token_ids.index(END), out.finish_reason) == (least, "stop")


def test_no_stop_text_ends_an_answer_before_the_least_length(llm):
    bias = {token: 100 for token in llm.tokenizer.encode("ab")}
    free = SamplingParams(max_tokens=12, logit_bias=bias, temperature=1.0, seed=1)
    said = llm.generate(PROMPT, free)[0].text
    stopped = SamplingParams(max_tokens=12, logit_bias=bias, temperature=1.0, seed=1, stop=["a"], min_tokens=6)
    (out,) = llm.generate(PROMPT, stopped)
    assert "a" in said[:6]
    assert out.text == said[: said.index("a", 6)]


def test_answers_are_json_that_conforms(llm):
    outs = llm.generate(
        PROMPT, SamplingParams(max_tokens=300, json_schema=json.dumps(SCHEMA), temperature=1, n=3, seed=2)
    )
    found = [json.loads(out.text) for out in outs]
    assert all(set(one) == {"a", "b"} and one["a"] <= 99 and one["b"] in ("x", "yes") for one in found)
    assert {out.finish_reason for out in outs} == {"stop"}
    (truth,) = llm.generate(PROMPT, SamplingParams(json_schema='{"type": "boolean"}', ignore_eos=True))
    assert truth.text in ("true", "false")


def test_white_space_in_json_is_bounded(llm):
    bias = {token: 100 for token in llm.tokenizer.encode(" \n")}
    params = SamplingParams(max_tokens=300, json_schema=json.dumps(SCHEMA), logit_bias=bias)
    (out,) = llm.generate(PROMPT, params)
    assert json.loads(out.text)
    assert 40 < len(out.text) < 300


def test_others_in_the_batch_change_nothing(llm):
    prompts, params = [prompt for prompt, _ in REQUESTS], [one for _, one in REQUESTS]
    alone = [llm.generate(prompt, one)[0].token_ids for prompt, one in REQUESTS]
    assert [out.token_ids for out in llm.generate(prompts, params)] == alone
    assert [out.token_ids for out in llm.generate(prompts[::-1], params[::-1])] == alone[::-1]
    json.loads(llm.generate(*REQUESTS[0])[0].text)


def test_a_captured_step_draws_so_too(tiny_models, tapes):
    requests = [REQUESTS[1], REQUESTS[2]]
    prompts, params = [prompt for prompt, _ in requests], [one for _, one in requests]
    llm = far_llm(str(tiny_models["qwen3"]), FAR, 5, 2, kernels="plain")
    expected = llm.generate(prompts, params)
    llm.engine.runner._graphs = Graphs(tapes)
    found = llm.generate(prompts, params)
    assert tapes.played > 2
    assert [out.token_ids for out in found] == [out.token_ids for out in expected]


def test_every_device_draws_so(tiny_models, device):
    with LLM(str(tiny_models["llama"]), scout=DENSE, device=device, dtype="float32", max_num_seqs=2) as llm:
        outs = llm.generate([PROMPT, PROMPT], [AS_JSON, REQUESTS[1][1]])
        assert json.loads(outs[0].text)
        assert outs[1].token_ids.index(END) == 9


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is above max_tokens=8"),
        ({"min_tokens": 2, "json_schema": "{}"}, "leave min_tokens out"),
        ({"logit_bias": {-1: 1}}, "logit_bias has -1 as a token id"),
        ({"logit_bias": {"x": 1}}, "logit_bias has 'x' as a token id"),
        ({"logit_bias": {1: 101}}, "logit_bias has 101 for token 1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias has nan for token 1"),
        ({"logit_bias": [1]}, "logit_bias is of type list"),
    ],
)
def test_what_cannot_be_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"logit_bias": {256: 1}}, "token id 256, and the model's vocabulary has 256 tokens"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": "5"}, "json_schema is no JSON object"),
        ({"json_schema": "[" * 100_000}, "json_schema is no JSON"),
        ({"json_schema": '{"type": "thing"}'}, "json_schema cannot be followed: Invalid type: thing"),
        ({"json_schema": '{"$ref": "http://a/b"}'}, "json_schema cannot be followed: .*http://a/b"),
    ],
)
def test_what_a_model_cannot_do_is_refused(llm, values, said):
    with pytest.raises(ConfigError, match=said):
        llm.generate(PROMPT, SamplingParams(**values))


def test_json_needs_its_library(llm, monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    llm.tokenizer.__dict__.pop("_json_schemas", None)
    with pytest.raises(ConfigError, match=r"json_schema needs llguidance: run pip install 'scout-attention\[json\]'"):
        llm.generate(PROMPT, AS_JSON)


@pytest.mark.parametrize("ends", [(), (257,)])
def test_json_that_may_end_or_go_on(ends):
    backend = byte_backend()
    answer = JsonSchemas(backend.to_str(), backend.get_vocab_size(), frozenset(ends)).answer('{"type": "integer"}')
    digits, rest = backend.encode("0123456789-", add_special_tokens=False).ids, backend.encode("a<s> ").ids
    assert answer.allowed.shape == (258,)
    assert answer.allowed[digits].all()
    assert not answer.allowed[rest].any()
    assert not answer.take(digits[5])
    assert answer.allowed[257] == bool(ends)
    if ends:
        assert answer.take(257)
