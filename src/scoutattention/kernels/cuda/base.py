"""What every CUDA kernel shares: its compilation, and launches as values.

The compiler is NVRTC, through cuda.core; it needs no device, so that tests compile every kernel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import KernelError

try:
    from cuda.core import Device, LaunchConfig, ObjectCode, Program, ProgramOptions, Stream, launch
except ImportError as error:
    raise KernelError(f"cuda.core is missing ({error}): pip install 'scout-attention[cuda]'") from error

SOURCES = Path(__file__).parent / "sources"
QUERY_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What kernels call the type of queries."""

Argument = Tensor | int | float


@dataclass(frozen=True)
class CudaLaunch:
    """One kernel and all it is launched with.

    source: its file, without the ending.   grid, threads: programs, and threads of each.
    arguments: in the order of the kernel: tensors, int (32 bits) and float.   defines: what it is compiled for.
    shared: bytes of memory that a program asks for beside what the kernel declares.
    """

    source: str
    kernel: str
    grid: tuple[int, ...]
    threads: int
    arguments: tuple[Argument, ...]
    defines: Mapping[str, int | str] = field(default_factory=dict)
    shared: int = 0

    def run(self) -> None:
        """Queue the kernel on the current stream, unless there is nothing to do."""
        if not all(self.grid):
            return
        stream = torch.cuda.current_stream()
        compiled = _compiled(self.source, tuple(sorted(self.defines.items())), _architecture(stream.device_index))
        kernel = _kernel(compiled, self.kernel, stream.device_index)
        config = LaunchConfig(grid=self.grid, block=self.threads, shmem_size=self.shared)
        launch(Stream.from_handle(stream.cuda_stream), config, kernel, *map(_argument, self.arguments))

    def compile(self, architecture: str) -> bytes:
        """The kernel's machine code for an architecture such as "sm_90"."""
        return bytes(_compiled(self.source, tuple(sorted(self.defines.items())), architecture).code)


@cache
def _compiled(source: str, defines: tuple[tuple[str, int | str], ...], architecture: str) -> ObjectCode:
    text = (SOURCES / f"{source}.cu").read_text()
    macros = [(name, str(value)) for name, value in defines]
    options = ProgramOptions(std="c++17", arch=architecture, include_path=[str(SOURCES)], define_macro=macros)
    return Program(text, "c++", options).compile("cubin")


@cache
def _kernel(code: ObjectCode, name: str, device: int) -> object:
    Device(device).set_current()
    return code.get_kernel(name)


@cache
def _architecture(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def _argument(value: Argument) -> object:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return np.float32(value) if isinstance(value, float) else np.int32(value)
