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
    from triton.language import target_info
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError as error:
    raise KernelError(f"triton is missing ({error}): pip install 'scout-attention[triton]'") from error

__all__ = [
    "INTERPRETED",
    "LINE",
    "LN2",
    "TL_DTYPES",
    "Launch",
    "TritonError",
    "arithmetic",
    "begin",
    "ceil_div",
    "check",
    "check_alike",
    "fetch_early",
    "padded",
    "processors",
    "tl",
    "triton",
]

INTERPRETED: bool = triton.knobs.runtime.interpret
TritonError = triton.TritonError
LN2 = 0.6931471805599453
LINE = 128
"""Bytes of a cache line of a GPU."""
EARLY_SINCE = (9, 0)
"""Compute capability of the first GPUs that start a kernel while the one before it still runs."""
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
            early = {"launch_pdl": True} if starts_early() else {}
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options, **early)

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told besides."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


if INTERPRETED:

    def begin() -> None:
        """The interpreter runs one kernel after the other."""

    def fetch_early(place: tl.tensor) -> None:
        """The interpreter has no cache."""

else:

    @triton.jit
    def begin() -> None:
        """The first thing in every kernel: waits for the kernel before, and lets the next one start.

        With programmatic dependent launch (CUDA's programming guide) a kernel starts when all programs of the kernel
        before have come here, so that kernels do not wait for launches. This must come before anything is read or
        written, in every kernel: what waits for a kernel that has waited comes after all kernels.
        """
        if target_info.cuda_capability_geq(9, 0):
            gdc_wait()
            gdc_launch_dependents()

    @triton.jit
    def fetch_early(place: tl.tensor) -> None:
        """Before `begin`: have the L2 cache fetch the lines of these addresses while the kernel before still runs.

        All kernels see the same L2 cache, so a line may be written later. The addresses must be valid.
        """
        if target_info.cuda_capability_geq(9, 0):
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [place], dtype=tl.int32, is_pure=False, pack=1
            )


def starts_early() -> bool:
    """Whether the current device can start a kernel while the one before it still runs."""
    return not INTERPRETED and torch.version.hip is None and torch.cuda.get_device_capability() >= EARLY_SINCE


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
