"""What a decoder layer computes of a few rows, native: each weight is read from memory once, in the dtype it has.

A decode step is bound by reading weights, and PyTorch's matrix products for a few rows read them at a half to a quarter
of the speed of memory (docs/performance.md). Same results as `reference_rows`, but everything except the weights is
float32. Every argument is checked here, before the native side sees an address.
"""

from torch import Tensor

from ...errors import KernelError
from ...runtime.checks import DTYPES
from ...runtime.workers import Workers
from ...types import Rope


class RowKernels:
    """The kernels of `reference_rows`, on native threads. All return float32.

    All raise KernelError where a tensor does not fit.
    """

    def __init__(self, workers: Workers) -> None:
        self._native = workers.native

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """Rows x [T, A] times weight^T.   weight: [B, A], or [T, B, A], one for each row; matrices contiguous."""
        x = _rows(x)
        _check_weight(x, weight)
        lines = weight.shape[-2:]
        out = x.new_empty(x.shape[0], lines[0])
        matrices = 1 if weight.dim() == 2 else x.shape[0]
        sizes = (matrices, x.shape[0] // max(1, matrices), lines[1], lines[0], DTYPES[weight.dtype])
        self._native.linear((x.data_ptr(), weight.data_ptr(), out.data_ptr()), sizes, weight.stride(0))
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows x [T, A] over their root mean squares, times weight [A]; or x [T, N, A], weight [N, A]."""
        x, weight = _rows(x), _rows(weight)
        if weight.dim() not in (1, 2) or not weight.numel() or x.shape[-weight.dim() :] != weight.shape:
            raise KernelError(f"x is {list(x.shape)} and weight {list(weight.shape)}: the last axes must agree")
        out = x.new_empty(x.shape)
        width = x.shape[-1]
        sizes = (x.numel() // weight.numel(), weight.numel() // width, width)
        self._native.rms_norm((x.data_ptr(), weight.data_ptr(), out.data_ptr()), sizes, eps)
        return out

    def rotate(self, x: Tensor, rope: Rope) -> Tensor:
        """Rotary embedding of heads x [T, heads, D]; D is even."""
        x, cos, sin = _rows(x), _rows(rope.cos), _rows(rope.sin)
        table = x.shape[::2]
        if x.dim() != 3 or cos.shape != table or sin.shape != table or x.shape[2] % 2:
            raise KernelError(
                f"x is {list(x.shape)}, cos {list(cos.shape)} and sin {list(sin.shape)}: they must be [T, heads, D], "
                "[T, D] and [T, D] with an even D"
            )
        out = x.new_empty(x.shape)
        self._native.rotate((x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr()), x.shape)
        return out

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [T, 2 * I], gate beside up: [T, I]."""
        x = _rows(x)
        if x.dim() != 2 or x.shape[1] % 2:
            raise KernelError(f"x is {list(x.shape)}: it must be [T, 2 * I]")
        out = x.new_empty(x.shape[0], x.shape[1] // 2)
        self._native.swiglu((x.data_ptr(), out.data_ptr()), out.shape)
        return out


def _rows(x: Tensor) -> Tensor:
    """Rows as the native side reads it: contiguous float32 on the CPU."""
    if not x.is_cpu:
        raise KernelError(f"a tensor of shape {list(x.shape)} is on {x.device}: it must be on the CPU")
    return x.float().contiguous()


def _check_weight(x: Tensor, weight: Tensor) -> None:
    if weight.dtype not in DTYPES or not weight.is_cpu:
        raise KernelError(
            f"weight is {weight.dtype} on {weight.device}: it must be float32, bfloat16 or float16 on the CPU"
        )
    owners = x.shape[:1] if weight.dim() == 3 else ()
    fits = x.dim() == 2 and weight.dim() in (2, 3) and weight.shape == (*owners, weight.shape[-2], x.shape[1])
    if not fits or weight.stride()[-2:] != (weight.shape[-1], 1):
        raise KernelError(
            f"x is {list(x.shape)} and weight {list(weight.shape)} with strides {weight.stride()}: they must be [T, A] "
            "and [B, A] or [T, B, A], matrices contiguous"
        )
