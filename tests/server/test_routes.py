"""The routes beside the answers."""

import re
import threading
from importlib.metadata import version

from .conftest import serving
from .fake import FakeEngine


def test_health_version_and_models(client):
    assert client.get("/health").status_code == 200
    assert client.get("/version").json() == {"version": version("scout-attention")}
    (model,) = client.get("/v1/models").json()["data"]
    assert client.get("/v1/models/fake").json() == model
    assert client.get("/v1/models/").json()["data"] == [model]
    other = client.get("/v1/models/an%2Fother")
    assert (other.status_code, other.json()["error"]["type"]) == (404, "NotFoundError")
    assert other.json()["error"]["message"] == "the model 'an/other' is not served: ask for 'fake'"
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 500)


def test_the_process_looks_around_every_second():
    looked = threading.Semaphore(0)
    with serving(FakeEngine(), look=looked.release):
        assert all(looked.acquire(timeout=5) for _ in range(2))


def test_texts_to_tokens_and_back(client):
    found = client.post_json("/tokenize", prompt="One").json()
    assert found == {"count": 3, "max_model_len": 500, "tokens": client.engine.tokenizer.encode("One")}
    assert client.post_json("/detokenize", tokens=found["tokens"]).json() == {"prompt": "One"}
    assert client.post_json("/detokenize", tokens=[]).json() == {"prompt": ""}
    assert client.post_json("/tokenize", prompt="").json()["tokens"] == []


def test_the_tokens_of_a_conversation(client):
    asked = {"messages": [{"role": "user", "content": "Hello"}], "chat_template_kwargs": {"loud": True}}
    tokens = client.post_json("/tokenize", **asked).json()["tokens"]
    assert client.engine.tokenizer.decode(tokens) == "!<user>Hello<assistant>"


def values(client):
    """The samples of /metrics by their names, with labels beside the model's."""
    text = client.get("/metrics").text
    lines = re.findall(r'^([\w:]+)\{engine="0",(?:(?!model_name)(\w+="[^"]*"),)?model_name="fake"\} (\S+)$', text, re.M)
    return {f"{name}[{label}]" if label else name: float(value) for name, label, value in lines}


def test_metrics_have_the_names_that_dashboards_read():
    with serving(FakeEngine()) as client:
        client.post_json("/v1/completions", prompt="One", n=2)
        client.events("/v1/completions", prompt="Two", max_tokens=2)
        found = values(client)
        assert client.get("/metrics").headers["content-type"].startswith("text/plain")
    assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (2, 1)
    assert found["vllm:prompt_tokens_total"] == 6
    assert found["vllm:generation_tokens_total"] == 8
    assert found['vllm:request_success_total[finished_reason="stop"]'] == 2
    assert found['vllm:request_success_total[finished_reason="length"]'] == 1
    assert found["vllm:time_to_first_token_seconds_count"] == 3
    assert found["vllm:inter_token_latency_seconds_count"] == 5
    assert found["vllm:e2e_request_latency_seconds_count"] == 3
    assert found["vllm:request_prompt_tokens_sum"] == 6
    assert found["vllm:request_generation_tokens_sum"] == 8
    assert found["vllm:request_queue_time_seconds_sum"] == 3 * 0.25
    assert found["vllm:request_prefill_time_seconds_sum"] == 3 * 0.5
    assert found["vllm:num_preemptions_total"] == 0
    assert found["vllm:kv_cache_usage_perc"] == found["scout:host_pool_usage_perc"] == 0.5
    assert found["scout:device_pool_usage_perc"] == 0.25
    assert (found["scout:device_pool_blocks"], found["scout:device_pool_blocks_used"]) == (8, 2)
    assert [found[f'scout:layer_residency[layer="{layer}"]'] for layer in range(3)] == [1.0, 0.25, 0.5]
    assert found["vllm:prefix_cache_hits_total"] == 4
    bucket = 'vllm:iteration_tokens_total_bucket[le="{}"]'
    assert [found[bucket.format(bound)] for bound in ("16.0", "32.0", "16384.0", "+Inf")] == [0, 2, 2, 2]
    assert (found["vllm:iteration_tokens_total_sum"], found["vllm:iteration_tokens_total_count"]) == (49, 2)
    assert found["scout:blocks_far_total"] == 1
    assert found["scout:cpu_share"] == 0.25
    assert found["scout:cpu_attention_seconds_total"] == 4
    assert (found["scout:cpu_hidden_seconds_total"], found["scout:cpu_wait_seconds_total"]) == (2, 2)


def test_the_server_describes_itself(client):
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    request = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert request["properties"]["messages"]["items"]["$ref"] == "#/components/schemas/Message"
    known = set(described["components"]["schemas"])
    assert {"Error", "Message", "StreamOptions", "Tool"} <= known
    assert not known & {"HTTPValidationError", "ValidationError"}


def test_the_dashboard_is_one_file_that_needs_no_key_and_nothing_from_elsewhere():
    with serving(FakeEngine(), api_key="secret") as client:
        found = client.get("/")
        known = client.get("/metrics", headers={"Authorization": "Bearer secret"}).text
    assert found.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert not re.search(r"https?://|//[a-z]+\.", found.text)
    names = re.findall(r'"(\w+_(?:total|seconds|bytes|perc))"|\bf\.(\w+)', found.text)
    for name in {one or other for one, other in names}:
        assert re.search(rf"^(vllm|scout):{name}", known, re.M), name
