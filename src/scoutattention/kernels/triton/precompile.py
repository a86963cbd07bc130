"""Compiling launches for GPUs that need not be there, and what the compilers say of them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import KernelError
from .base import INTERPRETED, TL_DTYPES, Launch, triton

TARGETS = {  # name of an architecture: what Triton calls it, and the threads of a warp
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "sm_120": ("cuda", 120, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture: registers and spills (bytes; for gfx942 registers) of a thread, shared bytes.

    text: its assembly, PTX where the architecture is NVIDIA's.
    """

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    text: str


def compile_launch(launch: Launch, target: str) -> Compiled:
    """Compile what `launch` would run on one of TARGETS. Raises KernelError in the interpreter: it has no compiler."""
    if INTERPRETED:
        raise KernelError("TRITON_INTERPRET is set, and the interpreter cannot compile: unset it")
    backend, arch, warp = TARGETS[target]
    gpu = triton.backends.compiler.GPUTarget(backend, arch, warp)
    compiled = triton.compile(_source(launch), target=gpu, options=launch.options)
    text = compiled.asm["ptx" if backend == "cuda" else "amdgcn"]
    usage = _cuda_usage(compiled.asm["cubin"]) if backend == "cuda" else _hip_usage(text)
    return Compiled(launch.kernel.__name__, target, *usage, compiled.metadata.shared, text)


def _source(launch: Launch) -> object:
    """The kernel with its arguments' types, specialised as a launch would be: on 1 and on multiples of 16."""
    parameters = launch.kernel.params
    values = {**dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)), **launch.constants}
    signature: dict[str, str] = {}
    constants: dict[str, object] = {}
    even: dict[tuple[int], list[list[object]]] = {}
    for place, parameter in enumerate(parameters):
        name, value = parameter.name, values[parameter.name]
        plain = parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
        fixed = name in launch.constants or (isinstance(value, int) and value == 1 and not plain)
        signature[name] = "constexpr" if fixed else _type(value)
        if fixed:
            constants[name] = value
        elif not plain and (isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)):
            even[place,] = [["tt.divisibility", 16]]
    return triton.compiler.ASTSource(launch.kernel, signature, constants, even)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        dtype = TL_DTYPES.get(value.dtype)
        bits = 1 if value.dtype == torch.bool else 8 * value.dtype.itemsize
        return f"*{dtype}" if dtype else f"*i{bits}"
    if isinstance(value, int):
        return "i32" if abs(value) < 2**31 else "i64"
    return "fp32"


def _cuda_usage(binary: bytes) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text)


def _hip_usage(assembly: str) -> tuple[int, int]:
    return _number(r"\.vgpr_count:\s+(\d+)", assembly), _number(r"\.vgpr_spill_count:\s+(\d+)", assembly)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise KernelError(f"the compiler's report has no {pattern}: {text[:200]}")
    return int(match[1])
