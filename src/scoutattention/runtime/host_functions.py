"""How a device's stream calls a C function on the host, found at run time: nothing here needs a GPU to be built."""

import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from typing_extensions import override

from ..errors import KernelError

LAUNCHERS = (
    ("libcudart", "cudaLaunchHostFunc"),
    ("libtorch_cuda", "cudaLaunchHostFunc"),  # of a runtime that is linked in
    ("libcuda.so", "cuLaunchHostFunc"),  # the driver's, whose streams are the runtime's
    ("libamdhip64", "hipLaunchHostFunc"),
)
"""How the names of libraries begin, and the function of each that queues a host function; the first found is taken."""

Launch = Callable[[int, int, int], int]
"""(stream, function, argument) -> error code, 0 for none."""


class HostQueue(Protocol):
    """Whoever calls C functions of one argument, in the order in which they were queued on a stream."""

    def queue(self, function: int, argument: int, stream: int | None) -> None:
        """Have `function` called with `argument` when the stream gets there; None is the current stream."""
        ...


class InlineStream(HostQueue):
    """The calling thread as a stream: calls at once, without the GIL."""

    @override
    def queue(self, function: int, argument: int, stream: int | None) -> None:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(argument)


class HostFunctions(HostQueue):
    """Host functions of a device's streams; in a captured graph, they become part of it.

    `queue` raises KernelError where the runtime refuses the call.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @classmethod
    def find(cls) -> "HostFunctions":
        """Those of the runtime that PyTorch has loaded.   Raises KernelError where there is none: see `find_launch`."""
        return cls(find_launch(loaded_libraries()))

    @override
    def queue(self, function: int, argument: int, stream: int | None) -> None:
        where = torch.cuda.current_stream().cuda_stream if stream is None else stream
        error = self._launch(where, function, argument)
        if error:
            raise KernelError(f"the device's runtime refused a host function on stream {where:#x}: error {error}")


def loaded_libraries(maps: Path = Path("/proc/self/maps")) -> list[Path]:
    """Files that this process has mapped, each once."""
    fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    return [Path(name) for name in dict.fromkeys(line[5] for line in fields if len(line) == 6 and line[5][0] == "/")]


def find_launch(libraries: Iterable[Path], launchers: Iterable[tuple[str, str]] = LAUNCHERS) -> Launch:
    """The function that queues host functions, in a library that is loaded already.

    Raises KernelError where no library has one: there is no device, or `torch.cuda.init` was not called.
    """
    libraries = list(libraries)
    for beginning, name in launchers:
        for path in libraries:
            if path.name.startswith(beginning) and (found := _function(path, name)) is not None:
                return found
    raise KernelError(
        f"none of the {len(libraries)} libraries in this process has cudaLaunchHostFunc or hipLaunchHostFunc: install "
        "a PyTorch for CUDA or ROCm and call torch.cuda.init() first, or decode with --device cpu"
    )


def _function(path: Path, name: str) -> Launch | None:
    """A function (stream, function, argument) of a loaded library, or None where it has none of that name."""
    try:
        function = getattr(ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LOCAL | os.RTLD_NOW), name)
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p,) * 3, ctypes.c_int
    launch: Launch = function
    return launch
