"""Main dimensions of second moments: eigenvectors of many small matrices in one launch, a program each.

PyTorch's `eigh` solves larger matrices than 32 x 32 one after the other, each in milliseconds, and waits for the GPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ... import reference_factors
from ...reference_factors import Factors
from ..base import Launch, check, padded, tl, triton

MOST_CHANNELS = 128
"""Channels up to which a program can hold a matrix; beyond, PyTorch's `eigh` computes."""
SWEEPS = 12
"""Times at most that each pair of rows is made orthogonal; 7 to 9 are mostly enough."""
COSINE = 1e-3
"""The largest cosine of two rows in a sweep after which no other follows: the sweep leaves about its square."""
LEAST = 1e-5
"""Of the sum of a matrix's eigenvalues, what is added to each, so that its factor exists in float32."""
WARPS = (4, 8)
"""Of a program with up to 64 channels, and with more. With 8 matrices of 128 channels, 4, 16 and 32 take longer."""


@triton.jit
def _orthogonal_kernel(
    factor: tl.tensor,
    axes: tl.tensor,
    squares: tl.tensor,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    SWEEPS: tl.constexpr,
    COSINE: tl.constexpr,
) -> None:
    """Program (matrix): rotates pairs of its rows until all are orthogonal.   axes: the same rows, of length 1.

    One-sided Jacobi (Hestenes, 1958). In round r of a sweep, row i is rotated with row i ^ r, so that all pairs have
    their turn.
    """
    i = tl.arange(0, D_PAD)
    matrix = tl.program_id(0).to(tl.int64)
    there = (i < D)[:, None] & (i < D)[None, :]
    place = matrix * D * D + i[:, None] * D + i[None, :]
    rows = tl.load(factor + place, mask=there, other=0.0)
    sweep = 0
    worst = 1.0
    while (sweep < SWEEPS) & (worst > COSINE * COSINE):
        worst = 0.0
        square = tl.sum(rows * rows, axis=1)
        for r in range(1, D_PAD):
            other = i ^ r
            others = tl.gather(rows, tl.broadcast_to(other[:, None], (D_PAD, D_PAD)), axis=0)
            its_square = tl.gather(square, other, axis=0)
            product = tl.sum(rows * others, axis=1)
            apart = product != 0.0
            safe = tl.where(apart, product, 1.0)
            cosine = product * product / tl.where(apart, square * its_square, 1.0)  # squared
            worst = tl.maximum(worst, tl.max(cosine, axis=0))
            side = tl.where(i < other, 1.0, -1.0)
            ratio = side * (its_square - square) / (2.0 * safe)
            root = tl.sqrt(1.0 + ratio * ratio)
            tangent = tl.where(apart, 1.0 / tl.where(ratio >= 0.0, ratio + root, ratio - root), 0.0)
            scale = 1.0 / tl.sqrt(1.0 + tangent * tangent)
            rows = scale[:, None] * (rows - (side * tangent)[:, None] * others)
            square = square - side * tangent * product
        sweep += 1
    square = tl.sum(rows * rows, axis=1)
    length = tl.sqrt(tl.where(square > 0.0, square, 1.0))
    tl.store(axes + place, rows / length[:, None], mask=there)
    tl.store(squares + matrix * D + i, square, mask=i < D)


def orthogonal_launch(factor: Tensor, axes: Tensor, squares: Tensor) -> Launch:
    """The launch of `main_dims`: factors [n, D, D], whose rows become axes [n, D, D] and their squares [n, D]."""
    n, D = squares.shape
    constants = {"D": D, "D_PAD": padded(D, 16), "SWEEPS": SWEEPS, "COSINE": COSINE}
    return Launch(_orthogonal_kernel, (n,), (factor, axes, squares), constants, warps=WARPS[D > 64])


def factor_of(moments: Tensor, factors: Callable[[Tensor], Factors]) -> Tensor:
    """Rows [n, D, D] whose products are similar to second moments, so that, made orthogonal, they are eigenvectors.

    moments: see `main_dims`, whose errors are the same. LEAST is added.   factors: see `Ops.factors`.
    """
    D = moments.shape[-1]
    check("moments", moments, (None, D, D), torch.float32, rows=3)
    total = moments.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    regular = moments / total.where(total > 0, 1) + LEAST * torch.eye(D, device=moments.device)
    return factors(regular).factor.mT.contiguous()


def main_dims(moments: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices with no negative eigenvalue, in the order of the plain twin: nothing waits.

    moments: float32 [n, D, D], finite.   Raises KernelError where it is not float32 and contiguous.
    """
    n, D, _ = moments.shape
    if D > MOST_CHANNELS:
        return reference_factors.main_dims(moments)
    factor = factor_of(moments, reference_factors.factors)
    axes, squares = torch.empty_like(factor), moments.new_empty(n, D)
    orthogonal_launch(factor, axes, squares).run()
    order = squares.argsort(-1, descending=True)
    return axes.gather(1, order[..., None].expand(-1, -1, D))
