"""Several answers and log-probabilities of `scout generate`, with an engine that answers "Hi there"."""

import json

import pytest

from scoutattention.cli import main

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
