"""The server over a real engine."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scoutattention import LLM, SamplingParams
from scoutattention.models import text
from scoutattention.server.local import LocalEngine

from ..tiny import save
from .conftest import serving, until

PROMPTS = ("One two three", "Once upon a time", "To be or not to be")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=256
    )
    folder = save(LlamaForCausalLM(config), tmp_path_factory.mktemp("model"))
    with LLM(str(folder), max_model_len=256, max_num_seqs=2, dtype="float32") as made:
        yield made


@pytest.fixture(scope="module")
def client(llm):
    with serving(LocalEngine(llm)) as client:
        yield client


def test_answers_are_those_of_the_engine(client, llm):
    asked = {"prompt": list(PROMPTS), "max_tokens": 20, "temperature": 0, "logprobs": 2}
    found = client.post_json("/v1/completions", **asked).json()
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=20, logprobs=2))
    assert [choice["text"] for choice in found["choices"]] == [output.text for output in outputs]
    own = [[next(iter(one.values())) for one in output.logprobs] for output in outputs]
    assert [choice["logprobs"]["token_logprobs"] for choice in found["choices"]] == [pytest.approx(one) for one in own]
    assert found["usage"]["prompt_tokens"] == sum(map(len, PROMPTS))
    assert found["usage"]["completion_tokens"] == 60


def test_prompts_are_scored_as_by_the_engine(client, llm):
    asked = {"prompt": list(PROMPTS), "max_tokens": 0, "echo": True, "logprobs": 1}
    found = client.post_json("/v1/completions", **asked).json()
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=0, prompt_logprobs=1))
    for choice, output, prompt in zip(found["choices"], outputs, PROMPTS, strict=True):
        own = [next(iter(one.values())) for one in output.prompt_logprobs[1:]]
        assert (choice["text"], choice["logprobs"]["tokens"]) == (prompt, list(prompt))
        assert choice["logprobs"]["token_logprobs"] == [None, *map(pytest.approx, own)]
    assert found["usage"]["completion_tokens"] == 0


def test_streams_have_the_same_answers(client, llm):
    events = client.events("/v1/completions", prompt=list(PROMPTS), max_tokens=20, temperature=0)
    texts = dict.fromkeys(range(3), "")
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert list(texts.values()) == [one.text for one in llm.generate(PROMPTS, SamplingParams(max_tokens=20))]


def test_a_seed_gives_the_same_answers_again(client):
    asked = {"prompt": "One", "max_tokens": 10, "seed": 5, "n": 3}
    first, second = (client.post_json("/v1/completions", **asked).json()["choices"] for _ in range(2))
    assert first == second
    assert len({choice["text"] for choice in first}) == 3


def test_the_first_json_is_prepared_for(llm, monkeypatch):
    llm.tokenizer.__dict__.pop("_json_schemas", None)
    LocalEngine(llm)
    assert "_json_schemas" in llm.tokenizer.__dict__
    llm.tokenizer.__dict__.pop("_json_schemas")
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    LocalEngine(llm)  # without the library, JSON alone is refused


def test_json_comes_as_asked_for(client):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    asked = {"prompt": "One", "max_tokens": 200, "seed": 3, "response_format": wanted}
    (choice,) = client.post_json("/v1/completions", **asked).json()["choices"]
    assert set(json.loads(choice["text"])) == {"a"}
    assert choice["finish_reason"] == "stop"
    events = client.events("/v1/completions", **asked)
    assert "".join(event["choices"][0]["text"] for event in events) == choice["text"]


def test_what_the_engine_refuses_is_refused(client):
    for body in (
        {"prompt": "a" * 256},
        {"prompt": [256]},
        {"prompt": "a", "max_tokens": 256},
        {"prompt": "a", "n": 2, "temperature": 0},
        {"prompt": "a", "logit_bias": {"256": 1}},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}},
    ):
        assert client.post_json("/v1/completions", **body).status_code == 400
    assert client.post_json("/v1/chat/completions", messages=[{"role": "user", "content": "a"}]).status_code == 400


def test_a_client_that_vanishes_frees_its_pages(client, llm):
    free = llm.engine.store.pages.available()
    with client.stream(
        "POST", "/v1/completions", json={"prompt": "One", "max_tokens": 250, "stream": True}
    ) as response:
        next(response.iter_lines())
    until(lambda: client.server.places.taken == 0)
    until(lambda: llm.engine.store.pages.available() == free, 20)


def test_a_prompt_that_was_read_before_is_kept(client):
    prompt = "a long document about many things " * 6
    usages = [client.post_json("/v1/completions", prompt=prompt, max_tokens=2).json()["usage"] for _ in range(2)]
    first, second = (usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert (first, second) == (0, 160)  # whole blocks of 204 tokens without the last 32


def test_an_answer_ends_with_the_server(llm):
    with serving(LocalEngine(llm)) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post_json, "/v1/completions", prompt="One", max_tokens=250, ignore_eos=True)
        until(lambda: client.server.replies)
        client.server.end_all("the server is closing")
        said = asked.result()
        assert (said.status_code, "the server is closing" in said.text) == (503, True)


def test_metrics_tell_of_answers_that_are_made_and_wait(client):
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post_json, "/v1/completions", prompt="One", max_tokens=250, n=4, ignore_eos=True)
        until(lambda: client.server.engine.queue() == (2, 2))
        text = client.get("/metrics").text
        assert 'vllm:num_requests_running{engine="0",model_name="fake"} ' in text
        client.server.end_all("the server is closing")
        assert asked.result().status_code in (200, 503)
    until(lambda: client.server.engine.queue() == (0, 0))


def test_a_prompt_that_is_kept_is_told_of_and_salt_keeps_prompts_apart(client):
    def cached(salt: str) -> int:
        asked = {"prompt": "Three lamps burned in the tower. " * 6, "max_tokens": 1, "cache_salt": salt}
        found: int = client.post_json("/v1/completions", **asked).json()["usage"]["prompt_tokens_details"][
            "cached_tokens"
        ]
        return found

    first, *others = [cached(salt) for salt in ("a", "a", "b", "c", "c")]
    assert (first, others[1], others[2]) == (0, 0, 0)
    assert others[0] == others[3] > 0
    hits = client.get("/metrics").text.partition('vllm:prefix_cache_hits_total{engine="0",model_name="fake"} ')[2]
    assert float(hits.partition("\n")[0]) >= 2 * others[0]


def test_metrics_tell_of_the_engine(client, llm):
    text = client.get("/metrics").text
    near = float(
        text.partition('scout:blocks_resident_hits_total{engine="0",model_name="fake"} ')[2].partition("\n")[0]
    )
    assert near == llm.stats().near_blocks
