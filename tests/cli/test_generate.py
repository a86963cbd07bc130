"""Several answers and log-probabilities of `scout generate`, with an engine that answers "Hi there"."""

import json
import re

import pytest

from scoutattention import LLM
from scoutattention.cli import main
from scoutattention.cli.actions import generate as action

from .fake import FakeLLM

pytestmark = pytest.mark.usefixtures("fake_engine")
ASK = ("generate", "m", "--prompt", "one")


def test_several_answers_have_headings_and_seeds_of_their_own(capsys, monkeypatch):
    seeds = []
    answer = FakeLLM.stream
    monkeypatch.setattr(
        FakeLLM,
        "stream",
        lambda llm, prompt, params, **o: seeds.append(params.seed) or answer(llm, prompt, params, **o),
    )
    assert main([*ASK, "--n", "2", "--temperature", "1", "--seed", "7"]) == 0
    assert capsys.readouterr().out == "--- answer 1 of 2 ---\nHi there\n--- answer 2 of 2 ---\nHi there\n"
    assert seeds == [7, 8]


def test_json_has_all_answers(capsys):
    assert main([*ASK, "--n", "2", "--temperature", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["answers"] == [{"text": "Hi there", "token_ids": [5, 6, 7], "finish_reason": "stop"}] * 2
    assert (report["new_tokens"], "text" in report) == (2, False)


def test_json_has_the_log_probabilities_that_are_asked_for(capsys):
    assert main([*ASK, "--logprobs", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["logprobs"] == [{"5": -0.5}, {"6": -1.0}, {"7": -1.0}]
    assert "prompt_logprobs" not in report
    assert main([*ASK, "--prompt-logprobs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_logprobs"] == [None]
    assert main([*ASK, "--json"]) == 0
    assert "logprobs" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("new", ["1", "3"])
def test_a_prompt_counts_once_however_many_answers_it_has(capsys, monkeypatch, tiny_models, new):
    monkeypatch.setattr(action, "LLM", LLM)
    ask = ["generate", str(tiny_models["llama"]), "--prompt", "a long story", "--ignore-eos", "--max-tokens", new]
    counts = []
    for count in ("1", "3"):
        assert main([*ask, "--temperature", "1", "--n", count, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        counts.append(report["prompt_tokens"])
        assert report["new_tokens"] == int(count) * int(new)
    assert counts == [12, 12]


@pytest.mark.parametrize(
    ("settings", "args", "message"),
    [
        ({"BUDGET": "512"}, ("--dense",), "--dense keeps .*: leave out SCOUT_BUDGET in the environment"),
        ({"DEVICE_MEMORY": "all"}, ("--dense",), "--dense keeps .*: leave out SCOUT_DEVICE_MEMORY in the"),
        ({"DENSE": "1"}, ("--budget", "512"), "SCOUT_DENSE in the environment keeps .*: leave out --budget"),
        ({"BUDGET": "512"}, ("--auto",), "so it excludes SCOUT_BUDGET in the environment"),
        ({"DEVICE_MEMORY": "all"}, ("--auto",), "so it excludes SCOUT_DEVICE_MEMORY in the environment"),
        ({"DENSE": "1"}, ("--auto",), "so it excludes SCOUT_DENSE in the environment"),
        ({"BUDGET": "512"}, ("--auto", "--budget", "640"), "so it excludes --budget"),
        ({}, ("--auto", "--dense"), "so it excludes --dense"),
    ],
)
def test_settings_of_the_environment_are_refused_as_their_flags_are(capsys, monkeypatch, settings, args, message):
    for name, value in settings.items():
        monkeypatch.setenv(f"SCOUT_{name}", value)
    assert main([*ASK, *args]) == 2
    assert re.search(f"{message}.*\n$", capsys.readouterr().err)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_brackets_in_a_help_text_are_no_markup(capsys, command):
    assert main([command, "--help-all"]) == 0
    assert "the extra [json] of scout-attention" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--n", "2"), "n=2 answers of temperature 0 would be the same"),
        (("--n", "0", "--temperature", "1"), "n=0 is below the least value 1"),
        (
            ("--logprobs", "2"),
            "--logprobs needs --json, because log-probabilities are only in the JSON",
        ),
        (
            ("--prompt-logprobs", "2"),
            "--prompt-logprobs needs --json, because log-probabilities are only in the JSON",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(capsys, args, message):
    assert main([*ASK, *args]) == 2
    assert message in capsys.readouterr().err


def test_a_chat_has_one_answer_to_each_turn(capsys):
    assert main(["chat", "m", "--n", "2"]) == 2
    assert "No such option" in capsys.readouterr().err
