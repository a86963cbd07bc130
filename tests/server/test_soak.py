"""Mixed load on a real engine: nothing is lost, and nothing grows."""

import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

import httpx
import pytest

from scoutattention import LLM, SamplingParams
from scoutattention.server.local import LocalEngine

from .conftest import serving, until

CLIENTS = 8
REFUSED = ({"prompt": 5}, {"prompt": "a" * 300}, {"prompt": "a", "temperature": -1}, {"prompt": "a", "model": "x"}, {})


@pytest.fixture(scope="module")
def llm(tiny_models):
    with LLM(str(tiny_models["llama"]), max_model_len=256, max_num_seqs=3, dtype="float32") as made:
        yield made


def visit(url: str, chance: random.Random, until_s: float) -> dict[str, int]:
    """Requests of every kind until a time; counts what became of them."""
    counts: dict[str, int] = {}
    while time.monotonic() < until_s:
        kind = chance.choice(("whole", "stream", "leave", "late", "refused", "many"))
        prompt = "".join(chance.choices("abcdefgh ", k=chance.randint(1, 150)))
        body = {"prompt": prompt, "max_tokens": chance.randint(1, 100), "ignore_eos": True, "seed": 1}
        with httpx.Client(base_url=url, timeout=60) as client:
            if kind == "refused":
                status = client.post("/v1/completions", json=chance.choice(REFUSED)).status_code
                assert status in (400, 404, 429)
            elif kind in ("whole", "many"):
                n = 4 if kind == "many" else 1
                said = client.post("/v1/completions", json={**body, "n": n})
                assert said.status_code in (200, 429), said.text
                if said.status_code == 200:
                    assert said.json()["usage"]["completion_tokens"] == n * body["max_tokens"]
                else:
                    kind = "full"
            elif kind == "late":  # a client without patience
                with suppress(httpx.TimeoutException):
                    client.post("/v1/completions", json=body, timeout=0.02)
            else:
                with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                    lines = list(islice(response.iter_lines(), 6 if kind == "leave" else None))
                    if kind == "stream" and response.status_code == 200:
                        assert "data: [DONE]" in lines
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_mixed_load_loses_nothing_and_leaves_nothing_behind(llm):
    pages = llm.engine.store.pages
    with serving(LocalEngine(llm), max_waiting=6) as client, ThreadPoolExecutor(CLIENTS) as threads:

        def round_of(seconds: float, seed: int) -> dict[str, int]:
            end = time.monotonic() + seconds
            url = str(client.base_url)
            found = list(threads.map(lambda number: visit(url, random.Random(seed + number), end), range(CLIENTS)))
            until(lambda: client.server.places.taken == 0 and pages.available() == pages.pool.capacity, 30)
            gc.collect()
            return {kind: sum(one.get(kind, 0) for one in found) for kind in {kind for one in found for kind in one}}

        round_of(5, 0)  # pools of threads and connections are made
        before = threading.active_count(), open_files()
        counts = round_of(20, 100)
        until(lambda: (threading.active_count(), open_files()) <= before, 10)
        assert set(counts) >= {"whole", "stream", "leave", "late", "refused", "many"}
        assert not client.server.replies
        text = client.get("/metrics").text
        for name in ("running", "waiting"):
            assert f'vllm:num_requests_{name}{{engine="0",model_name="fake"}} 0.0' in text
        asked = {"prompt": "abc", "max_tokens": 20, "temperature": 0}
        said = client.post_json("/v1/completions", **asked).json()["choices"][0]["text"]
        (alone,) = llm.generate("abc", SamplingParams(max_tokens=20))
        assert said == alone.text
