"""How fast the server is on a real model: beside the engine alone, and beside itself with fewer requests.

BARS_SCALE in the environment multiplies the lengths of prompts, and 1 is what the bars are of; the tests assert them
only then, since short prompts say little. BARS_REQUESTS says how many ask at once.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest

from scoutattention import LLM, SamplingParams
from scoutattention.eval.text import prose
from scoutattention.server.local import LocalEngine

from ..server.conftest import serving, until

SCALE = float(os.environ.get("BARS_SCALE", "0.05"))
REQUESTS = int(os.environ.get("BARS_REQUESTS", "16"))
PATH = "/v1/completions"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def llm():
    with LLM("smollm2", dtype="float32", max_model_len=8192, max_num_seqs=REQUESTS) as made:
        yield made


@pytest.fixture
def client(llm):
    with serving(LocalEngine(llm)) as client:
        client.timeout = None
        yield client


@pytest.fixture
def prompts(llm):
    """A function: so many different prompts of so many tokens (times SCALE) of real text."""
    text = llm.tokenizer.encode(prose().text)

    def made(count: int, tokens: int) -> list[list[int]]:
        length = round(tokens * SCALE)
        starts = np.linspace(0, len(text) - length, count + 1).astype(int)[:count]
        return [text[start : start + length] for start in starts]

    return made


@pytest.fixture
def say(capsys):
    """A function that prints a line, whatever pytest captures."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="", flush=True)

    return line


def ask(client, prompt, salt, **more):
    """An answer of 64 tokens."""
    body = {"prompt": prompt, "max_tokens": 64, "temperature": 0, "ignore_eos": True, "cache_salt": salt, **more}
    said = client.post_json(PATH, **body)
    assert said.status_code == 200, said.text
    return said.json()["choices"][0]["text"]


def ask_all(client, prompts, salt, at_once):
    """All answers, and the seconds that they took."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as threads:
        texts = list(threads.map(lambda prompt: ask(client, prompt, salt), prompts))
    return texts, time.perf_counter() - began


def test_the_server_is_as_fast_as_the_engine(llm, client, prompts, say):
    asked, ratios = prompts(8, 1024), []
    for number in range(3):
        params = SamplingParams(max_tokens=64, ignore_eos=True, cache_salt=f"engine {number}")
        began = time.perf_counter()
        outputs = llm.generate(asked, params)
        alone = time.perf_counter() - began
        texts, seconds = ask_all(client, asked, f"server {number}", len(asked))
        assert texts == [output.text for output in outputs]
        ratios.append(alone / seconds)
        say(f"8 x {len(asked[0]):,} tokens, 64 new each: generate {alone:.2f} s, server {seconds:.2f} s")
    say(f"throughput of the server over generate's: {sorted(ratios)[1]:.3f} (median of 3)")
    assert SCALE < 1 or sorted(ratios)[1] >= 0.95


def test_many_requests_at_once_have_their_solo_answers(llm, client, prompts, say):
    asked, speeds, decoding, right = prompts(REQUESTS, 4096), {}, {}, None
    for kind in ("read", "kept"):
        for at_once in (1, REQUESTS):
            before = llm.stats()
            texts, seconds = ask_all(client, asked, f"{at_once} at once", at_once)
            right = right or texts
            assert texts == right
            after, key = llm.stats(), (kind, at_once)
            speeds[key] = 64 * len(asked) / seconds
            decoding[key] = (after.decode_tokens - before.decode_tokens) / (after.decode_s - before.decode_s)
            kept = (after.cached_tokens - before.cached_tokens) / (after.prompt_tokens - before.prompt_tokens)
            say(
                f"{len(asked)} x {len(asked[0]):,} tokens, {at_once} at once, {kept:.0%} of the prompts kept: "
                f"{speeds[key]:.1f} tokens/s, {decoding[key]:.1f} in decode steps"
            )
    for kind in ("read", "kept"):
        total, alone = (one[kind, REQUESTS] / one[kind, 1] for one in (speeds, decoding))
        say(f"prompts {kind}: {REQUESTS} at once over 1: {total:.2f} in all, {alone:.2f} in decode steps")
    assert SCALE < 1 or decoding["read", REQUESTS] >= 3 * decoding["read", 1]


@contextmanager
def stream(client, prompt):
    """The times at which pieces of an answer have come so far, while it goes on."""
    body = {"prompt": prompt, "max_tokens": 1 << 12, "ignore_eos": True, "temperature": 0, "stream": True}
    times, leave = [], threading.Event()

    def read():
        with client.stream("POST", PATH, json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    times.append(time.perf_counter())
                if leave.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield times
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("context", [16, 2048])
def test_answers_go_on_while_a_long_prompt_is_read(client, prompts, say, context):
    """Short contexts grow meanwhile beyond the budget, and a step takes longer then, whoever reads."""
    *running, long = (prompts(3, 7168)[at][:size] for at, size in enumerate((context, context, 7168)))
    with stream(client, running[0]) as first, stream(client, running[1]) as second:
        until(lambda: min(len(first), len(second)) > 0, 300)
        started = time.perf_counter()
        until(lambda: min(len(first), len(second)) > 100, 300)
        began = time.perf_counter()
        ask(client, long, f"beside {context}", max_tokens=1)
        ended = time.perf_counter()
    gaps = [(b, 1e3 * (b - a)) for times in (first, second) for a, b in pairwise(times)]
    before, during = (
        [gap for at, gap in gaps if start <= at <= end] for start, end in ((started, began), (began, ended))
    )
    usual, late = float(np.median(before)), float(np.percentile(during, 99))
    say(
        f"2 answers behind {len(running[0]):,} tokens beside a prompt of {len(long):,}, read in {ended - began:.1f} s: "
        f"between tokens {usual:.1f} ms before (median), {np.median(during):.1f} ms meanwhile (99 %: {late:.1f}): "
        f"99 % over the median before {late / usual:.2f}"
    )
    assert SCALE < 1 or late <= 4 * usual


def first_token(client, prompt):
    """Seconds until an answer begins."""
    began = time.perf_counter()
    client.events(PATH, prompt=prompt, max_tokens=1, temperature=0)
    return time.perf_counter() - began


def test_a_second_question_on_a_document_needs_no_reading(llm, client, prompts, say):
    ratios = []
    questions = [llm.tokenizer.encode(text) for text in ("\nWhat is it about?", "\nHow does it end?")]
    for document in prompts(2, 7168):
        first, second = (first_token(client, document + question) for question in questions)
        ratios.append(second / first)
        say(f"{len(document):,} tokens: first question {first:.2f} s, second {second:.3f} s: 1/{first / second:.0f}")
    assert SCALE < 1 or max(ratios) <= 1 / 10
