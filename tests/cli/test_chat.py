"""`scout chat`, and the conversations of `scout generate`, with an engine that answers "Hi there"."""

import io
import json
import sys

import pytest

from scoutattention import CapacityError, PromptError, SamplingParams, ScoutConfig
from scoutattention.cli import main

from .fake import FakeLLM

pytestmark = pytest.mark.usefixtures("fake_engine")
HI = {"role": "assistant", "content": "Hi there"}


def user(text):
    return {"role": "user", "content": text}


def system(text):
    return {"role": "system", "content": text}


@pytest.fixture
def talk(monkeypatch, capsys):
    """Runs a chat on some lines: its exit code, stdout and stderr."""

    def run(*lines, args=(), terminal=False, model="m"):
        stdin = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")))
        monkeypatch.setattr(stdin, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)
        code = main(["chat", model, *args])
        return code, *capsys.readouterr()

    return run


def test_each_line_is_a_turn_and_history_is_kept(talk):
    code, out, err = talk("one", "", "two")
    assert (code, out, err) == (0, "Hi there\nHi there\n", "")
    assert FakeLLM.made.messages == [user("one"), HI, user("two")]
    assert FakeLLM.made.params == SamplingParams(max_tokens=1024)
    assert FakeLLM.made.closed


def test_full_attention_and_what_the_planner_chooses(talk, monkeypatch):
    monkeypatch.setattr(FakeLLM, "scout", ScoutConfig(budget=None), raising=False)
    assert talk("one", args=("--dense",))[0] == 0
    options = FakeLLM.made.options
    assert (options["scout"].budget, options["device_memory"]) == (None, "all")
    code, out, err = talk("one", args=("--auto",))
    assert (code, out, FakeLLM.made.options["scout"]) == (0, "Hi there\n", "auto")
    assert err == "scout: --auto chose full attention: it is faster here, or all that is needed\n"
    for args in (("--dense", "--budget", "64"), ("--auto", "--dense")):
        code, _, err = talk("one", args=args)
        assert code == 2
        assert "so it excludes" in err


def test_the_system_prompt_is_first_and_can_change(talk):
    _, _, err = talk("/system", "one", "/system be loud", "two", "/system", args=("--system", "be brief"))
    assert FakeLLM.made.messages == [system("be loud"), user("one"), HI, user("two")]
    assert err == "be brief\nbe loud\n"


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        (("one", "/clear", "two"), [user("two")]),
        (("one", "two", "/undo", "three"), [user("one"), HI, user("three")]),
        (("/undo", "one"), [user("one")]),
        (("one", "/regen"), [user("one")]),
        (("one", "two", "/retry"), [user("one"), HI, user("two")]),
        (
            (
                '"""one',
                "",
                'two"""',
            ),
            [user("one\n\ntwo")],
        ),
        (('"""', "one", '"""'), [user("one")]),
        (('"""one"""',), [user("one")]),
        (("/etc/hosts is a file",), [user("/etc/hosts is a file")]),
        (("one", "/exit", "two"), [user("one")]),
        (("one", "/bye", "two"), [user("one")]),
        (("naïve\r",), [user("naïve")]),
    ],
)
def test_commands_and_quotation_marks(talk, lines, asked):
    assert talk(*lines)[0] == 0
    assert FakeLLM.made.messages == asked


def test_a_conversation_is_saved_and_goes_on(talk, tmp_path):
    file = tmp_path / "talk.json"
    assert talk(f"/save {file}", args=("--system", "s"))[2] == f"1 message is in {file}\n"
    assert talk("one", f"/save {file}", args=("--system", "s"))[2] == f"3 messages are in {file}\n"
    assert json.loads(file.read_text()) == [system("s"), user("one"), HI]
    talk("two", args=("--messages", str(file)))
    assert FakeLLM.made.messages == [system("s"), user("one"), HI, user("two")]
    assert main(["generate", "m", "--messages", str(file)]) == 0
    assert FakeLLM.made.messages == [system("s"), user("one"), HI]


def test_a_conversation_that_ends_with_a_turn_is_answered(talk, tmp_path):
    file = tmp_path / "talk.json"
    parts = {"role": "user", "content": [{"type": "text", "text": "one"}], "name": "Ada"}
    for message in (user("one"), parts):
        file.write_text(json.dumps({"messages": [message]}))
        assert talk(args=("--messages", str(file)))[1] == "Hi there\n"
        assert FakeLLM.made.messages == [message]


def test_help_and_numbers(talk):
    code, _, err = talk("/help", "one", "/stats")
    assert code == 0
    for shown in ("/regen", "/save FILE", "4.0 KiB"):
        assert shown in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "there is no command /nonsense: /help lists them"),
        ("/save", "/save needs the name of a file"),
        ("/save /nowhere/x", "cannot write /nowhere/x"),
        ("/regen", "there is no turn to answer once more"),
        ("/undo two", "/undo stands alone: leave out 'two'"),
        ("/quit now", "/exit stands alone: leave out 'now'"),
    ],
)
def test_a_line_that_is_refused_does_not_end_the_chat(talk, line, message):
    code, out, err = talk(line, "fine")
    assert (code, out) == (2, "Hi there\n")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"""open', "has no"),
        ("\udcff", "the line is not UTF-8: byte 0 is 0xff"),
        ("a" * 2000, "a line is longer than 1.0 KiB"),
    ],
)
def test_a_line_that_cannot_be_read_ends_a_chat_that_nobody_types(talk, monkeypatch, line, message):
    monkeypatch.setattr("scoutattention.cli.inputs.MOST_BYTES", 1024)
    code, out, err = talk("fine", line)
    assert (code, out) == (2, "Hi there\n")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [PromptError("the prompt has 5000 tokens"), CapacityError("too many blocks")])
def test_a_turn_that_is_refused_says_how_to_go_on(talk, monkeypatch, error):
    class Full(FakeLLM):
        def stream(self, prompt, params, **options):
            if prompt[-1] == user("long"):
                raise error
            yield from super().stream(prompt, params, **options)

    monkeypatch.setattr("scoutattention.cli.actions.chat.LLM", Full)
    code, _, err = talk("one", "long", "two")
    assert code == 2
    assert err == f"scout: {error}; /undo forgets a turn, /clear all of them\n"
    assert FakeLLM.made.messages == [user("one"), HI, user("two")]


def test_ctrl_c_ends_the_answer_and_not_the_chat(talk, monkeypatch):
    monkeypatch.setattr(FakeLLM, "raises", KeyboardInterrupt())
    code, out, _ = talk("one", "two", terminal=True)
    assert (code, out) == (0, "Hi\nHi\n")
    assert FakeLLM.made.messages == [user("one"), {"role": "assistant", "content": "Hi"}, user("two")]
    assert talk("one", "two")[0] == 130, "nobody is there to go on"


def test_an_answer_without_room_says_so(talk, monkeypatch):
    monkeypatch.setattr(FakeLLM, "ends", "length")
    assert "lack of room: raise --max-tokens" in talk("one")[2]


def test_a_model_without_a_template_is_refused(talk):
    assert talk("one", model="plain") == (2, "", "scout: plain has no chat template: use `scout generate`\n")


def test_generate_takes_a_system_prompt(capsys):
    assert main(["generate", "m", "--prompt", "one", "--system", "be brief", "--json"]) == 0
    assert FakeLLM.made.messages == [system("be brief"), user("one")]
    report = json.loads(capsys.readouterr().out)
    assert (report["finish_reason"], report["prompt_tokens"]) == ("stop", 2)


def test_an_answer_that_calls_a_tool_needs_no_content(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([user("one"), call, {"role": "tool", "content": "1"}]))
    assert main(["generate", "m", "--messages", str(file)]) == 0
    assert FakeLLM.made.messages[1] == call


@pytest.mark.parametrize(
    ("data", "args", "message"),
    [
        ("[", (), "is not JSON"),
        ("[" * 100_000, (), "is not JSON"),
        ("{}", (), "is not a list of messages"),
        ("[]", (), "has no messages: give at least one"),
        ('[{"role": "user"}]', (), "message 1 of messages file {} has content=None"),
        ('[{"role": "user", "content": "a"}, "b"]', (), "message 2 of messages file {} is of type str"),
        ('[{"role": "user", "content": 1}]', (), "message 1 of messages file {} has content=1"),
        ('[{"role": "user", "content": "a\\ud800"}]', (), "at character 1, which is no text"),
        ('[{"role": "system", "content": "a"}]', ("--system", "b"), "both give a system prompt"),
        ('[{"role": "user", "content": "a"}]', ("--prompt", "b"), "it excludes --prompt"),
        ('[{"role": "user", "content": "a"}]', ("--no-chat",), "they exclude --no-chat"),
        ('[{"role": "user", "content": "a"}]', ("--system", " "), "--system is empty"),
    ],
)
def test_conversations_that_cannot_be_asked(capsys, tmp_path, data, args, message):
    file = tmp_path / "talk.json"
    file.write_text(data)
    assert main(["generate", "m", "--messages", str(file), *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message.format(file) in err
