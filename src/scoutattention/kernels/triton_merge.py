"""The merge on the device: near and far partials, the far one corrected, into the layer's output in one launch."""

import torch
from torch import Tensor

from ..errors import KernelError
from ..types import Partial
from .triton_base import TL_DTYPES, Launch, ceil_div, check, padded, tl, triton

ROWS = 8  # query heads of one program


@triton.jit
def _merge_kernel(
    near_out: tl.tensor,
    near_lse: tl.tensor,
    far_out: tl.tensor,
    far_lse: tl.tensor,
    mean_key: tl.tensor,
    q: tl.tensor,
    q_hat: tl.tensor,
    out: tl.tensor,
    scale: float,
    rows: int,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Program (n): ROWS query heads."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    listed = row < rows
    seen = listed[:, None] & (d < D)[None, :]
    place = row.to(tl.int64)[:, None] * D + d[None, :]
    change = tl.load(q + place, mask=seen, other=0.0).to(tl.float32)
    change -= tl.load(q_hat + place, mask=seen, other=0.0).to(tl.float32)
    shift = tl.sum(change * tl.load(mean_key + place, mask=seen, other=0.0), axis=1) * scale
    near = tl.load(near_lse + row, mask=listed, other=0.0)
    far = tl.load(far_lse + row, mask=listed, other=0.0) + shift
    base = tl.maximum(near, far)
    base = tl.where(base == float("-inf"), 0.0, base)
    near_weight = tl.exp(near - base)
    far_weight = tl.exp(far - base)
    total = near_weight + far_weight
    total = tl.where(total > 0, total, 1.0)
    near_part = tl.load(near_out + place, mask=seen, other=0.0) * (near_weight / total)[:, None]
    far_part = tl.load(far_out + place, mask=seen, other=0.0) * (far_weight / total)[:, None]
    tl.store(out + place, (near_part + far_part).to(out.dtype.element_ty), mask=seen)


def merge_launch(near: Partial, far: Partial, q: Tensor, q_hat: Tensor, scale: float, out: Tensor) -> Launch:
    """The launch that fills `out`."""
    rows, D = near.lse.numel(), q.shape[-1]
    arguments = (*near[:2], *far, q, q_hat, out, scale, rows)
    return Launch(_merge_kernel, (ceil_div(rows, ROWS),), arguments, {"D": D, "D_PAD": padded(D), "ROWS": ROWS})


def merge_corrected(
    near: Partial, far: Partial, q: Tensor, q_hat: Tensor, scale: float, *, out: Tensor | None = None
) -> Tensor:
    """Near and far attention merged, the far weight corrected; the twin of `reference_device.merge_corrected`.

    near, far: float32 and contiguous, far with mean_key.   q, q_hat: [B, H, G, D], contiguous, any float dtype.
    out: where to write, like q; None is new.   Raises KernelError where a tensor does not fit.
    """
    shape = tuple(q.shape)
    if far.mean_key is None:
        raise KernelError("far.mean_key is None: attend to far blocks with with_mean_key=True")
    out = torch.empty_like(q) if out is None else out
    check("q", q, (None, None, None, None), *TL_DTYPES, rows=4)
    check("q_hat", q_hat, shape, *TL_DTYPES, rows=4)
    check("out", out, shape, q.dtype, rows=4)
    for name, side in (("near", near), ("far", far)):
        check(f"{name}.out", side.out, shape, torch.float32, rows=4)
        check(f"{name}.lse", side.lse, shape[:3], torch.float32, rows=3)
    check("far.mean_key", far.mean_key, shape, torch.float32, rows=4)
    merge_launch(near, far, q, q_hat, scale, out).run()
    return out
