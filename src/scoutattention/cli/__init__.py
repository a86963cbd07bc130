"""The command `scout`. It alone reads settings from the environment, and imports while it runs."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import ScoutError
from .shell import Ended, drop, named_faults, open_streams, signals, tell


def main(args: Sequence[str] | None = None) -> int:
    """Run `scout` with `args`, by default the process's own, and return its exit code.

    0 is success, 2 an error in what was asked, or something that the system refused, with one sentence on stderr, and 1
    that the reader of stdout left or that `scout doctor`, `scout bench kernels` or `scout bench gpu` found a problem.
    An interruption is 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP).
    """
    # OpenMP threads that spin while they wait take the cores from the native workers. PyTorch reads this when imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with signals(until_exit=args is None):
            return _run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except Ended as error:
        tell(str(error))
        return error.code


def _run(args: Sequence[str]) -> int:
    try:
        open_streams()
        with named_faults():
            app = import_module(f"{__package__}.app")  # here, so that Ctrl-C during its imports is one line as well
            code: int = app.run(args)
            try:
                sys.stdout.flush()
            except OSError:
                if code == 0:
                    raise
                drop(sys.stdout)  # that it is full, or nobody reads it, has been said
        return code
    except BrokenPipeError:  # the reader has left
        code = 1
    except ScoutError as error:
        tell(str(error))
        code = 2
    drop(sys.stdout)
    drop(sys.stderr)
    return code
