"""Products with stored blocks on the device, and their numbers, against the package gguf and the plain twin."""

from dataclasses import replace

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference_rows
from scoutattention.kernels.triton.stored_blocks import matrix, numbers
from scoutattention.runtime.stored import GPU_KINDS, StoredKind, StoredMatrix, StoredRows, stacked

from ..columns import DTYPES
from ..stored_blocks import exact, random_blocks


def test_the_kinds_are_those_that_a_loader_keeps():
    assert set(numbers.GROUPINGS) == GPU_KINDS


every_kind = pytest.mark.parametrize("kind", numbers.GROUPINGS, ids=lambda kind: kind.name)


def on(column, weight: StoredMatrix) -> StoredMatrix:
    parts = tuple(StoredRows(column.put(part.data), part.kind) for part in weight.parts)
    return replace(weight, parts=parts, order=None if weight.order is None else column.put(weight.order))


@every_kind
@pytest.mark.parametrize(("lines", "columns"), [(1, 256), (19, 768)])
def test_numbers(column, kind, lines, columns):
    weight = random_blocks(kind, lines, columns)
    got = column.put(torch.full((lines, columns), torch.nan))
    numbers.fill(got, on(column, weight).parts[0])
    assert torch.equal(column.back(got).double(), exact(weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "lines", "columns"), [(1, 40, 256), (5, 33, 768), (17, 3, 256)])
@every_kind
def test_products(column, kind, T, lines, columns, dtype):
    weight, x = random_blocks(kind, lines, columns, 0.1), torch.randn(T, columns + 8).to(dtype)[:, :columns]
    got = column.back(matrix.linear(column.put(x), on(column, weight)))
    want = x.double() @ exact(weight).to(dtype).double().T
    near = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=near, atol=near * float(want.abs().max()))


def test_one_product_with_rows_of_several_kinds(column):
    kinds = (StoredKind.Q4_K, StoredKind.Q6_K, StoredKind.Q8_0)
    weight = stacked(tuple(random_blocks(kind, 20, 256, 0.1) for kind in kinds))
    weight, x = replace(weight, order=torch.randperm(256)), torch.randn(3, 256)
    got = column.back(matrix.linear(column.put(x), on(column, weight)))
    torch.testing.assert_close(got, reference_rows.linear(x, weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [StoredKind.Q3_K, StoredKind.F16], ids=lambda kind: kind.name)
def test_other_kinds_are_expanded(column, kind):
    weight, x = random_blocks(kind, 5, 256, 0.1), torch.randn(2, 256)
    got = column.back(matrix.linear(column.put(x), on(column, weight)))
    torch.testing.assert_close(got, reference_rows.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_a_product_of_nothing_is_nothing(column):
    weight = random_blocks(StoredKind.Q4_0, 5, 64)
    assert matrix.linear(column.put(torch.empty(0, 64)), on(column, weight)).shape == (0, 5)


def test_what_does_not_fit_is_named(column):
    weight = on(column, random_blocks(StoredKind.Q4_0, 5, 64))
    for x, message in [
        (torch.zeros(2, 32), r"x is \[2, 32\]: it must be \[any, 64\]"),
        (torch.zeros(2, 64, dtype=torch.float64), "x is torch.float64"),
    ]:
        with pytest.raises(KernelError, match=message):
            matrix.linear(column.put(x), weight)
    with pytest.raises(KernelError, match=r"out is \[5, 32\]: it must be \[5, 64\]"):
        numbers.fill(column.put(torch.zeros(5, 32)), weight.parts[0])
