"""The command `scout`. It alone reads settings from the environment, and imports while it runs."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module


def main(args: Sequence[str] | None = None) -> int:
    """Run `scout` with `args`, by default the process's own, and return its exit code.

    0 is success, 2 an error in what was asked, with one sentence on stderr, 130 an interruption by Ctrl-C, and 1 that
    the reader of stdout left or that `scout doctor`, `scout bench kernels` or `scout bench gpu` found a problem.
    """
    # OpenMP threads that spin while they wait take the cores from the native workers. PyTorch reads this when imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app = import_module(f"{__package__}.app")  # here, so that Ctrl-C during its imports is one line as well
        code: int = app.run(sys.argv[1:] if args is None else args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("scout: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has left; Python writes what is buffered once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
