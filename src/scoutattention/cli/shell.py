"""What shell, terminal and system do to a command: streams that are closed or full, signals, and refused memory."""

import errno
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

from ..errors import CapacityError, ScoutError
from ..hardware.memory_error import memory_error

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Signals that ask a process to end. The system's own answer to the first two would leave temporary folders behind."""
AGAIN_S = 0.2
"""Seconds after which a signal that nobody has seen is raised again."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Ended(BaseException):
    """SIGTERM or SIGHUP has come. It is raised where the process is, so that open folders and pools are left."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.code = 128 + number


def tell(text: str) -> None:
    """Write a line to stderr, if anybody can still read it."""
    try:
        print("scout:", text.replace("\n", " "), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def open_streams() -> None:
    r"""Make the standard streams fit to be used. Raises ScoutError where there is no standard output.

    What the encoding of a stream does not have becomes an escape as \U0001f389. A stream that the shell has closed
    becomes /dev/null, so that no file that is opened later takes its number; `sys.stdin` stays None.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if name in closed:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            if name != "stdin":
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115  (stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if "stdout" in closed:
        raise ScoutError("standard output is closed: write to /dev/null if nobody is to read it")


def drop(stream: object) -> None:
    """Let a stream that cannot be written any more lead to /dev/null: Python flushes it once more when it exits."""
    with suppress(OSError, AttributeError, ValueError):  # it is no file, or closed
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # type: ignore[attr-defined]  # of whatever kind stdout is
        os.close(null)


def interrupted(number: int) -> BaseException:
    """What a signal of `ENDING` raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Ended(number)


@contextmanager
def signals(*, until_exit: bool) -> Iterator[None]:
    """Raise `Ended`, or KeyboardInterrupt, where a signal of `ENDING` comes that the caller has not ignored.

    Libraries lose it: some catch every exception while they are imported, and a finaliser can raise nothing. So it
    comes again and again, until somebody is at work on it, or calls `go_on`; and one that was lost is not told of.
    until_exit: the process exits next. Then a further Ctrl-C ends it without a word.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        if not _at_work(sys.exception()):
            _came.put(number)
            raise interrupted(number)

    def tell_lost(lost: "sys.UnraisableHookArgs") -> None:
        if not isinstance(lost.exc_value, Ended | KeyboardInterrupt):
            tell_before(lost)

    tell_before, sys.unraisablehook = sys.unraisablehook, tell_lost
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)
    repeating = threading.Thread(target=_repeat, daemon=True)
    repeating.start()
    try:
        yield
    finally:
        _came.put(None)
        repeating.join()
        time.sleep(0)  # a system call, at whose end comes what was sent last
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = tell_before
        if until_exit and before[signal.SIGINT] is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


_came: SimpleQueue[int | None] = SimpleQueue()
"""Signals that came, 0 where the command goes on, and None at its end. A signal may come while another is put here."""


def _repeat() -> None:
    """Send the main thread the last signal that came, again and again, until the command goes on or ends."""
    main, number = threading.main_thread().ident or 0, _came.get()
    while number is not None:
        try:
            number = _came.get(timeout=AGAIN_S if number else None)
        except Empty:
            if number:
                signal.pthread_kill(main, number)


def go_on() -> None:
    """Say that a KeyboardInterrupt was understood, and that the command goes on."""
    _came.put(0)


def _at_work(error: BaseException | None) -> bool:
    """Whether an interruption, or what came of one, is being handled: folders and pools are being left."""
    while error is not None and not isinstance(error, Ended | KeyboardInterrupt):
        error = error.__context__
    return error is not None


@contextmanager
def named_faults() -> Iterator[None]:
    """Turn what the system refuses into one sentence: raises CapacityError.

    These errors come from outside, at any allocation, file or thread, and say nothing about this program: no memory,
    and OSErrors (no room on a disk, a file that vanished, too many open files). A closed pipe stays what it is. Every
    other error is a bug, and stays a traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if short := memory_error(error):
            raise short from error
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno in NO_ROOM:
            raise CapacityError(f"the output cannot be written: {error.strerror}") from error
        raise CapacityError(f"the system refused {error}: --debug shows where") from error
