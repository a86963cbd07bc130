"""Mixed load on a real engine: nothing is lost, and nothing grows.

SOAK_SECONDS in the environment says for how long; 1800 is a soak of half an hour.
"""

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.server.local import LocalEngine

from . import visitors
from .conftest import serving, until

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("SOAK_SECONDS", "15"))
WARM_SECONDS = 10.0
MORE_BYTES = 24 << 20
"""By which the process may be larger: allocators keep what they were given for a while."""
ENGINES = {
    "dense": (ScoutConfig(budget=None, block_size=16), {"device_memory": "all"}),
    "slots": (ScoutConfig(budget=64, block_size=16), {"device_memory": 1 << 20}),
}


@pytest.fixture(params=ENGINES)
def llm(request, tiny_models):
    config, options = ENGINES[request.param]
    with LLM(
        str(tiny_models["llama"]), scout=config, max_model_len=512, max_num_seqs=3, dtype="float32", **options
    ) as made:
        made.exact = request.param == "dense"
        yield made


def held(llm):
    """What may not grow: threads, open files, and pages and slots in use.

    The event loop has a pool of threads, which fills as it is used; Python bounds it.
    """
    memory = LocalEngine(llm).memory()
    threads = [one for one in threading.enumerate() if not one.name.startswith("asyncio_")]
    return len(threads), len(os.listdir("/proc/self/fd")), memory.pages.used, memory.slots.used


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS + 300)
def test_mixed_load_loses_nothing_and_leaves_nothing_behind(llm, capsys):
    greedy = SamplingParams(max_tokens=20)
    known = json.dumps({one: llm.generate(one, greedy)[0].text if llm.exact else None for one in visitors.KNOWN})
    with serving(LocalEngine(llm), max_waiting=6) as client:

        def round_of(seconds: float, seed: int) -> dict[str, int]:
            command = [sys.executable, "-m", visitors.__name__, str(client.base_url), str(seconds), str(seed), known]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
            until(lambda: client.server.places.taken == 0 and not llm.engine.busy, 60)
            gc.collect()
            return json.loads(done.stdout)

        round_of(WARM_SECONDS, 0)  # pools of threads and connections are made
        before, size = held(llm), resident_bytes()
        counts = round_of(SECONDS, 100)
        until(lambda: all(now <= then for now, then in zip(held(llm), before, strict=True)), 30)
        more = resident_bytes() - size
        with capsys.disabled():
            print(
                f"\n{SECONDS:g} s: {dict(sorted(counts.items()))}; {before} before, {held(llm)} after; {more:,} B more"
            )
        assert more < MORE_BYTES
        kinds = {name.partition(":")[0] for name in counts}
        assert kinds == {name.removeprefix("ask_") for name in vars(visitors.Visitor) if name.startswith("ask_")}
        assert not client.server.replies
        text = client.get("/metrics").text
        for name in ("running", "waiting"):
            assert f'vllm:num_requests_{name}{{engine="0",model_name="fake"}} 0.0' in text
        said = client.post_json("/v1/completions", prompt="abc", max_tokens=20, temperature=0).json()["choices"][0][
            "text"
        ]
        assert said == llm.generate("abc", greedy)[0].text
