"""Two replicas of `vllm serve` with the plugin behind examples/cluster."""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead

import pytest

from scoutattention.models.resolve import resolve

from .expand import expand_gguf
from .server import PYTHON, ROOT, complete, free_port, get, running, serve, wait_until_healthy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="vLLM has an environment of its own: run make test-vllm"),
]
TEXT = "The capital of France is"


def tokens_made(port):
    """Tokens of answers that a replica has made."""
    (line,) = (line for line in get(port, "/metrics").splitlines() if line.startswith("vllm:generation_tokens_total{"))
    return float(line.rpartition(" ")[2])


def test_a_replica_that_is_killed_takes_only_its_own_answers_along(tmp_path):
    model, log, port = expand_gguf(resolve("smollm2"), tmp_path / "smollm2"), tmp_path / "log", free_port()
    replica = serve(model, "--max-model-len", "512", scout={"budget": 128, "device_memory": "slots"})
    cluster = [sys.executable, str(ROOT / "examples" / "cluster" / "cluster.py"), "--port", str(port), "--", *replica]
    with running(cluster, log) as process, ThreadPoolExecutor(4) as clients:
        for each in (port + 1, port + 2):
            wait_until_healthy(each, process, log)
        asked = [clients.submit(complete, port, TEXT, 400, stream=True) for _ in range(4)]
        while min(tokens_made(port + 1), tokens_made(port + 2)) == 0:  # each has some of them
            time.sleep(0.2)
        (pid,) = re.findall(rf"replica at port {port + 1}, start 1: process (\d+)", log.read_text())
        os.kill(int(pid), signal.SIGKILL)
        whole = [answer(each) for each in asked]
        assert sorted(whole) == [False, False, True, True]
        assert '"text"' in complete(port, TEXT, 4)
        wait_until_healthy(port + 1, process, log)  # it was started again


def answer(asked):
    """Whether an answer came to its end."""
    try:
        return "[DONE]" in asked.result()
    except (IncompleteRead, ConnectionError):
        return False
