"""What a layer computes of rows on the device, against the plain twins in float64."""

import pytest
import torch

from scoutattention.kernels import reference_rows
from scoutattention.kernels.triton import rows
from scoutattention.types import Rope

from ..columns import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize(("shape", "width"), [((3, 64), (64,)), ((20, 37), (37,)), ((2, 5, 24), (5, 24))])
def test_rms_norm(column, dtype, shape, width):
    x, weight = (torch.randn(shape[0], *(n + 1 for n in shape[1:])) * 3).to(dtype), torch.randn(width)
    x = x[tuple(slice(n) for n in shape)]
    got = rows.rms_norm(*column.put((x, weight)), 1e-2)
    assert got.is_contiguous()
    torch.testing.assert_close(column.back(got), reference_rows.rms_norm(x.double(), weight, 1e-2).to(dtype))


@every_dtype
@pytest.mark.parametrize(("T", "heads", "D"), [(1, 1, 2), (4, 12, 64), (3, 5, 24)])
def test_rotate(column, dtype, T, heads, D):
    angles = torch.randn(T, D // 2).repeat(1, 2)
    x, rope = torch.randn(T, heads + 1, D)[:, :heads].to(dtype), Rope(angles.cos(), angles.sin())
    got = rows.rotate(*column.put((x, rope)))
    assert got.is_contiguous()
    torch.testing.assert_close(column.back(got), reference_rows.rotate(x, rope))


@every_dtype
@pytest.mark.parametrize(("T", "width"), [(1, 1536), (4, 37), (2, 3)])
def test_swiglu(column, dtype, T, width):
    x = (torch.randn(T, 2 * width) * 5).to(dtype)
    x[0, :3] = torch.tensor([-200.0, 200.0, 0.0])[: 2 * width].to(dtype)
    got = column.back(rows.swiglu(column.put(x)))
    torch.testing.assert_close(got, reference_rows.swiglu(x.double()).to(dtype))
