"""Stored matrices against the package gguf: what blocks stand for, rows, and finite scales."""

from dataclasses import replace

import gguf
import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference_rows
from scoutattention.kernels.reference_stored import expand, finite
from scoutattention.runtime.stored import KINDS, StoredKind, columns_of, stacked, stored

from .stored_blocks import exact, random_blocks


def test_kinds_are_those_of_gguf():
    for number, kind in KINDS.items():
        assert gguf.GGMLQuantizationType(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (kind.length, kind.size)


@pytest.mark.parametrize("most", [6e-8, 1.0, 65504.0])
@pytest.mark.parametrize("kind", StoredKind, ids=lambda kind: kind.name)
def test_blocks_stand_for_what_gguf_says(kind, most):
    torch.manual_seed(0)
    weight = random_blocks(kind, 5, 512, most)
    assert torch.equal(expand(weight, slice(None), torch.float32).double(), exact(weight))


def test_rows_are_chosen_by_slices_and_numbers():
    torch.manual_seed(0)
    weight = stacked(tuple(random_blocks(kind, 3, 256) for kind in (StoredKind.Q4_0, StoredKind.Q6_K, StoredKind.BF16)))
    want = exact(weight).to(torch.bfloat16)
    assert weight.shape == want.shape
    numbers = torch.tensor([8, 0, 4, 4, 2, 3])
    assert torch.equal(expand(weight, numbers, torch.bfloat16), want[numbers])
    assert weight[:9] is weight
    for rows in (slice(None), slice(2, 7), slice(0, 3), slice(5, 5), slice(4, 2), slice(-1, None)):
        assert torch.equal(expand(weight, rows, torch.bfloat16), want[rows])
        assert torch.equal(expand(weight[rows], slice(None), torch.bfloat16), want[rows])


def test_a_long_matrix_is_expanded_in_tiles(monkeypatch):
    monkeypatch.setattr("scoutattention.kernels.reference_stored.TILE", 256)
    weight = random_blocks(StoredKind.Q4_1, 7, 64)
    assert torch.equal(expand(weight, slice(None), torch.float32).double(), exact(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_go_through_tiles(dtype, monkeypatch):
    torch.manual_seed(0)
    weight, x = random_blocks(StoredKind.Q5_1, 23, 64), torch.randn(5, 64).to(dtype)
    whole = x @ exact(weight).to(dtype).T
    for lines in (1, 4, 22, 23, 100):
        monkeypatch.setattr(reference_rows, "PRODUCT_TILE", lines * 64)
        torch.testing.assert_close(reference_rows.linear(x, weight), whole, rtol=2e-2, atol=1e-2)


def test_products_with_stored_rows():
    torch.manual_seed(0)
    weight, x = (
        stacked((random_blocks(StoredKind.Q4_K, 5, 256), random_blocks(StoredKind.Q8_0, 3, 256))),
        torch.randn(4, 256),
    )
    torch.testing.assert_close(
        reference_rows.linear(x, weight), (x.double() @ exact(weight).T).float(), rtol=1e-5, atol=1e-3
    )


def test_columns_may_be_in_another_order():
    torch.manual_seed(0)
    order, x = torch.randperm(64), torch.randn(3, 64)
    plain = random_blocks(StoredKind.Q4_1, 5, 64)
    weight, want = replace(plain, order=order), torch.empty(5, 64, dtype=torch.float64)
    want[:, order] = exact(plain)
    assert torch.equal(expand(weight, slice(None), torch.float32).double(), want)
    assert torch.equal(expand(weight[1:4], torch.tensor([2, 0]), torch.float32).double(), want[[3, 1]])
    assert torch.equal(expand(stacked((weight, weight)), slice(4, 6), torch.float32).double(), want[[4, 0]])
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(reference_rows.linear(x, weight), (x.double() @ want.T).float(), **close)
    for other in (None, order.flip(0)):
        with pytest.raises(KernelError, match="in different orders cannot be stacked"):
            stacked((weight, replace(plain, order=other)))
    with pytest.raises(KernelError, match="columns 0 to 32 are spread over the blocks"):
        columns_of(weight, 0, 32)


@pytest.mark.parametrize("kind", StoredKind, ids=lambda kind: kind.name)
def test_a_scale_that_is_not_finite_is_found(kind):
    clean = random_blocks(kind, 4, 512, 65504.0)
    assert finite(clean)
    size, data = kind.size, clean.parts[0].data
    bad = torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=kind.dtype or torch.float16)
    for at in kind.scales or (0,):
        for value in bad:
            broken = data.clone()
            broken[3, size + at : size + at + value.element_size()] = value.view(1).view(torch.uint8)
            assert not finite(stacked((clean, stored(broken, kind, 512))))


def test_what_does_not_fit_is_named():
    weight = random_blocks(StoredKind.Q8_0, 4, 64)
    data = weight.parts[0].data
    for call, message in [
        (lambda: stored(data, StoredKind.Q8_0, 96), r"a matrix of 96 columns in Q8_0 is torch.uint8 \[4, 68\]"),
        (lambda: stored(data, StoredKind.Q4_0, 65), "multiples of 32"),
        (lambda: stored(data.to(torch.int8), StoredKind.Q8_0, 64), "torch.int8"),
        (lambda: weight[::2], "a step of 2"),
        (lambda: stacked((weight, random_blocks(StoredKind.Q8_0, 4, 32))), r"matrices of \[32, 64\] columns"),
        (lambda: expand(weight, torch.tensor([4]), torch.float32), "rows 4 to 4 leave a matrix of 4 rows"),
        (lambda: expand(weight, torch.tensor([-1]), torch.float32), "rows -1 to -1"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
