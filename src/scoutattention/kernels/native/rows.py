"""What a decoder layer computes of a few rows, native: each weight is read from memory once, in the dtype it has.

A decode step is bound by reading weights, and PyTorch's matrix products for a few rows read them at a half to a quarter
of the speed of memory (docs/performance.md). Same results as `reference_rows`, but everything except the weights is
float32. The native side checks every tensor.
"""

from torch import Tensor

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
        return self._native.linear(_rows(x), weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows x [T, A] over their root mean squares, times weight [A]; or x [T, N, A], weight [N, A]."""
        return self._native.rms_norm(_rows(x), _rows(weight), eps)

    def rotate(self, x: Tensor, rope: Rope) -> Tensor:
        """Rotary embedding of heads x [T, heads, D]; D is even."""
        return self._native.rotate(_rows(x), _rows(rope.cos), _rows(rope.sin))

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [T, 2 * I], gate beside up: [T, I]."""
        return self._native.swiglu(_rows(x))


def _rows(x: Tensor) -> Tensor:
    """The form in which the native side reads rows."""
    return x.float().contiguous()
