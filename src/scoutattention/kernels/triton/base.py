"""What every device kernel shares: Triton itself, launches as values, and checks before a pointer is passed on.

A kernel's host function first makes a `Launch`, from shapes and pointers alone: nothing here waits for the device, so
every launch can be captured in a CUDA graph. Offline compilation reads the same launches without a device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import KernelError

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise KernelError(f"triton is missing ({error}): pip install 'scout-attention[triton]'") from error

__all__ = [
    "INTERPRETED",
    "LN2",
    "TL_DTYPES",
    "Launch",
    "TritonError",
    "arithmetic",
    "ceil_div",
    "check",
    "check_alike",
    "padded",
    "processors",
    "tl",
    "triton",
]

INTERPRETED: bool = triton.knobs.runtime.interpret
TritonError = triton.TritonError
LN2 = 0.6931471805599453
TL_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclass(frozen=True)
class Launch:
    """One kernel and all it is launched with.

    arguments: in the kernel's order, tensors and numbers that may differ between launches of one compiled kernel.
    constants: by name, the rest, what the kernel is compiled for.   warps, stages: of each program.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[object, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 1

    def run(self) -> None:
        """Queue the kernel on the current stream, unless there is nothing to do."""
        if all(self.grid):
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def arithmetic(dtype: torch.dtype) -> tl.dtype:
    """The dtype that products of `dtype` are made in: itself, or float32 in the interpreter, which has no bfloat16."""
    return tl.float32 if INTERPRETED else TL_DTYPES[dtype]


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`, and at least `least`: the extent of a tile."""
    return max(least, 1 << (size - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    """`a / b` rounded up."""
    return -(-a // b)


def processors(device: torch.device) -> int:
    """Multiprocessors of a device; in the interpreter one, since its programs run one by one."""
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def check(name: str, tensor: Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype, rows: int = 1) -> None:
    """Refuse a tensor that is not one of `dtypes`, not of `shape` (None is any), or not contiguous in its last axes.

    rows: how many of the last axes must lie together.   Raises KernelError.
    """
    if tensor.dtype not in dtypes:
        raise KernelError(f"{name} is {tensor.dtype}: it must be {' or '.join(map(str, dtypes))}")
    if tensor.dim() != len(shape) or any(want not in (None, n) for n, want in zip(tensor.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(f"{name} is {list(tensor.shape)}: it must be [{wanted}]")
    if tensor.numel() and not tensor[(0,) * (tensor.dim() - rows)].is_contiguous():
        raise KernelError(f"{name} has strides {tensor.stride()}: the last {rows} axes must be contiguous")


def check_alike(name: str, k: Tensor, v: Tensor) -> None:
    """Refuse keys and values of different dtype, shape or strides: one address serves both.   Raises KernelError."""
    if (k.dtype, k.shape, k.stride()) != (v.dtype, v.shape, v.stride()):
        kinds = (f"{tensor.dtype} {list(tensor.shape)} strided {tensor.stride()}" for tensor in (k, v))
        raise KernelError(f"{name} are {' and '.join(kinds)}: they must be laid out alike")
