"""`vllm serve` in a process of its own, and what it answers over HTTP."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from .asked import ENVIRONMENT

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("SCOUT_VLLM_PYTHON", "")
START_S = 600


def serve(model, *options, scout=None):
    """The command of a server that has no port yet."""
    extra = [] if scout is None else ["--additional-config", json.dumps({"scout": scout})]
    common = ["--dtype", "float32", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.3"]
    return [PYTHON, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *common, *extra, *options]


def environment():
    return os.environ | ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "INFO"}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(command, log):
    """Run a command, whose output goes to a file, until the block ends."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=environment())
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.read().decode()


def complete(port, prompt, tokens, **more):
    """What the server answers to a prompt."""
    question = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True} | more
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(question).encode(), headers=headers
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return answer.read().decode()


def wait_until_healthy(port, process, log):
    """Until `/health` answers; fails where the process ends before that."""
    for _ in range(START_S):
        try:
            get(port, "/health")
        except (OSError, urllib.error.URLError):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        else:
            return
    raise AssertionError(log.read_text()[-3000:])
