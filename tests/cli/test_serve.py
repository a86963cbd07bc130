"""`scout serve`: what it refuses, and a process that serves a real model until a signal comes."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest

from scoutattention import LLM, ScoutConfig
from scoutattention.cli import main
from scoutattention.cli.actions import serve
from scoutattention.config import EngineConfig
from scoutattention.server.engine import Reading
from scoutattention.server.local import LocalEngine
from scoutattention.trace.chrome import from_json

from .fake import FakeLLM

CODE = "import sys; from scoutattention.cli import main; sys.exit(main())"


@pytest.fixture
def options(fake_engine, monkeypatch):
    """The options of servers that were made; none of them serves."""
    made = []

    class NoServer:
        def __init__(self, engine, options):
            made.append(options)

    class NoProcess:
        def __init__(self, server, started, look):
            pass

        def run(self, sockets):
            pass

    monkeypatch.setattr(serve, "LLM", FakeLLM)
    monkeypatch.setattr(serve, "LocalEngine", lambda llm: llm)
    monkeypatch.setattr(serve, "Server", NoServer)
    monkeypatch.setattr(serve, "Process", NoProcess)
    monkeypatch.setattr(serve, "decided", lambda *_: "")
    return made


def test_flags_reach_engine_and_server(options):
    args = ["--port", "0", "--api-key", "k", "--served-model-name", "n", "--max-num-seqs", "3", "--max-waiting", "4"]
    assert main(["serve", "m", *args, "--budget", "2048"]) == 0
    assert FakeLLM.made.options["max_num_seqs"] == 3
    assert FakeLLM.made.options["scout"].budget == 2048
    assert (options[0].model, options[0].api_key, options[0].max_waiting) == ("n", "k", 4)
    assert FakeLLM.made.closed


def test_without_flags_the_settings_are_the_defaults(options):
    assert main(["serve", "m", "--port", "0"]) == 0
    assert FakeLLM.made.options["max_num_seqs"] == EngineConfig().max_num_seqs
    assert (options[0].model, options[0].api_key, options[0].defaults.temperature) == ("m", None, 1.0)


def test_the_key_may_be_in_the_environment(options, monkeypatch):
    monkeypatch.setenv("SCOUT_API_KEY", "secret")
    assert main(["serve", "m", "--port", "0", "--host", "0.0.0.0"]) == 0
    assert options[0].api_key == "secret"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_computers_need_a_key(options, capsys, host):
    assert main(["serve", "m", "--port", "0", "--host", host]) == 2
    assert "give --api-key, or --allow-no-key" in capsys.readouterr().err
    assert not options


def test_no_key_can_be_allowed(options):
    assert main(["serve", "m", "--port", "0", "--host", "0.0.0.0", "--allow-no-key"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--api-key", " "], "--api-key is empty"),
        (["--dense", "--budget", "512"], "excludes --budget"),
        (["--port", "70000"], "--port"),
        (["--host", "no such host", "--api-key", "k"], "cannot listen at no such host"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
    ],
)
def test_wrong_arguments_are_one_sentence(options, capsys, args, message):
    assert main(["serve", "m", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "excluded"), [(["--dense"], "SCOUT_BUDGET in the environment"), (["--auto"], "SCOUT_BUDGET in the env")]
)
def test_a_setting_of_the_environment_is_refused_by_its_name(options, capsys, monkeypatch, args, excluded):
    monkeypatch.setenv("SCOUT_BUDGET", "512")
    assert main(["serve", "m", *args]) == 2
    assert f"so it excludes {excluded}" in capsys.readouterr().err


def test_a_port_that_is_taken(options, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "m", "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use: give another --host or --port" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_model_is_served_until_a_signal_comes(tiny_models, number, tmp_path):
    file = tmp_path / "t.json"
    command = [sys.executable, "-c", CODE, "serve", str(tiny_models["llama"]), "--port", "0", "--trace", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        loading, decided, started = (process.stderr.readline() for _ in range(3))
        assert loading.endswith(f"loading {tiny_models['llama']}\n")
        assert "float32 on cpu with native kernels (for cpu); each layer and KV head attends to a budget of" in decided
        assert "pages of 32 tokens on the device" in decided
        assert "no slots, because the device holds every page" in decided
        url = re.search(r"is served at (http://127.0.0.1:\d+)/v1", started)[1]
        asked = {"prompt": "One", "max_tokens": 200, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            process.send_signal(number)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert process.wait(30) == 0
        told = process.stderr.read().splitlines()
        if number == signal.SIGINT:
            assert told.pop(0).endswith("1 answer is under way: waiting up to 30 s; Ctrl-C again ends now")
        assert told[0].startswith(f"scout: 64 decode steps are in {file}: ")
        assert told[1:] == ["scout: the server has ended"]
    assert len(from_json(file.read_bytes())["scout"].steps()) == 64


def test_what_was_decided_is_told_with_its_reason(tiny_models):
    config = ScoutConfig(budget=64, block_size=16)
    options = {"device_memory": 1 << 20, "host_memory": 1 << 20, "max_model_len": 4096, "kernels": "plain"}
    with LLM(str(tiny_models["llama"]), scout=config, **options) as llm:
        said = serve.decided(LocalEngine(llm), llm)
    assert said.startswith(
        "float32 on cpu with plain kernels (as asked for); each layer and KV head attends to a budget of 64"
    )
    assert re.search(r"\d+ pages of 16 tokens on the host, .* \(host_memory=1.0 MiB\); slots for \d+ blocks on", said)
    assert said.endswith("(device_memory=1.0 MiB)")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_reading_is_shown_and_a_short_one_is_not(monkeypatch, caplog, terminal):
    now, bars = [100.0], []

    @contextmanager
    def bar(unit):
        bars.append([])
        yield lambda *shown: bars[-1].append(shown)
        bars[-1].append("closed")

    monkeypatch.setattr(serve, "moving", lambda: terminal)
    monkeypatch.setattr(serve, "progress", bar)
    monkeypatch.setattr(serve.time, "monotonic", lambda: now[0])
    caplog.set_level("INFO", "scoutattention.serve")
    engine = SimpleNamespace(reading=lambda: reading)
    shown = serve.ShownReading(engine)
    for second in range(31):
        now[0] = 100 + second
        reading = Reading(1, 1000 * second, 25000) if second < 25 else Reading(2, 5, 9) if second < 27 else None
        shown.look()
    told = [record.message for record in caplog.records]
    if terminal:
        assert bars == [[("Reading a prompt", 1000 * second, 25000) for second in range(2, 25)] + ["closed"]]
        assert not told
    else:
        assert told == [f"reading a prompt: {done},000 of 25,000 tokens, {done} s" for done in (10, 20)]
        assert not bars
