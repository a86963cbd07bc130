"""What shell, terminal and system do to a command: each ends in one sentence and an exit code."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from scoutattention import CapacityError
from scoutattention.cli import inputs, main
from scoutattention.cli.shell import named_faults, signals

from .fake import FakeLLM

pytestmark = pytest.mark.usefixtures("fake_engine")
GENERATE = ("generate", "m", "--prompt", "x")


@pytest.fixture
def piece(monkeypatch):
    """Replaces the second piece of the answer by a function's result."""

    class Late(FakeLLM):
        run = staticmethod(lambda: "")

        def stream(self, *args, **options):
            for chunk in super().stream(*args, **options):
                if chunk.finish_reason:
                    chunk.text = Late.run()
                yield chunk

    monkeypatch.setattr("scoutattention.cli.actions.generate.LLM", Late)

    def replace(function):
        Late.run = staticmethod(function)

    return replace


def shell(command, **options):
    """A line of sh, in which $SCOUT runs this command."""
    code = "import sys; from scoutattention.cli import main; sys.exit(main())"
    line = command.replace("$SCOUT", f"'{sys.executable}' -c '{code}'")
    return subprocess.run(["sh", "-c", line], text=True, capture_output=True, check=False, timeout=60, **options)


@pytest.mark.parametrize(
    ("encoding", "seen"),
    [("utf-8", "🎉é".encode()), ("latin-1", rb"\U0001f389" + b"\xe9"), ("ascii", rb"\U0001f389\xe9")],
)
def test_what_an_encoding_does_not_have_is_an_escape(monkeypatch, encoding, seen):
    monkeypatch.setattr(FakeLLM, "pieces", ("🎉", "é"))
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    assert main(GENERATE) == 0
    assert out.getvalue().startswith(seen + b"\n")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("$SCOUT --version >&-", 2, "standard output is closed"),
        ("$SCOUT --version >&- <&- 2>&-", 2, ""),
        ("$SCOUT generate m - <&-", 2, "standard input is closed"),
        ("$SCOUT --version >/dev/full", 2, "the output cannot be written: No space left on device"),
        ("$SCOUT --help >/dev/full", 2, "the output cannot be written: No space left on device"),
        ("$SCOUT --version >/dev/full 2>/dev/full", 2, ""),
        ("$SCOUT generate m 2>/dev/full", 2, ""),
        ("$SCOUT --version 2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(command, code, message):
    run = shell(command)
    assert run.returncode == code
    assert (run.stderr.count("\n"), message in run.stderr) == (bool(message), True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
@pytest.mark.parametrize("swallowed", [False, True])
def test_signals_end_a_command_with_one_line(piece, capsys, number, code, swallowed):
    def kill():
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            if not swallowed:
                raise
        time.sleep(5)
        return "went on"

    before = signal.getsignal(number)
    piece(kill)
    assert main(GENERATE) == code
    out, err = capsys.readouterr()
    assert "went on" not in out
    assert err == {143: "scout: ended by SIGTERM\n", 129: "scout: ended by SIGHUP\n", 130: "scout: interrupted\n"}[code]
    assert signal.getsignal(number) is before


def test_cleaning_up_is_not_interrupted_by_the_same_signal(piece, capsys):
    cleaned = []

    def kill():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            time.sleep(0.5)
            cleaned.append(True)

    piece(kill)
    assert main(GENERATE) == 143
    assert cleaned


def test_a_signal_that_the_caller_ignores_stays_ignored(piece, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        piece(lambda: os.kill(os.getpid(), signal.SIGHUP) or "went on")
        assert main(GENERATE) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "went on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "the system refused memory (MemoryError)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "refused memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            "refused memory",
        ),
        (RuntimeError("std::bad_alloc"), "refused memory"),
        (RuntimeError("can't start new thread"), "refused memory"),
        (ImportError("IMPORTANT\nlong\nlibx.so: failed to map segment from shared object"), "(libx.so: failed to map"),
        (OSError(errno.ENOSPC, "No space left on device"), "the output cannot be written: No space left"),
        (OSError(errno.EMFILE, "Too many open files", "a.bin"), "Too many open files: 'a.bin'"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(monkeypatch, capsys, error, message):
    monkeypatch.setattr(FakeLLM, "raises", error)
    assert main(GENERATE) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_bugs_stay_tracebacks():
    for bug in (RuntimeError("size mismatch"), ImportError("cannot import name 'x'"), KeyError("x")):
        with pytest.raises(type(bug)), named_faults():
            raise bug


def test_memory_that_the_shell_limits():
    run = shell("ulimit -v 200000; $SCOUT generate m --prompt x")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "the system refused memory" in run.stderr


def test_a_prompt_without_an_end_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(inputs, "MOST_BYTES", 1 << 20)
    assert main(["generate", "m", "--prompt-file", "/dev/zero"]) == 2
    assert "prompt file /dev/zero is larger than 1.0 MiB" in capsys.readouterr().err
    with open("/dev/zero") as zeros:
        monkeypatch.setattr(sys, "stdin", zeros)
        assert main(["generate", "m", "-"]) == 2
    assert "standard input is larger than 1.0 MiB" in capsys.readouterr().err


def test_a_prompt_from_a_pipe_with_a_name(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["sh", "-c", f"echo hello > {tmp_path}/pipe"])
    assert main(["generate", "m", "--prompt-file", f"{tmp_path}/pipe"]) == 0
    writer.wait()
    assert FakeLLM.made.prompt == "hello\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "kernels", "--size", "999TiB"], "--size 999TiB is above"),
        (["bench", "kernels", "--size", "9" * 400], "which no memory has"),
        (["bench", "decode", "m", "--contexts", "0"], "--contexts='0': 0 is below the least value 1"),
        (["bench", "decode", "m", "--batches", "0,1"], "--batches='0,1': 0 is below the least value 1"),
        (["bench", "decode", "m", "--contexts", "9" * 5000], "has a number of more than 18 digits"),
        ([*GENERATE, "--trace", "/tmp"], "cannot write --trace /tmp: it is a folder"),
    ],
)
def test_sizes_and_places_that_cannot_be(capsys, args, message):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_place_where_nobody_may_write(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("scoutattention.cli.output.os.access", lambda path, mode: False)
    assert main([*GENERATE, "--trace", str(tmp_path / "t.json")]) == 2
    assert "permission denied" in capsys.readouterr().err


def test_a_calibration_that_is_named_must_be_there(tiny_models, capsys):
    args = [
        "eval",
        "fidelity",
        str(tiny_models["llama"]),
        "--context",
        "64",
        "--steps",
        "1",
        "--calibration",
        "/nowhere",
    ]
    assert main([*args, "--device-memory", "all"]) == 2
    assert "cannot read the calibration /nowhere: there is no such file: run" in capsys.readouterr().err


def test_more_layers_ahead_than_there_are(tiny_models, capsys):
    assert main(["calibrate", str(tiny_models["llama"]), "--lookahead", "99"]) == 2
    assert "--lookahead 99 is more than 2, the most that 3 layers allow" in capsys.readouterr().err


def test_the_sentence_is_an_error_of_ours():
    with pytest.raises(CapacityError, match="refused memory"), named_faults():
        raise MemoryError


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_an_interruption_that_a_finaliser_loses_comes_again_and_is_not_told_of(monkeypatch, raised):
    class Thing:
        def __del__(self):
            if raised is ValueError:
                raise raised
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(lost.exc_type))
    started = time.monotonic()

    def work():
        Thing()
        for _ in range(200 if raised is KeyboardInterrupt else 0):
            time.sleep(0.1)
        raise KeyboardInterrupt

    with signals(until_exit=False), pytest.raises(KeyboardInterrupt):
        work()
    assert told == [raised] * (raised is ValueError)
    assert time.monotonic() - started < 20
