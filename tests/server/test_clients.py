"""Clients that have no key, vanish, come in crowds, or are still there when the server ends."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from pydantic import BaseModel

from scoutattention.server import run
from scoutattention.server.answer import sending
from scoutattention.server.security import is_local

from .conftest import connected, serving, until
from .fake import FakeEngine

COMPLETIONS = "/v1/completions"
ASKED = {"prompt": "a", "max_tokens": 3}


def idle(client):
    """Whether the server has nothing under way."""
    return client.server.places.taken == 0 and not client.server.replies


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer wrong", "Bearer secre", "Bearer secrett", "Basic secret", "secret", "Bearer \xe9"]
)
def test_without_the_key_nothing_is_answered(header):
    with serving(FakeEngine(), api_key="secret") as client:
        given = {"Authorization": header.encode("latin-1")} if header else {}
        for method, path in (("GET", "/v1/models"), ("POST", COMPLETIONS), ("GET", "/metrics"), ("GET", "/nothing")):
            said = client.request(method, path, headers=given, content=b"{}")
            assert said.status_code == 401, path
            assert said.json()["error"]["type"] == "AuthenticationError"
            assert said.headers["www-authenticate"] == "Bearer"
        assert client.get("/health", headers=given).status_code == 200
        assert not client.engine.answers


def test_with_the_key_all_is_answered():
    with serving(FakeEngine(), api_key="secret") as client:
        for header in ("Bearer secret", "bearer secret"):
            assert client.post(COMPLETIONS, json=ASKED, headers={"Authorization": header}).status_code == 200


def test_addresses_that_only_this_computer_reaches():
    assert all(is_local(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(is_local(host) for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("most", [0, 1])
def test_a_client_that_vanishes_ends_its_answers(stream, most):
    """most: pieces after which the answers wait."""
    with serving(FakeEngine()) as client:
        client.engine.most = most
        with httpx.Client(base_url=client.base_url) as other:
            context = other.stream("POST", COMPLETIONS, json={**ASKED, "stream": stream, "n": 2}, timeout=0.3)
            with pytest.raises(httpx.TimeoutException), context as response:
                for _ in response.iter_lines():
                    pass
        until(lambda: idle(client))
        assert client.engine.answers[0].cancelled.is_set()
        assert 'finished_reason="abort",model_name="fake"} 2.0' in client.get("/metrics").text
        client.engine.most = 10
        assert client.post_json(COMPLETIONS, **ASKED).status_code == 200


def test_a_silent_stream_shows_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(sending, "SILENT_S", 0.05)
    with serving(FakeEngine()) as client:
        client.engine.go.clear()
        with client.stream("POST", COMPLETIONS, json={**ASKED, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": the prompt is being read"
            client.engine.go.set()
            assert "data: [DONE]" in list(lines)


def test_an_answer_that_fails_after_a_silence_is_an_event(monkeypatch):
    monkeypatch.setattr(sending, "SILENT_S", 0.05)
    with serving(FakeEngine()) as client:
        client.engine.go.clear()
        client.engine.raises = run.ConfigError("it broke")
        with client.stream("POST", COMPLETIONS, json={**ASKED, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith(":")
            client.engine.go.set()
            rest = list(lines)
        assert '"message":"it broke"' in "".join(rest)
        assert "data: [DONE]" in rest


def test_a_full_queue_says_when_to_come_back():
    with serving(FakeEngine(), max_waiting=1) as client:
        client.engine.go.clear()
        threads = [threading.Thread(target=client.post_json, args=(COMPLETIONS,), kwargs=ASKED) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: client.server.places.taken == 3)
        said = client.post_json(COMPLETIONS, **ASKED)
        assert said.status_code == 429
        assert int(said.headers["retry-after"]) >= 1
        assert said.json()["error"]["type"] == "RateLimitError"
        assert client.get("/health").status_code == 200
        client.engine.go.set()
        for thread in threads:
            thread.join()
        assert client.post_json(COMPLETIONS, **ASKED).status_code == 200
        said = client.post_json(COMPLETIONS, **ASKED, n=4)
        assert said.status_code == 400
        assert "4 answers" in said.json()["error"]["message"]
        until(lambda: idle(client))


def test_answers_under_way_are_finished_when_the_server_ends():
    with serving(FakeEngine()) as client:
        client.engine.most = 1
        with client.stream("POST", COMPLETIONS, json={**ASKED, "stream": True}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            client.process.should_exit = True
            until(lambda: client.server.places.closing)
            with pytest.raises(httpx.ConnectError):
                httpx.post(f"{client.base_url}{COMPLETIONS}", json=ASKED)
            client.engine.most = 10
            assert list(lines)[-2] == "data: [DONE]"
        client.thread.join(10)
        assert not client.thread.is_alive()


def test_answers_that_take_too_long_end_with_the_server(monkeypatch):
    monkeypatch.setattr(run, "FINISH_S", 0.2)
    with serving(FakeEngine()) as client, ThreadPoolExecutor(2) as pool:
        client.engine.most = 1
        asked = [pool.submit(client.post_json, COMPLETIONS, **ASKED, stream=stream) for stream in (False, True)]
        until(lambda: client.server.places.taken == 2)
        client.process.should_exit = True
        whole, stream = (one.result() for one in asked)
        assert whole.status_code == 503
        assert "the server is closing" in whole.json()["error"]["message"]
        assert stream.status_code == 200
        assert '"message":"the server is closing' in stream.text.split("\n\n")[1]
        assert all(answer.cancelled.is_set() for answer in client.engine.answers)


@pytest.mark.parametrize(("count", "says"), [(1, "1 answer is under way"), (3, "3 answers are under way")])
def test_an_interruption_says_what_the_server_waits_for(caplog, count, says):
    with serving(FakeEngine()) as client, ThreadPoolExecutor(1) as pool:
        client.engine.go.clear()
        asked = pool.submit(client.post_json, COMPLETIONS, **ASKED, n=count)
        until(lambda: client.server.replies)
        client.process.handle_exit(signal.SIGINT, None)
        until(lambda: caplog.messages == [f"{says}: waiting up to 30 s; Ctrl-C again ends now"])
        client.engine.go.set()
        assert asked.result().status_code == 200


def test_an_interruption_of_an_idle_server_says_nothing(caplog):
    with serving(FakeEngine()) as client:
        client.process.handle_exit(signal.SIGINT, None)
        client.thread.join(10)
    assert not caplog.messages


def test_a_second_interruption_ends_all_requests_with_an_error(caplog):
    with serving(FakeEngine()) as client, ThreadPoolExecutor(2) as pool, connected(client) as slow:
        client.engine.most = 1
        asked = [pool.submit(client.post_json, COMPLETIONS, **ASKED, stream=stream) for stream in (False, True)]
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        until(lambda: len(client.server.replies) == 2 and len(client.process.server_state.tasks) == 3)
        client.process.handle_exit(signal.SIGINT, None)
        until(lambda: client.server.places.closing)
        client.process.handle_exit(signal.SIGINT, None)
        whole, stream = (one.result() for one in asked)
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, 503)
        assert "told to end at once" in whole.json()["error"]["message"]
        assert '"message":"the server was told to end at once' in stream.text.split("\n\n")[1]
        assert stream.text.endswith("data: [DONE]\n\n")
        said = b"".join(iter(lambda: slow.recv(1000), b""))
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b'"type":"ServiceUnavailableError"' in said
        client.thread.join(10)
        assert not client.thread.is_alive()
    assert len(caplog.messages) == 1  # what the server waits for
    assert not any(record.exc_info for record in caplog.records)


def test_the_clients_of_openai_understand_all_of_it():
    with serving(FakeEngine(), api_key="secret") as client:
        asking = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="secret", max_retries=0)
        assert [model.id for model in asking.models.list()] == ["fake"]
        assert asking.models.retrieve("fake").id == "fake"
        with pytest.raises(openai.NotFoundError, match="not served"):
            asking.models.retrieve("an/other")
        messages = [{"role": "user", "content": "Hello"}]
        whole = asking.chat.completions.create(
            model="fake", messages=messages, logprobs=True, top_logprobs=2, max_completion_tokens=5, seed=1
        )
        assert whole.choices[0].message.content == "Hi there!"
        assert whole.choices[0].logprobs.content[0].top_logprobs[1].logprob == -1.5
        assert whole.usage.prompt_tokens_details.cached_tokens == 3
        stream = asking.chat.completions.create(
            model="fake", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(chunk.choices[0].delta.content for chunk in chunks[:-1]) == "Hi there!"
        assert chunks[-1].usage.completion_tokens == 3
        text = asking.completions.create(
            model="fake", prompt=["a", "b"], logprobs=2, echo=False, extra_body={"top_k": 5}
        )
        assert [choice.text for choice in text.choices] == ["Hi there!"] * 2
        assert text.choices[0].logprobs.text_offset == [0, 1, 2]
        with pytest.raises(openai.NotFoundError, match="not served"):
            asking.chat.completions.create(model="other", messages=messages)
        with pytest.raises(openai.BadRequestError) as refused:
            asking.chat.completions.create(model="fake", messages=messages, temperature=-1)
        assert refused.value.param == "temperature"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="wrong", max_retries=0).models.list()
        client.engine.raises, client.engine.raises_at = run.ConfigError("it broke"), 1
        with pytest.raises(openai.APIError, match="it broke"):
            list(asking.completions.create(model="fake", prompt="a", stream=True))


def test_the_client_of_openai_asks_for_a_model_of_its_answer():
    class Found(BaseModel):
        a: bool

    with (
        serving(FakeEngine(pieces=('{"a":', " true}"))) as client,
        openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0) as asking,
    ):
        messages = [{"role": "user", "content": "Hello"}]
        said = asking.chat.completions.parse(model="fake", messages=messages, response_format=Found, logit_bias={5: 1})
        assert said.choices[0].message.parsed == Found(a=True)
        params = client.engine.answers[0].params
        assert json.loads(params.json_schema)["required"] == ["a"]
        assert params.logit_bias == {5: 1.0}
