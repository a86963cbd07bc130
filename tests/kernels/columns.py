"""The columns of the table of operations: every implementation, the memory that it works in, and exact results.

Tensors are made on the CPU, with one seed for all columns, and moved to the column's device for the call. Exact results
are those of the plain operations in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from scoutattention.kernels.cuda.ops import CudaOps
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.ops import Ops
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.triton.base import INTERPRETED
from scoutattention.kernels.triton.ops import TritonOps
from scoutattention.runtime.packed import Packed
from scoutattention.runtime.workers import Workers

from .sizes import Sizes

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
EXACT = PlainOps(CPU)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Column:
    """One implementation.   on_gpu: whether its tensors are on a GPU.   compiled: whether Triton compiles it."""

    name: str
    make: Callable[[], Ops]
    on_gpu: bool = False
    compiled: bool = False

    @property
    def device(self) -> torch.device:
        return CUDA if self.on_gpu else CPU

    @property
    def ops(self) -> Ops:
        return _made(self)

    @property
    def absent_because(self) -> str | None:
        """Why this process cannot run the column, or None where it can."""
        if self.on_gpu and not torch.cuda.is_available():
            return "there is no GPU"
        if self.name.startswith(("triton", "cuda")) and self.compiled == INTERPRETED:
            return "TRITON_INTERPRET is set" if INTERPRETED else "TRITON_INTERPRET is not set"
        return None

    def put(self, value: Any) -> Any:
        """A copy of tensors on the device, however they are nested."""
        return _moved(value, self._put)

    def put_on_host(self, value: Any) -> Any:
        """A copy of tensors in host memory that the device can read and write in place."""
        return _moved(value, lambda tensor: tensor.pin_memory() if self.on_gpu else tensor.clone())

    def _put(self, tensor: Tensor) -> Tensor:
        """All of the memory that a tensor is a view of is copied, so that strides stay as they are."""
        memory = tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
        there = memory.to(self.device, copy=True)
        return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def back(self, value: Any) -> Any:
        """Results on the CPU, after all that was queued is done."""
        if self.on_gpu:
            torch.cuda.synchronize()
        return _moved(value, lambda tensor: tensor.cpu())

    def call(self, operation: str, *args: Any, **options: Any) -> Any:
        """The result of an operation on the CPU, from arguments on the CPU."""
        put = {name: self.put(value) for name, value in options.items()}
        return self.back(getattr(self.ops, operation)(*self.put(args), **put))


COLUMNS = [
    Column("plain", lambda: PlainOps(CPU)),
    Column("native", lambda: NativeOps(Workers(2))),
    Column("triton-interpreted", lambda: TritonOps(CPU)),
    Column("plain-gpu", lambda: PlainOps(CUDA), on_gpu=True),
    Column("triton-gpu", lambda: TritonOps(CUDA), on_gpu=True, compiled=True),
    Column("cuda-gpu", lambda: CudaOps(CUDA), on_gpu=True, compiled=True),
]


def parameter(column: Column, *rest: Any, name: str = "") -> Any:
    """A parameter of a test, which needs a GPU where the column does."""
    return pytest.param(column, *rest, id=f"{column.name}{name}", marks=[pytest.mark.gpu] * column.on_gpu)


def every_call(
    sizes: Sequence[Sizes], half: Sequence[Sizes], work: Callable[[Sizes], int] = lambda s: 0
) -> pytest.MarkDecorator:
    """Every column with `sizes` in float32, and those of `half` in 16 bits: each pair may be a kernel to be compiled.

    work: of a call, in blocks that are read. The interpreter has calls of little work, and what is large a GPU alone.
    """
    rows = [
        parameter(column, one, dtype, name=f"-{one}-{dtype}")
        for column, one, dtype in product(COLUMNS, sizes, DTYPES)
        if (dtype == torch.float32 or one in half) and (column.on_gpu or work(one) <= most_work(column, dtype))
    ]
    return pytest.mark.parametrize(("column", "sizes", "dtype"), rows, indirect=["column"])


def most_work(column: Column, dtype: torch.dtype) -> int:
    """Blocks that a call on the CPU may read, so that it takes seconds."""
    if column.name != "triton-interpreted":
        return 5000
    return 1000 if dtype == torch.float32 else 200


def close() -> None:
    """Forget the implementations, and end their threads."""
    _made.cache_clear()


@cache
def _made(column: Column) -> Ops:
    return column.make()


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, Packed):
        return replace(value, words=move(value.words), bounds=move(value.bounds))
    if isinstance(value, tuple):
        parts = [_moved(part, move) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def wide(value: Any) -> Any:
    """Floats as float64, however they are nested: what exact results are computed from."""
    return _moved(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def assert_near(got: Tensor, want: Tensor, limit: float) -> None:
    """Infinities are the same, and elsewhere the norm of the difference is at most `limit` of the norm of `want`."""
    assert got.shape == want.shape
    assert torch.equal(got.isinf(), want.isinf())
    got, want = (tensor.double().masked_fill(want.isinf(), 0) for tensor in (got, want))
    assert not got.isnan().any()
    assert float((got - want).norm()) <= limit * float(want.norm().clamp(min=1e-30))


def assert_same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Tensor by tensor: each number within the tolerance; what is no float is the same."""
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype in (theirs.dtype, torch.float32)
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=tolerance, atol=tolerance)


def assert_factors(got: Any, matrices: Tensor) -> None:
    """Factors of positive matrices [n, m, m] and their inverses: lower triangles, to the precision of the matrices."""
    factor, inverse = (part.double() for part in got)
    limit = 30 * torch.finfo(matrices.dtype).eps * matrices.shape[-1]
    assert got[0].dtype == got[1].dtype == matrices.dtype
    for part in (factor, inverse):
        assert torch.equal(part, part.tril())
    assert float((factor @ factor.mT - matrices.double()).norm()) < limit * float(matrices.norm())
    want = torch.linalg.inv(torch.linalg.cholesky(matrices.double()))
    assert float((inverse - want).norm()) < 30 * limit * float(want.norm())


def assert_main_dims(got: Tensor, moments: Tensor) -> None:
    """Directions [n, D, D] of moments [n, D, D] are orthogonal, and the strongest come first."""
    got, moments = got.double(), moments.double()
    identity = torch.eye(got.shape[-1], dtype=torch.float64).expand_as(got)
    torch.testing.assert_close(got @ got.mT, identity, rtol=0, atol=5e-4)
    turned = got @ moments @ got.mT
    strength, largest = turned.diagonal(dim1=-2, dim2=-1), turned.amax((-2, -1), keepdim=True)
    assert ((turned - strength.diag_embed()).abs() < 1e-4 * largest).all()
    torch.testing.assert_close(strength, torch.linalg.eigvalsh(moments).flip(-1), rtol=1e-3, atol=1e-4)
