"""Partials of one step put together on the device: their merge, a scout's correction, and what is to be doubted."""

import torch
from torch import Tensor

from ...errors import KernelError
from ...types import Partial
from .base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton

ROWS = 8  # query heads of one program


@triton.jit
def _merge_kernel(
    a_out: tl.tensor,
    a_lse: tl.tensor,
    b_out: tl.tensor,
    b_lse: tl.tensor,
    without: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    rows: int,
    G: int,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    WITHOUT: tl.constexpr,
) -> None:
    """Program (n): ROWS query heads."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    listed = row < rows
    seen = listed[:, None] & (d < D)[None, :]
    place = row.to(tl.int64)[:, None] * D + d[None, :]
    a = tl.load(a_lse + row, mask=listed, other=0.0)
    b = tl.load(b_lse + row, mask=listed, other=0.0)
    there = seen
    if WITHOUT:
        left = tl.load(without + row // G, mask=listed, other=0) != 0
        a = tl.where(left, float("-inf"), a)
        there = seen & (left == 0)[:, None]
    base = tl.maximum(a, b)
    base = tl.where(base == float("-inf"), 0.0, base)
    a_weight = tl.exp(a - base)
    b_weight = tl.exp(b - base)
    total = a_weight + b_weight
    some = tl.where(total > 0, total, 1.0)
    a_part = tl.load(a_out + place, mask=there, other=0.0) * (a_weight / some)[:, None]
    b_part = tl.load(b_out + place, mask=seen, other=0.0) * (b_weight / some)[:, None]
    tl.store(out + place, a_part + b_part, mask=seen)
    tl.store(lse + row, tl.where(total > 0, base + tl.log(some), float("-inf")), mask=listed)


@triton.jit
def _correct_kernel(
    far_lse: tl.tensor,
    mean_key: tl.tensor,
    q: tl.tensor,
    q_hat: tl.tensor,
    lse: tl.tensor,
    scale: float,
    rows: int,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Program (n): ROWS query heads."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    seen = (row < rows)[:, None] & (d < D)[None, :]
    place = row.to(tl.int64)[:, None] * D + d[None, :]
    change = tl.load(q + place, mask=seen, other=0.0).to(tl.float32)
    change -= tl.load(q_hat + place, mask=seen, other=0.0).to(tl.float32)
    shift = tl.sum(change * tl.load(mean_key + place, mask=seen, other=0.0), axis=1) * scale
    tl.store(lse + row, tl.load(far_lse + row, mask=row < rows, other=0.0) + shift, mask=row < rows)


@triton.jit
def _scout_error_kernel(
    far_lse: tl.tensor,
    near_lse: tl.tensor,
    q: tl.tensor,
    q_hat: tl.tensor,
    most: tl.tensor,
    G: tl.constexpr,
    G_PAD: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
) -> None:
    """Program (n): one KV head of one sequence. A product that is no number is stored as one."""
    head = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, G_PAD)
    d = tl.arange(0, D_PAD)
    seen = (g < G)[:, None] & (d < D)[None, :]
    place = (head * G + g)[:, None] * D + d[None, :]
    true = tl.load(q + place, mask=seen, other=0.0).to(tl.float32)
    change = true - tl.load(q_hat + place, mask=seen, other=0.0).to(tl.float32)
    far = tl.load(far_lse + head * G + g, mask=g < G, other=0.0)
    near = tl.load(near_lse + head * G + g, mask=g < G, other=0.0)
    base = tl.maximum(far, near)
    weight = tl.exp(far - base) / (tl.exp(far - base) + tl.exp(near - base))
    error = weight * tl.sqrt(tl.sum(change * change, axis=1) / tl.sum(true * true, axis=1))
    known = error <= float("inf")
    unknown = tl.max(tl.where((g >= G) | known, 0, 1), axis=0) > 0
    largest = tl.max(tl.where((g < G) & known, error, float("-inf")), axis=0)
    tl.store(most + head, tl.where(unknown, float("nan"), largest))


def merge_launch(a: Partial, b: Partial, result: Partial, without: Tensor | None = None) -> Launch:
    """The launch of `merge`, which fills `result`."""
    rows, (G, D) = a.lse.numel(), a.out.shape[-2:]
    arguments = (*a[:2], *b[:2], a.lse if without is None else without, *result[:2], rows, G)
    constants = {"D": D, "D_PAD": padded(D), "ROWS": ROWS, "WITHOUT": without is not None}
    return Launch(_merge_kernel, (ceil_div(rows, ROWS),), arguments, constants)


def correct_launch(far: Partial, q: Tensor, q_hat: Tensor, scale: float, lse: Tensor) -> Launch:
    """The launch of `corrected`, which fills `lse`."""
    rows, D = lse.numel(), q.shape[-1]
    arguments = (far.lse, far.mean_key, q, q_hat, lse, scale, rows)
    return Launch(_correct_kernel, (ceil_div(rows, ROWS),), arguments, {"D": D, "D_PAD": padded(D), "ROWS": ROWS})


def scout_error_launch(far: Partial, near: Partial, q: Tensor, q_hat: Tensor, most: Tensor) -> Launch:
    """The launch of `scout_error`, which fills `most`."""
    G, D = q.shape[2:]
    constants = {"G": G, "G_PAD": padded(G), "D": D, "D_PAD": padded(D)}
    return Launch(_scout_error_kernel, (most.numel(),), (far.lse, near.lse, q, q_hat, most), constants, warps=1)


def merge(a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
    """Attention over two disjoint sets of keys; the twin of `reference.merge`.   Raises KernelError: see `check`.

    without: bool [B, H], the KV heads of which a is left out, or None for none.
    """
    _check_partial("a", a, tuple(a.out.shape))
    _check_partial("b", b, tuple(a.out.shape))
    if without is not None:
        check("without", without, tuple(a.out.shape[:2]), torch.bool, rows=2)
    result = Partial(torch.empty_like(a.out), torch.empty_like(a.lse))
    merge_launch(a, b, result, without).run()
    return result


def corrected(far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
    """What a scout's partial weighs for the true query; the twin of `reference.corrected`.

    far: with mean_key.   q, q_hat: [B, H, G, D], contiguous, any float dtype.   Raises KernelError: see `check`.
    """
    if far.mean_key is None:
        raise KernelError("far.mean_key is None: attend to far blocks with with_mean_key=True")
    _check_queries(q, q_hat)
    _check_partial("far", far, tuple(q.shape))
    check("far.mean_key", far.mean_key, tuple(q.shape), torch.float32, rows=4)
    lse = torch.empty_like(far.lse)
    correct_launch(far, q, q_hat, scale, lse).run()
    return far._replace(lse=lse)


def scout_error(far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
    """How much a wrong scout may have spoilt each KV head, float32 [B, H]; the twin of `reference.scout_error`.

    q, q_hat: [B, H, G, D], contiguous, any float dtype.   Raises KernelError where a tensor does not fit.
    """
    _check_queries(q, q_hat)
    for name, side in (("far", far), ("near", near)):
        check(f"{name}.lse", side.lse, tuple(q.shape[:3]), torch.float32, rows=3)
    most = q.new_empty(q.shape[:2], dtype=torch.float32)
    scout_error_launch(far, near, q, q_hat, most).run()
    return most


def _check_queries(q: Tensor, q_hat: Tensor) -> None:
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("q_hat", q_hat, tuple(q.shape), *TL_DTYPES, rows=4)


def _check_partial(name: str, side: Partial, shape: tuple[int, ...]) -> None:
    check(f"{name}.out", side.out, shape, torch.float32, rows=4)
    check(f"{name}.lse", side.lse, shape[:3], torch.float32, rows=3)
