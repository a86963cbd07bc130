"""Calls of tools: into the template, and out of the answer."""

import json

import pytest

from scoutattention.server.answer.calls import CallReader

from .conftest import serving
from .fake import FakeEngine

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }} Write <tool_call>JSON</tool_call>.{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}"
)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
ASKED = {
    "messages": [{"role": "user", "content": "1 + 2?"}],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
}


def read(text, size, *, only_first=False):
    """What a text says where it comes in pieces of so many characters."""
    reader, texts, calls = CallReader(only_first=only_first), [], []
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for place, piece in enumerate(pieces):
        said = reader.take(piece, last=place == len(pieces) - 1)
        texts.append(said.text)
        calls += said.calls
    return "".join(texts), [(call["index"], call["function"]["name"], call["function"]["arguments"]) for call in calls]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "left", "calls"),
    [
        ("no call", "no call", []),
        ("a < b <tool", "a < b <tool", []),
        (f"I add.{CALL}", "I add.", [(0, "add", '{"a": 1, "b": "é"}')]),
        (f"{CALL}{CALL}.", ".", [(0, "add", '{"a": 1, "b": "é"}'), (1, "add", '{"a": 1, "b": "é"}')]),
        (CALL.removesuffix("</tool_call>"), "", [(0, "add", '{"a": 1, "b": "é"}')]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [(0, "f", "{}")]),
        ("<tool_call>nothing</tool_call> at all", "<tool_call>nothing</tool_call> at all", []),
        ('<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
        ('<tool_call>{"name": "f", ', '<tool_call>{"name": "f", ', []),
        (f"<tool_call>[</tool_call>{CALL}", "<tool_call>[</tool_call>", [(0, "add", '{"a": 1, "b": "é"}')]),
    ],
)
def test_calls_are_taken_out_of_the_text(text, left, calls, size):
    assert read(text, size) == (left, calls)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_only_the_first_call_is_given_where_that_is_asked_for(size):
    text = f"I add.{CALL}{CALL.replace('add', 'other')}."
    assert read(text, size, only_first=True) == ("I add..", [(0, "add", '{"a": 1, "b": "é"}')])


@pytest.fixture(scope="module")
def client():
    pieces = ("I ", "add.", "\n<tool", '_call>{"name": "add", ', '"arguments": {"a": 1}}', "</tool_call>")
    with serving(FakeEngine(pieces=pieces, template=TEMPLATE)) as client:
        yield client


def test_a_whole_answer_has_its_calls(client):
    (choice,) = client.post_json("/v1/chat/completions", **ASKED).json()["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I add."
    assert (call["type"], call["function"]) == ("function", {"name": "add", "arguments": '{"a": 1}'})
    assert call["id"].startswith("call_")


def test_a_stream_has_its_calls(client):
    events = client.events("/v1/chat/completions", **ASKED)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta["content"] for delta in deltas) == "I add.\n"
    (call,) = (call for delta in deltas for call in delta.get("tool_calls", []))
    assert (call["index"], call["function"]["arguments"]) == (0, '{"a": 1}')
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("parallel", "names"), [(None, ["a", "b"]), (True, ["a", "b"]), (False, ["a"])])
def test_an_answer_has_one_call_where_calls_in_parallel_are_not_wanted(parallel, names):
    pieces = [f'<tool_call>{{"name": "{name}"}}</tool_call>' for name in ("a", "b")]
    with serving(FakeEngine(pieces=pieces, template=TEMPLATE)) as client:
        asked = {**ASKED, "parallel_tool_calls": parallel}
        (choice,) = client.post_json("/v1/chat/completions", **asked).json()["choices"]
        events = client.events("/v1/chat/completions", **asked)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == names
    calls = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls] == names
    assert choice["finish_reason"] == events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ({}, "tools[1].type is missing: give it"),
        (5, "tools[1]=5 has to be an object"),
        ({"type": "code_interpreter"}, "tools[1].type='code_interpreter' has to be 'function'"),
        ({"type": "function"}, "tools[1].function is missing: give it"),
        ({"type": "function", "function": {}}, "tools[1].function.name is missing: give it"),
        ({"type": "function", "function": {"name": ""}}, "tools[1].function.name='' has to have at least 1 character"),
        (
            {"type": "function", "function": {"name": "a", "parameters": []}},
            "tools[1].function.parameters=[] has to be an object",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_tools_that_cannot_be(client, path, tool, says):
    said = client.post_json(path, **{**ASKED, "tools": [*ASKED["tools"], tool]})
    assert said.status_code == 400
    assert (said.json()["error"]["param"], said.json()["error"]["message"]) == ("tools", says)


def test_tools_reach_the_template_as_they_were_sent(client):
    tool = {"function": {"strict": True, "parameters": {}, "name": "add"}, "type": "function"}
    assert client.post_json("/v1/chat/completions", **{**ASKED, "tools": [tool]}).status_code == 200
    assert client.engine.prompt().startswith(json.dumps([tool]))


@pytest.mark.parametrize("change", [{"tools": None}, {"tool_choice": "none"}])
def test_without_tools_the_text_stays_as_it_is(client, change):
    (choice,) = client.post_json("/v1/chat/completions", **{**ASKED, **change}).json()["choices"]
    assert choice["message"]["content"].endswith("</tool_call>")
    assert choice["finish_reason"] == "stop"


def test_calls_go_back_into_the_template_as_data(client):
    function = {"name": "add", "arguments": json.dumps({"a": 1})}
    messages = [
        *ASKED["messages"],
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
    assert client.post_json("/v1/chat/completions", messages=messages).status_code == 200
    assert '{"a": 1}<tool>3' in client.engine.prompt()
    function["arguments"] = "{"
    said = client.post_json("/v1/chat/completions", messages=messages)
    assert said.status_code == 400
    assert "arguments of a tool call are no JSON" in said.json()["error"]["message"]
