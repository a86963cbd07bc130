"""CUDA kernels on a CPU: their own source, compiled with the C++ compiler, where every thread is one of the CPU."""

import ctypes
import subprocess
from functools import cache
from pathlib import Path

import torch

from scoutattention.kernels.cuda.base import SOURCES, CudaLaunch
from scoutattention.kernels.cuda.scores import BATCH, Reading

MEMORY_WORDS = 1 << 16
"""Of the dynamic shared memory of a program."""


def shared_bytes(how: Reading, D: int, P: int) -> int:
    """Shared memory of a program of scores: pages, and what its lanes have found of a batch."""
    page, found = 4 * -(-D // 16) * P + 2 * D, BATCH * 36 * 16
    return how.warps * (how.stages * how.group * page + found)


def emulate(launch: CudaLaunch, folder: Path) -> None:
    """Run a launch whose tensors are in the CPU's memory.   folder: where compiled kernels are kept."""
    if not all(launch.grid):
        return
    library = _compiled(launch.source, launch.kernel, tuple(sorted(launch.defines.items())), folder)
    values = [_value(argument) for argument in launch.arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    grid = (ctypes.c_int * 3)(*launch.grid, *[1] * (3 - len(launch.grid)))
    library.run(grid, launch.threads, pointers)


def _value(argument: torch.Tensor | int | float) -> ctypes._SimpleCData:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)


@cache
def _compiled(source: str, kernel: str, defines: tuple[tuple[str, int], ...], folder: Path) -> ctypes.CDLL:
    folder = folder / "_".join([kernel, *(f"{name}{value}" for name, value in defines)])
    folder.mkdir(parents=True)
    for path in [*SOURCES.iterdir(), Path(__file__).with_name("words.cuh")]:
        text = path.read_text().replace("extern __shared__", "extern")
        (folder / path.name).write_text(text)
    main = folder / "main.cpp"
    main.write_text(
        f'#include "{source}.cu"\n'
        f"alignas(16) u32 memory[{MEMORY_WORDS}];\n"
        f'extern "C" void run(const int* grid, int threads, void** arguments) {{\n'
        f"    launch({kernel}, grid, threads, arguments);\n}}\n"
    )
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    macros = [f"-D{name}={value}" for name, value in defines]
    library = folder / "kernel.so"
    command = ["g++", *options, *macros, str(main), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(library))
