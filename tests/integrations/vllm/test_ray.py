"""Two replicas of vLLM with the plugin behind Ray Serve LLM, started by examples/cluster/ray_serve.py."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import IncompleteRead
from pathlib import Path

import pytest

from scoutattention.models.resolve import resolve

from .expand import expand_gguf
from .server import PYTHON, ROOT, complete, environment, free_port

TEXT = "The capital of France is"
START_S = 900


def has_ray():
    """Whether vLLM's environment has Ray."""
    asked = "import importlib.util as u, sys; sys.exit(u.find_spec('ray') is None)"
    return bool(PYTHON) and subprocess.run([PYTHON, "-c", asked], check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif("not has_ray()", reason="vLLM's environment has no Ray: see examples/cluster/README.md"),
]


@contextmanager
def cluster(*options):
    """Run ray_serve.py until the block ends: gives the folder in which its processes are told apart from others'."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path: Ray's sockets are in it
    command = [PYTHON, str(ROOT / "examples" / "cluster" / "ray_serve.py"), *options]
    more = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment() | more)
    try:
        yield process, folder
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            for pid in processes(folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def processes(folder, title=""):
    """Processes of the cluster whose titles begin with this."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"RAY_TMPDIR={folder}".encode() in (each / "environ").read_bytes()
            if ours and (each / "cmdline").read_bytes().decode().startswith(title):
                found.append(int(each.name))
        except OSError:  # it has ended
            continue
    return sorted(found)


def answered(folder):
    """Answers of each replica, as its own log has them."""
    logs = folder.glob("ray/session_latest/logs/serve/replica_default_LLMServer*.log")
    counts = {log.name: log.read_text().count("CALL completions OK") for log in logs}
    return {name: count for name, count in counts.items() if count}


def test_requests_are_spread_and_a_killed_replica_takes_only_its_own_along(tmp_path):
    model, port = str(expand_gguf(resolve("smollm2"), tmp_path / "smollm2")), free_port()
    scout = json.dumps({"budget": 128, "device_memory": "slots"})
    limits = {"dtype": "float32", "max_num_seqs": 4, "max_model_len": 512, "gpu_memory_utilization": 0.3}
    options = ["--model", model, "--scout", scout, "--vllm", json.dumps(limits), "--port", str(port)]

    def ask(tokens, **more):
        return complete(port, TEXT, tokens, model=model, **more)

    def ask_now(tokens):
        try:
            return ask(tokens)
        except OSError:  # it is not ready
            return ""

    def is_whole(asked):
        try:
            return "[DONE]" in asked.result()
        except (IncompleteRead, ConnectionError):
            return False

    with (
        cluster(*options, "--cpus", "0.5", "--machine-cpus", "16") as (process, folder),
        ThreadPoolExecutor(6) as clients,
    ):
        end = time.monotonic() + START_S
        while len(answered(folder)) < 2:  # requests come until both replicas have answered some
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < end, (folder / "log").read_text()[-3000:]
            list(clients.map(ask_now, [8] * 4))
            time.sleep(2)
        print("answers by replica:", answered(folder), file=sys.stderr)
        asked = [clients.submit(ask, 400, stream=True) for _ in range(6)]
        time.sleep(4)
        replicas = processes(folder, "ray::ServeReplica:default:LLMServer")
        assert len(replicas) == 2
        os.kill(replicas[0], signal.SIGKILL)
        assert '"text"' in ask(4)
        whole = [is_whole(each) for each in asked]
        print("whole answers:", whole, file=sys.stderr)
        assert 0 < sum(whole) < len(whole)
