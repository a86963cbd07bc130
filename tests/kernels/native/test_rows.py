"""Native kernels for a few rows against their plain twins, on every instruction set and at sizes that end in tails."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference_rows
from scoutattention.kernels.native import ManyRowKernels, RowKernels
from scoutattention.kernels.reference_rows import HeadPlacing
from scoutattention.runtime import workers as cpu
from scoutattention.types import Rope

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", params=cpu.isa_levels())
def workers(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield workers


@pytest.fixture(scope="module")
def rows(workers):
    return RowKernels(workers)


@pytest.fixture(scope="module")
def many(workers):
    return ManyRowKernels(workers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "A", "B"), [(1, 64, 48), (3, 576, 960), (4, 40, 17), (7, 33, 1), (16, 7, 530)])
def test_linear(rows, dtype, T, A, B):
    torch.manual_seed(0)
    x, weight = torch.randn(T, A), torch.randn(B, A).to(dtype)
    want = reference_rows.linear(x.double(), weight.double()).float()
    torch.testing.assert_close(rows.linear(x, weight), want, rtol=1e-5, atol=1e-5 * A**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "A", "B"), [(1, 64, 8), (5, 24, 600)])
def test_linear_with_a_matrix_for_each_row(rows, dtype, T, A, B):
    torch.manual_seed(0)
    x, weight = torch.randn(T, A), torch.randn(2 * T, B, A).to(dtype)[::2]
    want = reference_rows.linear(x.double(), weight.double()).float()
    torch.testing.assert_close(rows.linear(x, weight), want, rtol=1e-5, atol=1e-5 * A**0.5)


def test_a_row_does_not_depend_on_its_neighbours(rows):
    torch.manual_seed(0)
    x, weight = torch.randn(7, 100), torch.randn(50, 100)
    alone = torch.cat([rows.linear(row[None], weight) for row in x])
    assert torch.equal(rows.linear(x, weight), alone)


def test_linear_of_nothing_is_nothing(rows):
    assert rows.linear(torch.zeros(0, 8), torch.zeros(3, 8)).shape == (0, 3)
    assert rows.linear(torch.zeros(0, 8), torch.zeros(0, 3, 8)).shape == (0, 3)
    assert rows.linear(torch.zeros(2, 8), torch.zeros(0, 8)).shape == (2, 0)


@pytest.mark.parametrize(("shape", "weight"), [((3, 64), (64,)), ((2, 37), (37,)), ((2, 5, 24), (5, 24))])
def test_rms_norm(rows, shape, weight):
    torch.manual_seed(0)
    x, weight = torch.randn(shape) * 3, torch.randn(weight)
    want = reference_rows.rms_norm(x.double(), weight, 1e-2).float()
    torch.testing.assert_close(rows.rms_norm(x, weight, 1e-2), want)


def test_add_norm(rows):
    torch.manual_seed(0)
    x, change, weight = torch.randn(3, 64).bfloat16(), torch.randn(3, 64), torch.randn(64)
    total, got = rows.add_norm(x, change, weight, 1e-2)
    assert torch.equal(total, x + change)
    torch.testing.assert_close(got, reference_rows.rms_norm(total, weight, 1e-2))


def placed(T: int, D: int, *, normed: bool, paired: bool) -> tuple[torch.Tensor, HeadPlacing]:
    torch.manual_seed(0)
    Q, H = 5, 2
    angles = torch.randn(T, D // 2).repeat(1, 2)
    bias, norm = (torch.randn((Q + 2 * H) * D), torch.randn(Q + H, D)) if normed else (None, None)
    return torch.randn(T, Q + 2 * H, D), HeadPlacing(Q, bias, norm, 1e-2, Rope(angles.cos(), angles.sin()), paired)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("T", "D"), [(1, 2), (3, 24), (40, 64)])
def test_place_heads(rows, T, D, normed, paired):
    x, how = placed(T, D, normed=normed, paired=paired)
    for mine, theirs in zip(rows.place_heads(x, how), reference_rows.place_heads(x, how), strict=True):
        torch.testing.assert_close(mine, theirs)
        assert mine.is_contiguous()


def test_queries_alone_are_placed(rows):
    x, how = placed(3, 24, normed=True, paired=False)
    want, _, _ = rows.place_heads(x, how)
    how = how._replace(bias=how.bias[: 5 * 24])
    q, k, v = rows.place_heads(x[:, :5].contiguous(), how)
    assert torch.equal(q, want)
    assert k.shape == v.shape == (3, 0, 24)


@pytest.mark.parametrize(("T", "I"), [(1, 1536), (4, 37), (2, 3)])
def test_swiglu(rows, T, I):  # noqa: E741
    torch.manual_seed(0)
    x = torch.randn(T, 2 * I) * 5
    x[0, :3] = torch.tensor([-200.0, 200.0, 0.0])[: 2 * I]
    want = reference_rows.swiglu(x.double()).float()
    torch.testing.assert_close(rows.swiglu(x), want)


@pytest.mark.parametrize("T", [1, 3, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_a_prompt_keep_their_dtype(many, dtype, T):
    """Some are few enough for one thread, and some are shared."""
    x, change = torch.randn(2, T, 576).to(dtype)
    weight, gates = torch.randn(576), (3 * torch.randn(T, 2 * 100)).to(dtype)
    heads, how = placed(T, 24, normed=True, paired=True)
    some = heads.to(dtype)
    total = x + change
    for got, want in [
        (many.rms_norm(x, weight, 1e-2), reference_rows.rms_norm(x.double(), weight, 1e-2)),
        (many.add_norm(x, change, weight, 1e-2)[0], total),
        (many.add_norm(x, change, weight, 1e-2)[1], reference_rows.rms_norm(total.double(), weight, 1e-2)),
        (many.swiglu(gates), reference_rows.swiglu(gates.double())),
        *zip(many.place_heads(some, how), reference_rows.place_heads(some.float(), how), strict=True),
    ]:
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype))


def test_what_is_not_finite_stays_so_in_bfloat16(many):
    x = torch.tensor([[float("nan"), 1.0, -1.0], [float("inf"), 1.0, 2.0], [3.3e38, 1.0, 2.0]]).bfloat16()
    got = many.add_norm(x, x, torch.ones(3), 1e-2)[0]
    assert torch.equal(got.isnan(), x.isnan())
    assert got[1:, 0].isinf().all()


def test_rows_of_other_dtypes_are_widened(rows):
    x, weight = torch.randn(2, 32).bfloat16(), torch.randn(5, 32)
    assert torch.equal(rows.linear(x, weight), rows.linear(x.float(), weight))
    assert rows.swiglu(x).dtype == torch.float32


def test_bad_arguments_are_named(rows, many):
    x, weight = torch.randn(2, 8), torch.randn(5, 8)
    how = HeadPlacing(1, None, None, 1e-5, Rope(torch.randn(2, 8), torch.randn(2, 8)))
    heads = torch.randn(2, 3, 8)
    for call, message in [
        (lambda: rows.linear(x, weight.double()), "weight is torch.float64"),
        (lambda: rows.linear(x, weight.to("meta")), "meta"),
        (lambda: rows.linear(x.to("meta"), weight), r"\[2, 8\] is on meta"),
        (lambda: rows.linear(x, weight.T), r"weight \[8, 5\]"),
        (lambda: rows.linear(x, weight.T.contiguous().T), r"strides \(1, 5\)"),
        (lambda: rows.linear(x, torch.randn(3, 5, 8)), r"weight \[3, 5, 8\]"),
        (lambda: rows.linear(x[0], weight), r"x is \[8\]"),
        (lambda: rows.linear(x, weight[0]), r"weight \[8\]"),
        (lambda: rows.rms_norm(x, weight, 1e-5), r"x is \[2, 8\] and weight \[5, 8\]"),
        (lambda: rows.add_norm(x, x[:1], weight[0], 1e-5), r"change torch.float32 \[1, 8\]"),
        (lambda: many.add_norm(x, x.bfloat16(), weight[0], 1e-5), r"change torch.bfloat16"),
        (lambda: rows.add_norm(x, x, weight, 1e-5), r"weight \[5, 8\]"),
        (lambda: rows.place_heads(x[None, None], how), r"x is \[1, 1, 2, 8\]"),
        (lambda: rows.place_heads(heads, how._replace(queries=2)), r"\[2, 3, 8\] with 2 queries"),
        (lambda: rows.place_heads(heads, how._replace(queries=5)), r"with 5 queries"),
        (lambda: rows.place_heads(heads[..., :7], how), r"x is \[2, 3, 7\]"),
        (lambda: rows.place_heads(heads[:1], how), r"cos is torch.float32 \[2, 8\]"),
        (lambda: rows.place_heads(heads, how._replace(bias=torch.randn(23))), r"bias is torch.float32 \[23\]"),
        (lambda: rows.place_heads(heads, how._replace(norm=torch.randn(1, 8))), r"norm is torch.float32 \[1, 8\]"),
        (lambda: rows.swiglu(x[:, :7]), r"x is \[2, 7\]"),
        (lambda: rows.swiglu(x[0]), r"x is \[8\]"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
