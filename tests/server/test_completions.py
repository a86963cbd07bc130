"""/v1/completions and /v1/chat/completions, whole and in pieces."""

import pytest

from scoutattention import SamplingParams
from scoutattention.models.text import Tokenizer

from .conftest import serving
from .fake import FakeEngine

MESSAGES = [{"role": "user", "content": "Hello"}]
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 3,
    "total_tokens": 6,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def test_a_completion_has_text_and_usage(client):
    found = client.post_json("/v1/completions", model="fake", prompt="One").json()
    assert found["id"].startswith("cmpl-")
    assert (found["object"], found["model"]) == ("text_completion", "fake")
    assert found["choices"] == [{"index": 0, "text": "Hi there!", "logprobs": None, "finish_reason": "stop"}]
    assert found["usage"] == USAGE
    assert client.engine.prompt() == "One"


def test_a_chat_goes_through_the_template(client):
    found = client.post_json("/v1/chat/completions", messages=MESSAGES).json()
    assert found["id"].startswith("chatcmpl-")
    assert found["object"] == "chat.completion"
    message = {"role": "assistant", "content": "Hi there!", "refusal": None}
    assert found["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert client.engine.prompt() == "<user>Hello<assistant>"


@pytest.mark.parametrize(
    ("prompt", "read"), [("One", ["One"]), ([79, 78], ["po"]), (["a", "b"], ["a", "b"]), ([[79], [78]], ["p", "o"])]
)
def test_prompts_are_texts_or_tokens_and_one_or_many(client, prompt, read):
    found = client.post_json("/v1/completions", prompt=prompt, echo=True, n=2).json()
    assert [client.engine.prompt(number) for number in range(len(read))] == read
    assert [choice["index"] for choice in found["choices"]] == list(range(2 * len(read)))
    assert [choice["text"] for choice in found["choices"]] == [f"{text}Hi there!" for text in read for _ in range(2)]
    assert found["usage"]["completion_tokens"] == 6 * len(read)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"temperature": 1.0, "max_tokens": 16}),
        (
            {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5},
            {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5},
        ),
        (
            {"repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1.5},
            {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": -1.5},
        ),
        ({"stop": None}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "b"], "ignore_eos": True}, {"stop": ("a", "b"), "ignore_eos": True}),
        ({"cache_salt": "me"}, {"cache_salt": "me"}),
        ({"logit_bias": {"5": 1, "70": -100}}, {"logit_bias": {5: 1.0, 70: -100.0}}),
        ({"logit_bias": {}, "min_tokens": 3}, {"logit_bias": {}, "min_tokens": 3}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": '{"type": "object"}'}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}}}},
            {"json_schema": "{}"},
        ),
        ({"max_tokens": 2, "logprobs": 0}, {"max_tokens": 2, "logprobs": 0}),
        ({"temperature": None, "top_p": None, "max_tokens": None, "n": None}, {"temperature": 1.0, "max_tokens": 16}),
    ],
)
def test_settings_reach_the_engine(client, given, wanted):
    assert client.post_json("/v1/completions", prompt="One", **given).status_code == 200
    params = client.engine.answers[0].params
    assert params == SamplingParams(**{"temperature": 1.0, "max_tokens": 16, **wanted})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_has_the_rest_of_the_context_or_what_it_asks_for(client, name):
    assert client.post_json("/v1/chat/completions", messages=MESSAGES, **{name: 2}).status_code == 200
    assert client.post_json("/v1/chat/completions", messages=MESSAGES).status_code == 200
    prompt = len("<user>Hello<assistant>")
    assert [answer.params.max_tokens for answer in client.engine.answers] == [2, 500 - prompt]


def test_special_tokens_are_added_unless_the_request_says_not_to(client, monkeypatch):
    encode, asked = Tokenizer.encode, []

    def noted(self, text, *, add_special_tokens=True, name="the text"):
        if text == "One":
            asked.append(add_special_tokens)
        return encode(self, text, add_special_tokens=add_special_tokens, name=name)

    monkeypatch.setattr(Tokenizer, "encode", noted)
    for wanted in ({}, {"add_special_tokens": None}, {"add_special_tokens": True}, {"add_special_tokens": False}):
        assert client.post_json("/v1/completions", prompt="One", **wanted).status_code == 200
    assert asked == [True, True, True, False]


def test_pieces_of_a_completion(client):
    events = client.events("/v1/completions", prompt="One", echo=True)
    assert len({event["id"] for event in events}) == 1
    assert {event["object"] for event in events} == {"text_completion"}
    assert [event["choices"][0]["text"] for event in events] == ["OneHi", " there", "!"]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert all("usage" not in event for event in events)


def test_pieces_of_a_chat(client):
    events = client.events("/v1/chat/completions", messages=MESSAGES, max_tokens=2)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [{"role": "assistant", "content": "Hi"}, {"content": " there"}]
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_a_stream_tells_usage_at_its_end(client):
    events = client.events("/v1/completions", prompt="One", stream_options={"include_usage": True})
    assert [event["usage"] for event in events] == [None, None, None, USAGE]
    assert events[-1]["choices"] == []


def test_a_stream_tells_usage_with_each_piece(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = client.events("/v1/completions", prompt="One", stream_options=options)
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 2, 3, 3]


def test_a_stream_has_all_answers_to_all_prompts(client):
    events = client.events("/v1/completions", prompt=["a", "b"], n=2)
    texts = dict.fromkeys(range(4), "")
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == dict.fromkeys(range(4), "Hi there!")


def test_logprobs_of_a_completion(client):
    found = client.post_json("/v1/completions", prompt="One", logprobs=2).json()["choices"][0]["logprobs"]
    assert found["tokens"] == ["H", " ", "!"]
    assert found["token_logprobs"] == [-0.5, -0.5, -0.5]
    assert found["text_offset"] == [0, 1, 2]
    assert found["top_logprobs"][0] == {"H": -0.5, "(": -1.5, ")": -9999.0}
    pieces = client.events("/v1/completions", prompt="One", logprobs=2)
    assert [piece["choices"][0]["logprobs"]["text_offset"] for piece in pieces] == [[0], [1], [2]]


@pytest.mark.parametrize("prompt", ["Oné", [79, 78, 195, 169]])
def test_an_echo_with_logprobs_has_those_of_the_prompt(client, prompt):
    asked = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1}
    choice = client.post_json("/v1/completions", **asked).json()["choices"][0]
    found = choice["logprobs"]
    if prompt == "Oné":
        assert choice["text"] == "OnéHi"
        assert found["tokens"] == ["O", "n", "\ufffd", "\ufffd", "H"]
        assert found["text_offset"] == [0, 1, 2, 2, 3]
    assert found["token_logprobs"] == [None, -0.25, -0.25, -0.25, -0.5]
    assert found["top_logprobs"][0] is None
    assert found["top_logprobs"][2] == {found["tokens"][2]: -0.25, "(": -2.5}
    (piece,) = client.events("/v1/completions", **asked)
    assert piece["choices"][0]["logprobs"] == found
    alone = client.post_json("/v1/completions", **{**asked, "max_tokens": 0}).json()
    assert alone["choices"][0]["text"] == choice["text"].removesuffix("Hi")
    assert alone["choices"][0]["logprobs"] == {name: values[:-1] for name, values in found.items()}
    assert (alone["choices"][0]["finish_reason"], alone["usage"]["completion_tokens"]) == ("length", 0)
    assert client.engine.answers[-1].params.prompt_logprobs == 1
    assert client.post_json("/v1/completions", prompt="One", logprobs=1).status_code == 200
    assert client.engine.answers[-1].params.prompt_logprobs is None


def test_logprobs_of_a_chat(client):
    asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    found = client.post_json("/v1/chat/completions", **asked).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in found] == ["H", " ", "!"]
    own = {"token": "H", "logprob": -0.5, "bytes": [72]}
    assert found[0] == {**own, "top_logprobs": [own, {"token": "(", "logprob": -1.5, "bytes": [40]}]}
    pieces = client.events("/v1/chat/completions", **asked)
    assert [piece["choices"][0]["logprobs"]["content"] for piece in pieces] == [[entry] for entry in found]
    plain = client.post_json("/v1/chat/completions", messages=MESSAGES, logprobs=True).json()
    assert plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_parts_of_a_content_are_joined_where_the_template_wants_texts(client):
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    assert client.post_json("/v1/chat/completions", messages=[{"role": "user", "content": parts}]).status_code == 200
    assert client.engine.prompt() == "<user>One\nTwo<assistant>"


def test_parts_of_a_content_reach_a_template_that_reads_parts():
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]
    with serving(FakeEngine(template=template)) as client:
        assert client.post_json("/v1/chat/completions", messages=[{"role": "user", "content": parts}]).is_success
        assert client.engine.prompt() == "OneTwo"


def test_tools_and_variables_reach_the_template(client):
    tool = {"type": "function", "function": {"name": "f"}}
    asked = {"messages": MESSAGES, "tools": [tool], "chat_template_kwargs": {"loud": True}}
    assert client.post_json("/v1/chat/completions", **asked).status_code == 200
    assert client.engine.prompt() == '[[{"type": "function", "function": {"name": "f"}}]]!<user>Hello<assistant>'
    assert client.post_json("/v1/chat/completions", **asked, tool_choice="none").status_code == 200
    assert client.engine.prompt() == "!<user>Hello<assistant>"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",  # guidellm
            {
                "model": "fake",
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                "max_completion_tokens": 3,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
        ),
        (
            "/v1/chat/completions",  # vllm bench serve
            {
                "model": "fake",
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                "temperature": 0.0,
                "repetition_penalty": 1.0,
                "max_completion_tokens": 3,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        (
            "/v1/completions",  # RULER's client
            {
                "model": "fake",
                "prompt": "Hello",
                "max_tokens": 3,
                "stop": [],
                "seed": 0,
                "top_p": 1.0,
                "temperature": 0.0,
            },
        ),
        (
            "/v1/completions",  # lm-evaluation-harness
            {
                "model": "fake",
                "prompt": ["Hello"],
                "max_tokens": 3,
                "temperature": 0,
                "stop": ["\n\n"],
                "seed": 1234,
            },
        ),
    ],
)
def test_what_clients_send_is_answered(client, path, body):
    assert client.post(path, json=body).status_code == 200
