"""The native merge, correction and scout error against their plain twins, on every instruction set."""

import pytest
import torch
from torch import Tensor

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime import workers as cpu
from scoutattention.types import Partial

INFINITY = float("inf")


@pytest.fixture(scope="module", params=cpu.isa_levels())
def ops(request):
    with cpu.Workers(1, isa=request.param) as workers:
        yield NativeOps(workers)


def make(G: int, D: int, seed: int) -> tuple[Partial, Tensor]:
    """A partial with a mean key, and queries."""
    generator = torch.Generator().manual_seed(seed)
    out, mean_key, q = torch.randn(3, 2, 3, G, D, generator=generator)
    return Partial(out, torch.randn(2, 3, G, generator=generator) * 5, mean_key), q


@pytest.mark.parametrize(("G", "D"), [(1, 64), (3, 80), (7, 24), (2, 7)])
def test_all_are_the_reference(ops, G, D):
    (a, q), (b, q_hat) = make(G, D, 0), make(G, D, 1)
    got, want = ops.merge(a, b), reference.merge(a, b)
    torch.testing.assert_close((got.out, got.lse), (want.out, want.lse))
    got = ops.corrected(a, q, q_hat, 0.3)
    torch.testing.assert_close(got.lse, reference.corrected(a, q, q_hat, 0.3).lse)
    assert got.out is a.out
    torch.testing.assert_close(ops.scout_error(a, b, q, q_hat), reference.scout_error(a, b, q, q_hat))


def test_a_side_without_keys_leaves_the_other_as_it_is(ops):
    a, _ = make(3, 16, 0)
    none = Partial(torch.zeros_like(a.out), torch.full_like(a.lse, -INFINITY))
    for merged in (ops.merge(a, none), ops.merge(none, a)):
        assert torch.equal(merged.out, a.out)
        assert torch.equal(merged.lse, a.lse)
    nothing = ops.merge(none, none)
    assert (nothing.out == 0).all()
    assert (nothing.lse == -INFINITY).all()
    q, q_hat = torch.randn(2, *a.out.shape)
    assert (ops.scout_error(none, a, q, q_hat) == 0).all()


def test_what_is_no_number_stays(ops):
    (a, q), (b, q_hat) = make(3, 16, 0), make(3, 16, 1)
    a.lse[0, 0, 0] = torch.nan
    merged = ops.merge(a, b)
    assert merged.lse.isnan().nonzero().tolist() == [[0, 0, 0]]
    assert merged.out[0, 0, 0].isnan().all()
    assert ops.scout_error(a, b, q, q_hat).isnan().nonzero().tolist() == [[0, 0]]
    q[1, 2] = 0
    assert not (ops.scout_error(b, b, q, q_hat)[1, 2] < INFINITY)


def test_bad_arguments_are_named(ops):
    (a, q), (b, q_hat) = make(3, 16, 0), make(3, 16, 1)
    for call, message in [
        (lambda: ops.merge(a, b._replace(lse=b.lse[:1])), r"\[1, 3, 3\]"),
        (lambda: ops.merge(a, b._replace(lse=b.lse.double())), "float64"),
        (lambda: ops.merge(a, b._replace(out=b.out.mT.contiguous().mT)), "contiguous"),
        (lambda: ops.corrected(a, q, q_hat[:1], 1.0), r"\[1, 3, 3, 16\]"),
        (lambda: ops.corrected(a._replace(mean_key=None), q, q_hat, 1.0), "no mean key"),
        (lambda: ops.scout_error(a, b, q[0], q_hat[0]), r"q is \[3, 3, 16\]: it must be \[B, H, G, D\]"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
