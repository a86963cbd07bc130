"""What a layer computes of rows on the device, against the plain twins in float64."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference_rows
from scoutattention.kernels.reference_rows import HeadPlacing, RowCorrection
from scoutattention.kernels.triton import matrix, rows
from scoutattention.types import Rope

from ..columns import DTYPES

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@every_dtype
@pytest.mark.parametrize("shape", [(3, 64), (20, 37)])
def test_rms_norm(column, dtype, shape):
    x, weight = (torch.randn(shape[0], shape[1] + 1) * 3).to(dtype)[:, :-1], torch.randn(shape[1])
    got = rows.rms_norm(*column.put((x, weight)), 1e-2)
    assert got.is_contiguous()
    torch.testing.assert_close(column.back(got), reference_rows.rms_norm(x.double(), weight, 1e-2).to(dtype))


@every_dtype
@pytest.mark.parametrize("shape", [(3, 64), (20, 37)])
def test_add_norm(column, dtype, shape):
    x, change = (torch.randn(2, shape[0], shape[1] + 1) * 3).to(dtype)
    x, change, weight = x[:, :-1], change[:, :-1].contiguous(), torch.randn(shape[1])
    total, got = column.back(rows.add_norm(*column.put((x, change, weight)), 1e-2))
    torch.testing.assert_close(total, x + change)
    torch.testing.assert_close(got, reference_rows.rms_norm(total.double(), weight, 1e-2).to(dtype))


@every_dtype
@pytest.mark.parametrize("ranks", [(5,), (3, 16)], ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (2, 300)])
def test_corrected_norm(column, dtype, shape, ranks):
    """Corrections of each row and of all rows, for some rows and for all."""
    T, A = shape
    x, weight = (torch.randn(T, A + 1) * 3).to(dtype)[:, :-1], torch.randn(A)
    each = (torch.randn(T, ranks[0], A) / A**0.5, torch.randn(T, A, ranks[0]))
    shared = (torch.randn(ranks[-1], A) / A**0.5, torch.randn(A, ranks[-1]), torch.arange(T) % 2 == 0)
    by = [RowCorrection(*(part.to(dtype) for part in each))]
    if len(ranks) > 1:
        by.insert(0, RowCorrection(*(part.to(dtype) for part in shared[:2]), shared[2]))
    got = column.back(rows.corrected_norm(*column.put((x, weight)), 1e-2, column.put(tuple(by))))
    exact = [RowCorrection(left.double(), right.double(), used) for left, right, used in by]
    torch.testing.assert_close(got, reference_rows.corrected_norm(x.double(), weight.double(), 1e-2, exact).to(dtype))


@every_dtype
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("T", "Q", "H", "D"), [(1, 1, 1, 2), (4, 12, 4, 64), (3, 5, 0, 24)])
def test_place_heads(column, dtype, normed, paired, T, Q, H, D):
    angles, heads = torch.randn(T, D // 2).repeat(1, 2), Q + 2 * H
    x, rope = torch.randn(T, heads + 1, D)[:, :heads].to(dtype), Rope(angles.cos(), angles.sin())
    bias = torch.randn(heads * D).to(dtype) if normed else None
    how = HeadPlacing(Q, bias, torch.randn(Q + H, D) if normed else None, 1e-2, rope, paired)
    got = rows.place_heads(*column.put((x, how)))
    want = reference_rows.place_heads(x.double(), how)
    assert all(part.is_contiguous() for part in got)
    for mine, theirs in zip(column.back(got), want, strict=True):
        torch.testing.assert_close(mine, theirs.to(dtype))


@every_dtype
@pytest.mark.parametrize(("T", "width"), [(1, 1536), (4, 37), (2, 3)])
def test_swiglu(column, dtype, T, width):
    x = (torch.randn(T, 2 * width) * 5).to(dtype)
    x[0, :3] = torch.tensor([-200.0, 200.0, 0.0])[: 2 * width].to(dtype)
    got = column.back(rows.swiglu(column.put(x)))
    torch.testing.assert_close(got, reference_rows.swiglu(x.double()).to(dtype))


@every_dtype
@pytest.mark.parametrize(("T", "A", "B"), [(1, 64, 48), (4, 300, 70), (16, 520, 33), (17, 64, 48)])
def test_products(column, dtype, T, A, B):
    x, weight = torch.randn(T, A + 8).to(dtype)[:, :A], (torch.randn(B, A) / A**0.5).to(dtype)
    there, whole = column.put((x, weight))
    got = rows.linear(there, whole)
    assert got.is_contiguous()
    torch.testing.assert_close(column.back(got), (x.double() @ weight.double().T).to(dtype))
    if T <= matrix.FEW and dtype.itemsize == 2:
        alone = torch.cat([rows.linear(there[t : t + 1], whole) for t in range(T)])
        assert torch.equal(alone, got), "a row's products depend on other rows"


def test_products_of_few_rows_are_one_launch(column, monkeypatch):
    launched, run = [], matrix.Launch.run
    monkeypatch.setattr(matrix.Launch, "run", lambda launch: launched.append(launch.grid) or run(launch))
    for T, B, dtype in ((3, 100, torch.bfloat16), (17, 100, torch.bfloat16), (3, 100, torch.float32)):
        rows.linear(*column.put((torch.ones(T, 64, dtype=dtype), torch.ones(B, 64, dtype=dtype))))
    monkeypatch.setattr(matrix, "MOST", 99)
    rows.linear(*column.put((torch.ones(3, 64, dtype=torch.bfloat16), torch.ones(100, 64, dtype=torch.bfloat16))))
    assert launched == [(4,)]


def test_rows_that_do_not_fit_are_refused():
    x, rope = torch.zeros(2, 4, 6), Rope(torch.zeros(1, 6), torch.zeros(2, 6))
    with pytest.raises(KernelError, match=r"weight is \[4\]: it must be \[6\]"):
        rows.rms_norm(x[0], torch.zeros(4), 1e-5)
    with pytest.raises(KernelError, match=r"change is \[2, 6\]: it must be \[4, 6\]"):
        rows.add_norm(x[0], x[0, :2], torch.zeros(6), 1e-5)
    with pytest.raises(KernelError, match="there are 3 corrections"):
        rows.corrected_norm(x[0], torch.zeros(6), 1e-5, 3 * [RowCorrection(x[0, :2], x[0].mT)])
    with pytest.raises(KernelError, match=r"right is \[6, 3\]: it must be \[6, 2\]"):
        rows.corrected_norm(x[0], torch.zeros(6), 1e-5, [RowCorrection(x[0, :2], torch.zeros(6, 3))])
    with pytest.raises(KernelError, match=r"cos is \[1, 6\]: it must be \[2, 6\]"):
        rows.place_heads(x, HeadPlacing(2, None, None, 1e-5, rope))
    with pytest.raises(KernelError, match=r"weight is \[4, 6\]: it must be \[any, 5\]"):
        rows.linear(torch.zeros(2, 5).bfloat16(), torch.zeros(4, 6).bfloat16())
    with pytest.raises(KernelError, match=r"x is \[2, 5\]: it must be \[any, 4\]"):
        rows.swiglu(torch.zeros(2, 5))
