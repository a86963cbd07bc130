"""Ranks in processes of their own: they answer as one, and end together."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from scoutattention import LLM, ConfigError, PromptError, RankError, SamplingParams, ScoutConfig
from scoutattention.hardware.host import Host

SCOUT = ScoutConfig(budget=40, block_size=8)
# With a third prompt of 600 tokens, blocks chosen for the last token are a near tie: until then one process and two
# have the same log-probabilities to 1e-6, and then they attend to different blocks.
PROMPTS = [[(7 * i * i + 3 * i) % 97 for i in range(length)] for length in (75, 3, 700)]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
SIZES = {"max_num_seqs": 2, "device_memory": "slots"}
LEADER = """
import sys
from scoutattention import LLM, SamplingParams
llm = LLM(sys.argv[1], tensor_parallel_size=4)
for chunk in llm.stream(list(range(40)), SamplingParams(max_tokens=4000, ignore_eos=True)):
    print("chunk", flush=True)
"""


def children(of: int) -> list[int]:
    """Process ids of the processes that another started."""
    return [int(pid) for pid in (Host().proc / f"{of}/task/{of}/children").read_text().split()]


def alive(pid: int) -> bool:
    status = Host().proc / f"{pid}/stat"
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_two_processes_answer_as_one_until_one_is_killed(tiny_models):
    path = str(tiny_models["qwen3"])
    expected = LLM(path, scout=SCOUT, **SIZES).generate(PROMPTS, PARAMS)
    before = set(children(os.getpid()))
    llm = LLM(path, scout=SCOUT, tensor_parallel_size=2, **SIZES)
    (other,) = set(children(os.getpid())) - before
    found = llm.generate(PROMPTS, PARAMS)
    assert [(out.token_ids, out.text) for out in found] == [(out.token_ids, out.text) for out in expected]

    stream = llm.stream(PROMPTS[0], PARAMS)
    next(stream)
    stream.close()
    dropped, kept = llm.stream(PROMPTS[0], PARAMS), llm.stream(PROMPTS[1], PARAMS)
    chunks = [next(dropped), next(kept)][1:]
    del dropped
    assert [token for chunk in [*chunks, *kept] for token in chunk.token_ids] == expected[1].token_ids
    with pytest.raises(PromptError, match="the prompt is empty"):
        llm.generate([[]], PARAMS)
    assert llm.generate(PROMPTS[1:], PARAMS)[1].token_ids == expected[2].token_ids

    os.kill(other, signal.SIGKILL)
    with pytest.raises(RankError, match=r"rank 1 ended with exit code -9 .*: make a new LLM"):
        llm.generate(PROMPTS, PARAMS)
    with pytest.raises(RankError, match="were ended with a step that was broken off: make a new LLM"):
        llm.generate(PROMPTS, PARAMS)
    llm.close()


def test_ranks_that_cannot_share_the_model_are_refused_before_any_starts(tiny_models):
    before = children(os.getpid())
    with pytest.raises(ConfigError, match=r"3 ranks cannot share the model's 2 KV heads"):
        LLM(str(tiny_models["llama"]), tensor_parallel_size=3)
    assert children(os.getpid()) == before


def test_gpus_that_are_too_few_are_refused_before_any_rank_starts(tiny_models, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = children(os.getpid())
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=2 .* finds 1: set tensor_parallel_size to 1 or less"):
        LLM(str(tiny_models["llama"]), tensor_parallel_size=2, device="cuda")
    assert children(os.getpid()) == before


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 1), (signal.SIGTERM, -15)])
def test_no_rank_outlives_the_first(tiny_models, sent, code):
    """Ctrl-C reaches every process of a terminal; the others are sent to rank 0 alone."""
    command = [sys.executable, "-c", LEADER, str(tiny_models["qwen2-no-groups"])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdout.readline() == b"chunk\n"
    others = children(process.pid)
    assert len(others) == 3
    (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
    process.communicate()
    assert process.returncode in (code, -sent)
    deadline = time.monotonic() + 5
    while any(map(alive, others)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_three_ranks_answer_as_one_on_a_real_model():
    options = {"scout": ScoutConfig(budget=256), "max_model_len": 2048, "workers": 1} | SIZES
    answers = []
    for size in (1, 3):
        llm = LLM("smollm2", tensor_parallel_size=size, **options)
        ids = llm.tokenizer.encode("The lighthouse keeper wrote in his diary: the sea was calm today. " * 80)
        outs = llm.generate([ids[:1000], ids[500:560]], SamplingParams(max_tokens=24, ignore_eos=True))
        answers.append([out.token_ids for out in outs])
        assert llm.stats().far_blocks > 0
        llm.close()
    assert answers[0] == answers[1]
