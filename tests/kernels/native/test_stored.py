"""Native products with stored blocks against their plain twin, for every kind and instruction set."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels.native import MOST_ROWS, RowKernels
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.stored import StoredKind, StoredMatrix, StoredRows, stacked, stored

from ..stored_blocks import exact, random_blocks


@pytest.fixture(scope="module", params=cpu.isa_levels())
def rows(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield RowKernels(workers)


@pytest.fixture
def many_rows(rows):
    """The kernels where they multiply many rows with the blocks as they are."""
    if not rows._native.has_many_rows:
        pytest.skip(f"{rows._native.isa} has no fast products of bytes: many rows are PyTorch's there")
    return rows


def assert_products(got, x, weight):
    """Within 2^-14 of the product of the norms: rows are rounded to 16 bits in each panel."""
    want = x.double() @ exact(weight).T
    limit = x.double().norm(dim=1)[:, None] * exact(weight).norm(dim=1) * 2**-14
    assert got.dtype == torch.float32
    assert bool(((got - want).abs() <= limit).all()), float(((got - want).abs() / limit).max())


@pytest.mark.parametrize(
    ("T", "columns", "lines"), [(1, 256, 48), (3, 1024, 17), (7, 512, 1), (9, 256, 530), (16, 256, 65), (70, 512, 67)]
)
@pytest.mark.parametrize("kind", StoredKind, ids=lambda kind: kind.name)
def test_linear(rows, kind, T, columns, lines):
    torch.manual_seed(0)
    x, weight = torch.randn(T, columns) * 10 ** torch.randn(T, 1), random_blocks(kind, lines, columns)
    assert_products(rows.linear(x, weight), x, weight)


@pytest.mark.parametrize("T", [5, 22])
@pytest.mark.parametrize("columns", [32, 160, 288, 576])
@pytest.mark.parametrize("kind", [kind for kind in StoredKind if kind.length == 32], ids=lambda kind: kind.name)
def test_rows_that_end_within_a_panel(rows, kind, columns, T):
    torch.manual_seed(0)
    x, weight = torch.randn(T, columns), random_blocks(kind, 19, columns)
    assert_products(rows.linear(x, weight), x, weight)


@pytest.mark.parametrize("T", [3, 25])
@pytest.mark.parametrize("numbers", [(StoredKind.F32, StoredKind.BF16), (StoredKind.Q8_0,)], ids=["floats", "blocks"])
def test_one_product_with_rows_of_several_kinds(rows, numbers, T):
    torch.manual_seed(0)
    kinds = (StoredKind.Q4_K, *numbers, StoredKind.Q6_K, StoredKind.Q4_K)
    x, weight = torch.randn(T, 512), stacked(tuple(random_blocks(kind, 37, 512) for kind in kinds))
    assert_products(rows.linear(x, weight), x, weight)
    torch.testing.assert_close(rows.linear(x, weight[13:70]), rows.linear(x, weight)[:, 13:70])


@pytest.mark.parametrize("columns", [320, 4096], ids=["short lines", "few lines in the cache at once"])
def test_a_row_does_not_depend_on_its_neighbours(rows, columns):
    torch.manual_seed(0)
    x, weight = torch.randn(MOST_ROWS, columns), random_blocks(StoredKind.Q4_1, 50, columns)
    assert_products(rows.linear(x, weight), x, weight)
    assert torch.equal(rows.linear(x, weight), torch.cat([rows.linear(row[None], weight) for row in x]))


def test_nor_does_a_row_of_many(many_rows):
    torch.manual_seed(0)
    x, weight = torch.randn(205, 320), random_blocks(StoredKind.Q4_1, 50, 320)
    pieces = [many_rows.linear(piece, weight) for piece in x.split((17, 60, 128))]
    assert torch.equal(many_rows.linear(x, weight), torch.cat(pieces))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", StoredKind, ids=lambda kind: kind.name)
def test_expand(rows, kind, dtype):
    torch.manual_seed(0)
    columns = 288 if kind.length == 32 else 512
    weight = stacked((random_blocks(kind, 37, columns), random_blocks(kind, 3, columns)))
    want = exact(weight).to(dtype)
    near = {"rtol": torch.finfo(dtype).eps, "atol": 1e-4 if kind.length == 256 else 1e-6}
    torch.testing.assert_close(rows.expand(weight, slice(2, 39), dtype), want[2:39], **near)
    numbers = torch.tensor([39, 0, 36, 37, 0])
    torch.testing.assert_close(rows.expand(weight, numbers, dtype), want[numbers], **near)
    torch.testing.assert_close(rows.expand(weight[:7], numbers[1:2], dtype), want[:1], **near)


@pytest.mark.parametrize("others", [StoredKind.F16, StoredKind.Q4_0], ids=lambda kind: kind.name)
def test_products_of_many_rows_are_in_their_dtype(rows, others):
    torch.manual_seed(0)
    x = torch.randn(40, 512)
    weight = stacked((random_blocks(StoredKind.Q4_K, 35, 512), random_blocks(others, 2, 512)))
    assert_products(rows.linear(x, weight), x, weight)
    want = torch.nn.functional.linear(x.bfloat16(), exact(weight).bfloat16())
    torch.testing.assert_close(rows.linear(x.bfloat16(), weight), want)
    half = x.half() / 64
    torch.testing.assert_close(
        rows.linear(half, weight).double(), half.double() @ exact(weight).T, rtol=1e-2, atol=1e-1
    )


def test_linear_of_nothing_is_nothing(rows):
    weight, empty = random_blocks(StoredKind.Q8_0, 5, 64), torch.empty(5, 0, dtype=torch.uint8)
    assert rows.linear(torch.zeros(0, 64), weight).shape == (0, 5)
    for count in (2, 20):
        assert rows.linear(torch.zeros(count, 64), weight[3:3]).shape == (count, 0)
        assert rows.linear(torch.zeros(count, 64), weight).abs().max() == 0
        assert torch.equal(rows.linear(torch.zeros(count, 0), stored(empty, StoredKind.Q8_0, 0)), torch.zeros(count, 5))


@pytest.mark.parametrize("T", [3, 19])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_row_that_is_not_finite_has_no_finite_product(rows, value, T):
    x, weight = torch.randn(T, 512), random_blocks(StoredKind.Q4_K, 9, 512)
    clean = rows.linear(x, weight)
    x[1, 300] = value
    got = rows.linear(x, weight)
    assert not got[1].isfinite().any()
    assert torch.equal(got[::2], clean[::2])


@pytest.mark.parametrize("T", [2, 18])
@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e25, 3e38])
def test_rows_of_any_magnitude(rows, size, T):
    torch.manual_seed(0)
    x, weight = (torch.rand(T, 256) * 2 - 1) * size, random_blocks(StoredKind.Q8_0, 9, 256, 1e-4)
    got, want = rows.linear(x, weight).double(), x.double() @ exact(weight).T
    assert float((got - want).norm()) <= max(1e-4 * float(want.norm()), 1e-28)


def test_bad_arguments_are_named(rows):
    x, weight = torch.randn(2, 64), random_blocks(StoredKind.Q8_0, 4, 64)
    data = weight.parts[0].data

    def call(data, kind=StoredKind.Q8_0, x=x):
        rows.linear(x, StoredMatrix((StoredRows(data, kind),), x.shape[-1]))

    for wrong, message in [
        (lambda: call(data, StoredKind.Q4_0), r"of the kind 2 is torch.uint8 \[4, 68\]"),
        (lambda: call(data, x=torch.randn(2, 65)), "blocks of 32"),
        (lambda: call(data.to(torch.int8)), "torch.int8"),
        (lambda: call(data[:, ::2]), r"\[rows, 68\]"),
        (lambda: call(data.repeat(1, 2)[:, :68]), r"strides \(136, 1\)"),
        (lambda: call(data[0]), "bytes of a row"),
        (lambda: call(data.to("meta")), "meta"),
        (lambda: call(data, x=x[0]), r"x is \[64\]"),
    ]:
        with pytest.raises(KernelError, match=message):
            wrong()
    for many in (torch.randn(64, 2), torch.ones(20, 64, dtype=torch.int64)):
        with pytest.raises(KernelError, match=r"x is torch.+ \[\d+, .+the stored matrix has 64 columns"):
            rows.linear(many, weight)
    native, numbers = rows._native, torch.empty(4, 256, dtype=torch.uint8)
    for wrong, message in [
        (lambda: native.linear_stored(x, [(data, 9)], many=False), "kind 9, which no kernel reads"),
        (lambda: native.linear_stored(x, [(numbers, 0)], many=True), "many rows are not multiplied with the kind 0"),
        (lambda: native.linear_stored(x, [(data[:, :34], 8)], many=True), r"\[rows, 68\]"),
        (lambda: native.linear_stored(x[0], [(data, 8)], many=True), r"x is \[64\]"),
        (lambda: native.expand(data, 8, torch.empty(5, 64)), r"out is torch.float32 \[5, 64\] for 4 rows"),
        (lambda: native.expand(data, 8, torch.empty(4, 64).double()), "torch.float64"),
        (lambda: native.expand(data, 8, torch.empty(64, 4).T), "contiguous"),
        (lambda: native.expand(data, 8, torch.empty(4, 32)), r"\[rows, 34\]"),
        (lambda: native.expand(torch.empty(4, 128, dtype=torch.uint8), 0, torch.empty(4, 32)), "quantised"),
    ]:
        with pytest.raises(KernelError, match=message):
            wrong()
