"""What statistics say as text, and what an engine measures of layers and answers."""

from dataclasses import replace

import pytest

from scoutattention import LLM, SamplingParams, ScoutConfig, Stats
from scoutattention.attention.step import StepStats
from scoutattention.engine.stats import STEP_TOKENS

from ..test_generate import PROMPT, far_llm

ONE_MEMORY = Stats(
    prompt_tokens=5400,
    new_tokens=64,
    decode_s=2.0,
    decode_tokens=63,
    first_token_s=1.5,
    requests=1,
    kv_bytes_total=2**30,
)
TWO_MEMORIES = replace(
    ONE_MEMORY,
    kv_bytes_device=2**28,
    device="cuda",
    steps=StepStats(chosen_blocks=1000, far_blocks=82, hidden_s=0.4, unhidden_s=0.1, recalled_bytes=3 * 2**20),
)


def test_statistics_say_what_counts():
    lines = str(TWO_MEMORIES).splitlines()
    assert lines == [
        "Prompt    5,400 tokens, first new token after 1.50 s",
        "Answer    64 tokens, 31.5 tokens/s",
        "KV cache  1.0 GiB in full, 256.0 MiB on the device",
        "CPU share 8.2% of the chosen blocks",
        "CPU time  0.40 s hidden behind the device, 0.10 s waited for",
        "Recalled  3.0 MiB to the device",
    ]
    lines += str(replace(TWO_MEMORIES, device="cpu")).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[8] == "KV cache  1.0 GiB, and 256.0 MiB of copies in slots: a CPU has one memory"


def test_where_the_device_held_everything_there_is_less_to_say():
    lines = str(replace(ONE_MEMORY, kv_bytes_device=2**30)).splitlines()
    assert [line.split()[0] for line in lines] == ["Prompt", "Answer", "KV"]
    assert str(Stats())


def test_what_there_was_none_of_is_left_out():
    read = replace(ONE_MEMORY, kv_bytes_device=2**30, prompt_tokens=1, new_tokens=0, decode_tokens=0)
    assert str(read).splitlines() == ["Prompt    1 token", "KV cache  1.0 GiB"]
    answered = str(replace(read, new_tokens=1)).splitlines()
    assert answered[:2] == ["Prompt    1 token, first new token after 1.50 s", "Answer    1 token"]


def test_layers_tell_what_of_their_choice_the_device_held(tiny_models):
    config = ScoutConfig(budget=40, block_size=8, guard=None, max_cpu_share=None)
    with far_llm(str(tiny_models["qwen3"]), config, 5) as llm:
        attention = llm.engine.runner.attention
        assert not attention.residency()
        llm.generate(PROMPT, SamplingParams(max_tokens=2))  # one step, in which every layer chooses as many blocks
        shares = attention.residency()
        assert len(shares) == 3
        assert 0 < 1 - sum(shares) / 3 == pytest.approx(llm.stats().cpu_share, abs=1e-6)


def test_an_answer_tells_how_long_it_waited(tiny_models):
    with LLM(str(tiny_models["llama"]), max_num_seqs=1) as llm:
        answers = [llm.submit(PROMPT, SamplingParams(max_tokens=9, ignore_eos=True)) for _ in range(2)]
        for answer in answers:
            answer.wait()
        (first, read), (second, _) = (answer.waits() for answer in answers)
        assert 0 <= first < second
        assert 0 < read < second


def test_steps_are_counted_by_their_tokens(tiny_models):
    with LLM(str(tiny_models["llama"]), scout=ScoutConfig(budget=None, block_size=8)) as llm:
        for _ in range(2):
            llm.generate([PROMPT, PROMPT[:20]], SamplingParams(max_tokens=5, ignore_eos=True))
        stats, steps = llm.stats(), llm.step_counts()
    assert stats.cached_tokens
    assert steps.tokens == stats.computed_tokens == 2 * (len(PROMPT) + 20 + 5 * 2) - stats.cached_tokens
    counts = dict(zip((*STEP_TOKENS, None), steps.counts, strict=True))
    assert counts.pop(8) == 2 * 4  # decode steps of two
    first, second = len(PROMPT) + 20 + 2, len(PROMPT) + 20 + 2 - stats.cached_tokens
    assert sum(counts.values()) == 2
    for tokens in (first, second):
        assert counts[next(bound for bound in STEP_TOKENS if bound >= tokens)]
