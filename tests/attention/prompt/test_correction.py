"""Corrections are fitted with few operations, and are as good as those of an orthonormal basis in float64."""

import pytest
import torch

from scoutattention.attention.prompt import correction
from scoutattention.attention.prompt.correction import ITERATIONS, PRIOR, Problem, fit_low_rank
from scoutattention.kernels.plain import PlainOps

E, DIMS = 128, 16
OPS = PlainOps(torch.device("cpu"))


def problem(count: int, orders: float, noise: float, scale: float = 1.0) -> Problem:
    """Inputs z [count, E], changes, and a weight [E, E]: strengths fall by so many orders of magnitude in DIMS dims."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(2, E, E)).Q
    z = torch.randn(count, E)
    change = z @ (left * 10 ** (-orders / 2 * torch.arange(E) / DIMS)) @ right + noise * torch.randn(count, E)
    return Problem(scale * z, scale * change, torch.randn(E, E))


def ridge(z: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """What ridge regression makes of z, [E, E]."""
    return torch.linalg.solve(z.T @ z + PRIOR * z.square().mean() * torch.eye(E, dtype=z.dtype), z.T @ change)


def start() -> torch.Tensor:
    """That of the iteration."""
    return torch.randn(E, DIMS, generator=torch.Generator().manual_seed(0))


def by_qr(z: torch.Tensor, change: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The correction [E, E] of the same subspace iteration, with an orthonormal basis in each step."""
    full, main = ridge(z, change), start().to(z.dtype)
    moments = full.T @ (z.T @ z) @ full
    for _ in range(ITERATIONS):
        main = torch.linalg.qr(weight @ (moments @ (weight.T @ main))).Q
    back = weight.T @ main
    return full @ back @ torch.linalg.pinv(back.T @ moments @ back, rtol=1e-5, hermitian=True) @ back.T @ moments


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("orders", [0, 3, 6, 12])
@pytest.mark.parametrize("count", [E // 2, 3 * E])
def test_of_strengths_of_any_range_it_is_as_good_as_an_orthonormal_basis(count, orders, noise):
    z, change, weight = problem(count, orders, noise)
    left, right = fit_low_rank(Problem(z, change, weight), DIMS, OPS)
    z, change, weight, left, right = (each.double() for each in (z, change, weight, left, right))
    wanted = z @ ridge(z, change) @ weight.T
    mine, theirs = ((z @ fitted @ weight.T - wanted).norm() for fitted in (left @ right.T, by_qr(z, change, weight)))
    assert mine < 1.001 * theirs


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_inputs_of_any_size_have_the_same_correction(scale):
    left, right = fit_low_rank(problem(3 * E, 2, 0.01), DIMS, OPS)
    other_left, other_right = fit_low_rank(problem(3 * E, 2, 0.01, scale), DIMS, OPS)
    torch.testing.assert_close(other_left @ other_right.T, left @ right.T, rtol=1e-3, atol=1e-3)


def test_columns_stay_independent_however_alike_they_are():
    """All their singular values are nearly 1."""
    torch.manual_seed(0)
    columns = torch.randn(2, E, 1) + 1e-5 * torch.randn(2, E, DIMS)
    sizes = torch.linalg.svdvals(correction._independent(columns, OPS))
    assert sizes.min() > 0.9
    assert sizes.max() < 1.01
    assert not correction._independent(torch.zeros(2, E, DIMS), OPS).any()
