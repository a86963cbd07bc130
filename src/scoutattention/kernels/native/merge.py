"""Partials of one step put together, native: a few numbers for each query head, and so nearly all call overhead.

Same results as their twins in `reference`. All raise KernelError where a tensor does not fit.
"""

import torch
from torch import Tensor

from ...errors import KernelError
from ...runtime.workers import Workers
from ...types import Partial


def merge(workers: Workers, a: Partial, b: Partial) -> Partial:
    """See `reference.merge`."""
    shape = a.out.shape
    _check(shape, outs=(a.out, b.out), rows=(a.lse, b.lse))
    out, lse = a.out.new_empty(shape), a.lse.new_empty(shape[:-1])
    pointers = tuple(tensor.data_ptr() for tensor in (a.out, a.lse, b.out, b.lse, out, lse))
    workers.native.merge(pointers, (lse.numel(), shape[-1]))
    return Partial(out, lse)


def corrected(workers: Workers, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
    """See `reference.corrected`."""
    if far.mean_key is None:
        raise KernelError("the far partial has no mean key: it must be computed with one to be corrected")
    q, q_hat = q.float().contiguous(), q_hat.float().contiguous()
    _check(q.shape, outs=(q, q_hat, far.mean_key), rows=(far.lse,))
    lse = far.lse.new_empty(far.lse.shape)
    pointers = tuple(tensor.data_ptr() for tensor in (q, q_hat, far.mean_key, far.lse, lse))
    workers.native.correct(pointers, (lse.numel(), q.shape[-1]), scale)
    return far._replace(lse=lse)


def doubt(workers: Workers, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
    """See `reference.doubt`."""
    q, q_hat = q.float().contiguous(), q_hat.float().contiguous()
    _check(q.shape, outs=(q, q_hat), rows=(far.lse, near.lse))
    most = q.new_empty(q.shape[:-2])
    pointers = tuple(tensor.data_ptr() for tensor in (q, q_hat, far.lse, near.lse, most))
    workers.native.doubt(pointers, (most.numel(), *q.shape[-2:]))
    return most


def _check(shape: tuple[int, ...], outs: tuple[Tensor, ...], rows: tuple[Tensor, ...]) -> None:
    """Refuse what is not contiguous float32 on the CPU, of `shape` [B, H, G, D] or, as `rows`, [B, H, G]."""
    fits = len(shape) == 4
    fits = fits and all(tensor.shape == shape for tensor in outs) and all(tensor.shape == shape[:-1] for tensor in rows)
    if not (fits and all(tensor.is_cpu and tensor.is_contiguous() for tensor in outs + rows)):
        raise KernelError(
            f"tensors of shapes {[list(tensor.shape) for tensor in outs + rows]} do not fit {list(shape)}: they must "
            "be [B, H, G, D] and [B, H, G], contiguous, on the CPU"
        )
    if any(tensor.dtype != torch.float32 for tensor in outs + rows):
        raise KernelError(f"partials are {[tensor.dtype for tensor in outs + rows]}: they must be float32")
