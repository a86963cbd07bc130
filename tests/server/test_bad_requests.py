"""Requests that cannot be answered: OpenAI's form of errors, the right status, at once, and no effect on others."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from scoutattention.errors import CapacityError, ConfigError, KernelError, ModelError
from scoutattention.server.request import reader

from .conftest import Client, connected, serving, until
from .fake import FakeEngine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]
IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}]
KINDS = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError", 503: "ServiceUnavailableError"}


PATIENCE = 8
"""Times that a machine may be slower than an idle one, whose answers take less than a second."""


def check(response, status, param=None, says=""):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (status, param), error
    assert error["type"] == KINDS.get(status, error["type"])
    assert says in error["message"]
    assert response.elapsed.total_seconds() < PATIENCE


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"nothing", b'{"prompt": "a",}', b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000),
        *(b'{"prompt": "\xff"}', b'{"prompt": "\xed\xa0\x80"}', b'{"prompt": "\\ud800"}', b"\x00", b"\xef\xbb\xbf{}"),
        *(b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", b"[]", b"5", b"null", b'"prompt"'),
    ],
)
@pytest.mark.parametrize("path", [COMPLETIONS, CHAT, "/tokenize", "/detokenize"])
def test_bodies_that_are_no_request(client, path, body):
    check(client.post(path, content=body), 400, says="the request is no JSON")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("prompt", 5), ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", None), ("prompt", {"a": 1})),
        *(("prompt", [1, "a"]), ("prompt", [1.5]), ("prompt", [True]), ("prompt", ["a", 1]), ("prompt", [[1], "a"])),
        *(("prompt", [""]), ("prompt", [-1]), ("prompt", [256]), ("prompt", [10**30])),
        *(("temperature", "1"), ("temperature", -0.1), ("temperature", 1e300), ("temperature", True)),
        *(("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("top_k", 1.5), ("top_k", 2**31), ("min_p", -1), ("min_p", 2)),
        *(("repetition_penalty", 0), ("presence_penalty", 2.1), ("frequency_penalty", -3)),
        *(("seed", 2**64), ("seed", 1.5), ("seed", "a"), ("n", 0), ("n", 10**9), ("n", "2"), ("n", 129)),
        *(("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.5), ("max_tokens", 10**30), ("max_tokens", "5")),
        *(("max_tokens", 500), ("stop", 5), ("stop", [5]), ("stop", [""]), ("stop", ["a"] * 65), ("stop", {})),
        *(("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("echo", "yes"), ("stream", 1), ("ignore_eos", 0)),
        *(
            ("cache_salt", ""),
            ("cache_salt", 5),
            ("stream_options", 5),
            ("stream_options", {"include_usage": True}),
            ("model", 5),
        ),
    ],
)
def test_values_that_cannot_be(client, field, value):
    check(client.post_json(COMPLETIONS, **{"prompt": "a", field: value}), 400, field, field)
    assert client.server.places.taken == 0


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_are_not_finite(client, number):
    for field in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p"):
        check(client.post(COMPLETIONS, content=f'{{"prompt": "a", "{field}": {number}}}'), 400, field, "finite")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("messages", None), ("messages", []), ("messages", "Hello"), ("messages", [5]), ("messages", [[]])),
        *(("messages", [{"role": 5, "content": "a"}]), ("messages", [{"content": "a"}]), ("messages", [{"role": "a"}])),
        *(("messages", [{"role": "user", "content": 5}]), ("messages", [{"role": "user", "content": IMAGE}])),
        *(("messages", [{"role": "user", "content": [5]}]), ("messages", [{"role": "user", "content": [{}]}])),
        *(("logprobs", 5), ("top_logprobs", 2), ("top_logprobs", 21), ("tools", 5), ("tool_choice", "required")),
        *(("tool_choice", {"type": "function"}), ("chat_template_kwargs", 5), ("max_completion_tokens", 0)),
        *(("chat_template_kwargs", {"quiet": True}), ("chat_template_kwargs", {"messages": []})),
        *(("max_completion_tokens", 500), ("echo", True)),
    ],
)
def test_conversations_that_cannot_be(client, field, value):
    said = client.post_json(CHAT, **{"messages": MESSAGES, field: value})
    param = said.json()["error"]["param"]
    check(said, 400, param)
    assert param == field or (field, param) in {
        ("chat_template_kwargs", "quiet"),
        ("chat_template_kwargs", "messages"),
    }


def test_fields_that_change_answers_and_are_not_read_are_refused_by_name(client):
    for field, value in {
        "best_of": 2,
        "suffix": "b",
        "scout": {"budget": 64},
        "guided_json": {"type": "object"},
        "stop_token_ids": [5],
        "prompt_logprobs": 1,
        "n_predict": 5,
        "num_predict": 5,
        "tfs_z": 0.5,
        "budget": 2048,
    }.items():
        check(client.post_json(COMPLETIONS, prompt="a", **{field: value}), 400, field, f"{field} is not supported")
    check(client.post_json(CHAT, messages=MESSAGES, add_special_tokens=True), 400, "add_special_tokens")
    check(client.post_json(COMPLETIONS, prompt="a", max_tokens=0), 400, "max_tokens", "max_tokens=0 makes no answer")
    check(client.post_json(CHAT, messages=MESSAGES, max_tokens=0), 400, "max_tokens", "max_tokens=0 makes no answer")
    check(client.post_json(COMPLETIONS, prompt="a", max_token=1), 400, "max_token", "write max_tokens")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("logit_bias", {"5": 101}, "100"),
        ("logit_bias", {"a": 1}, "logit_bias"),
        ("logit_bias", [1], "logit_bias"),
        ("min_tokens", 17, "min_tokens=17 is above max_tokens=16"),
        ("min_tokens", -1, "min_tokens=-1"),
        ("response_format", {"type": "xml"}, "response_format"),
        ("response_format", {"type": "json_schema"}, "has no json_schema"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a"}}, "response_format"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": 5}}, "response_format"),
    ],
)
def test_choices_among_tokens_that_cannot_be(client, field, value, says):
    check(client.post_json(COMPLETIONS, prompt="a", **{field: value}), 400, field, says)


@pytest.mark.parametrize(
    "said", ["json_schema cannot be followed: it is odd", "json_schema needs llguidance: run pip install it"]
)
def test_a_schema_that_the_engine_refuses_is_the_fault_of_its_field(said):
    with serving(FakeEngine()) as client:
        client.engine.refuses = ConfigError(said)
        check(client.post_json(COMPLETIONS, prompt="a"), 400, "response_format", said)


def test_fields_that_change_nothing_are_read_over(client):
    nothing = {"logit_bias": {}, "best_of": 1, "suffix": None, "min_tokens": 0, "response_format": {"type": "text"}}
    other = {"user": "me", "store": True, "metadata": {"a": "b"}, "stop_token_ids": [], "something_else": [1]}
    assert client.post_json(COMPLETIONS, prompt="a", **nothing, **other).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"logit_bias": {"abc": 1}}, "logit_bias has the key 'abc': give token ids, which are whole numbers"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5=101 has to be at most 100"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema is missing: give it",
        ),
        ({"prompt": ["a", 1]}, "prompt mixes texts and numbers: give a text, token ids, or a list of either"),
        ({"prompt": [[1], "a"]}, "prompt mixes lists and texts: give a text, token ids, or a list of either"),
        ({"prompt": [None]}, "prompt holds other things: give a text, token ids, or a list of either"),
        ({"prompt": [1, 1.5]}, "prompt[1]=1.5 has to be a whole number"),
        ({"prompt": 5}, "prompt=5 has to be a text, token ids, or a list of either"),
        ({"max_tokens": -1}, "max_tokens=-1 has to be a whole number from 1 to 2147483647, or 0 with echo"),
        ({"top_k": -2}, "top_k=-2 has to be at least -1"),
        ({"cache_salt": ""}, "cache_salt='' has to have at least 1 character"),
        ({"echo": 5}, "echo=5 has to be true or false"),
    ],
)
def test_a_refusal_is_a_sentence(client, wrong, says):
    said = client.post_json(COMPLETIONS, **{"prompt": "a", **wrong})
    check(said, 400, next(iter(wrong)))
    assert said.json()["error"]["message"].removesuffix(" (/v1/completions)") == says


def test_two_limits_of_tokens_must_agree(client):
    check(client.post_json(CHAT, messages=MESSAGES, max_tokens=1, max_completion_tokens=2), 400, "max_tokens")
    assert client.post_json(CHAT, messages=MESSAGES, max_tokens=1, max_completion_tokens=1).status_code == 200


def test_another_model_is_not_found(client):
    for path, body in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES}), ("/tokenize", {"prompt": "a"})):
        check(client.post_json(path, model="x", **body), 404, "model", "ask for 'fake'")


def test_other_paths_and_methods(client):
    check(client.get("/nothing"), 404)
    check(client.post("/v1/embeddings"), 404, None, "no path '/v1/embeddings': ask for one of /openapi.json, /v1/chat/")
    check(client.get(COMPLETIONS), 405, None, "/v1/completions does not take GET: send POST")
    check(client.post("/v1/models"), 405, None, "send GET")


def test_prompts_that_are_too_long(client):
    check(client.post_json(COMPLETIONS, prompt="a" * 500), 400, "prompt", "max_model_len=500")
    check(client.post_json(COMPLETIONS, prompt=[5] * 500), 400, "prompt", "max_model_len=500")
    check(
        client.post_json(CHAT, messages=[{"role": "user", "content": "a" * 500}]), 400, "messages", "max_model_len=500"
    )
    assert client.post_json(COMPLETIONS, prompt="a" * 499, max_tokens=1).status_code == 200


def test_a_prompt_that_is_much_too_long_is_not_read_whole(client):
    check(client.post_json(COMPLETIONS, prompt="word " * 5_000_000), 400, "prompt", "25,000,000 characters")
    check(client.post_json("/tokenize", prompt="word " * 5_000_000), 400, "prompt")
    check(client.post_json("/detokenize", tokens=[999]), 400, "tokens", "token id 999")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client):
    with connected(client) as slow:
        slow.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {reader.MOST_BYTES + 1}\r\n\r\n{{".encode()
        )
        assert slow.recv(1000).startswith(b"HTTP/1.1 413 ")
    pieces = (b" " * (1 << 20) for _ in range(40))
    check(client.post(COMPLETIONS, content=pieces), 413)


def test_many_wrong_tokens_are_one_error(client):
    check(client.post_json(COMPLETIONS, prompt=[1.5] * 500_000), 400, "prompt")


def test_a_request_that_is_not_sent_in_time(client, monkeypatch):
    monkeypatch.setattr(reader, "MOST_SECONDS", 0.2)
    with connected(client) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert client.get("/health").status_code == 200
        assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_template_that_never_ends_is_stopped_and_holds_nobody_up():
    endless = "{% for a in range(10**5) %}{% for b in range(10**5) %}{% endfor %}{% endfor %}"
    with serving(FakeEngine(template=endless)) as client:
        check(client.post_json(CHAT, messages=MESSAGES), 400, "messages", "chat template was stopped")


def test_no_template_is_an_error_of_the_conversation():
    with serving(FakeEngine(template=None)) as client:
        check(client.post_json(CHAT, messages=MESSAGES), 400, "messages", "no chat template")
        assert client.post_json(COMPLETIONS, prompt="a").status_code == 200


@pytest.mark.parametrize(
    ("error", "status"), [(CapacityError("a"), 503), (KernelError("a"), 500), (ModelError("a"), 500)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_fails(error, status, stream):
    with serving(FakeEngine()) as client:
        client.engine.raises = error
        check(client.post_json(COMPLETIONS, prompt="a", stream=stream), status, None, "a")
        client.engine.raises = None
        assert client.post_json(COMPLETIONS, prompt="a").status_code == 200
        until(lambda: client.server.places.taken == 0)
        assert 'finished_reason="error",model_name="fake"} 1.0' in client.get("/metrics").text


def test_an_answer_that_fails_in_the_middle_of_a_stream():
    with serving(FakeEngine()) as client:
        client.engine.raises, client.engine.raises_at = KernelError("it broke"), 1
        events = client.events(COMPLETIONS, prompt="a")
        assert events[0]["choices"][0]["text"] == "Hi"
        assert events[1]["error"] == {"message": "it broke", "type": "InternalServerError", "param": None, "code": 500}


def test_a_request_that_never_fits_is_the_clients_fault():
    with serving(FakeEngine()) as client:
        client.engine.refuses = CapacityError("the host pool has 1 block")
        check(client.post_json(COMPLETIONS, prompt="a"), 400, None, "host pool")


def test_a_fault_of_the_server_is_an_error_too(caplog):
    with serving(FakeEngine()) as client:
        client.engine.refuses = ZeroDivisionError()
        check(client.post_json(COMPLETIONS, prompt="a"), 500, None, "its log shows")
        until(lambda: client.server.places.taken == 0)
        until(lambda: "ZeroDivisionError" in caplog.text)


def test_reading_a_long_prompt_holds_nobody_up():
    with (
        serving(FakeEngine(max_len=1 << 20)) as client,
        ThreadPoolExecutor(1) as pool,
        Client(base_url=client.base_url) as other,
    ):
        asked = pool.submit(client.post_json, COMPLETIONS, prompt="word " * 60_000)
        waits = []
        while not asked.done():
            assert other.get("/health").status_code == 200
            waits.append(other.get("/health").elapsed.total_seconds())
        assert asked.result().status_code == 200
        print(asked.result().elapsed, max(waits), len(waits))
        assert max(waits) < asked.result().elapsed.total_seconds() / 3


def test_more_answers_than_the_server_ever_takes_name_the_field_that_asks_for_them():
    with serving(FakeEngine(), max_waiting=1) as client:
        for body, param in (({"prompt": "a", "n": 9, "temperature": 1}, "n"), ({"prompt": ["a"] * 9}, "prompt")):
            said = client.post_json(COMPLETIONS, **body, max_tokens=2)
            check(said, 400, param, "the request wants 9 answers, and the server takes 3 at once: ask for fewer")
