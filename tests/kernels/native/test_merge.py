"""The native merge, correction and doubt against their plain twins, on every instruction set."""

import pytest
import torch
from torch import Tensor

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native import merge as merging
from scoutattention.runtime import workers as cpu
from scoutattention.types import Partial

INFINITY = float("inf")


@pytest.fixture(scope="module", params=cpu.isa_levels())
def workers(request):
    with cpu.Workers(1, isa=request.param) as workers:
        yield workers


def make(G: int, D: int, seed: int) -> tuple[Partial, Tensor]:
    """A partial with a mean key, and queries."""
    generator = torch.Generator().manual_seed(seed)
    out, mean_key, q = torch.randn(3, 2, 3, G, D, generator=generator)
    return Partial(out, torch.randn(2, 3, G, generator=generator) * 5, mean_key), q


@pytest.mark.parametrize(("G", "D"), [(1, 64), (3, 80), (7, 24), (2, 7)])
def test_all_are_the_reference(workers, G, D):
    (a, q), (b, q_hat) = make(G, D, 0), make(G, D, 1)
    got, want = merging.merge(workers, a, b), reference.merge(a, b)
    torch.testing.assert_close((got.out, got.lse), (want.out, want.lse))
    got = merging.corrected(workers, a, q, q_hat, 0.3)
    torch.testing.assert_close(got.lse, reference.corrected(a, q, q_hat, 0.3).lse)
    assert got.out is a.out
    torch.testing.assert_close(merging.doubt(workers, a, b, q, q_hat), reference.doubt(a, b, q, q_hat))


def test_a_side_without_keys_leaves_the_other_as_it_is(workers):
    a, _ = make(3, 16, 0)
    none = Partial(torch.zeros_like(a.out), torch.full_like(a.lse, -INFINITY))
    for merged in (merging.merge(workers, a, none), merging.merge(workers, none, a)):
        assert torch.equal(merged.out, a.out)
        assert torch.equal(merged.lse, a.lse)
    nothing = merging.merge(workers, none, none)
    assert (nothing.out == 0).all()
    assert (nothing.lse == -INFINITY).all()
    q, q_hat = torch.randn(2, *a.out.shape)
    assert (merging.doubt(workers, none, a, q, q_hat) == 0).all()


def test_what_is_no_number_stays(workers):
    (a, q), (b, q_hat) = make(3, 16, 0), make(3, 16, 1)
    a.lse[0, 0, 0] = torch.nan
    merged = merging.merge(workers, a, b)
    assert merged.lse.isnan().nonzero().tolist() == [[0, 0, 0]]
    assert merged.out[0, 0, 0].isnan().all()
    assert merging.doubt(workers, a, b, q, q_hat).isnan().nonzero().tolist() == [[0, 0]]
    q[1, 2] = 0
    assert not (merging.doubt(workers, b, b, q, q_hat)[1, 2] < INFINITY)


def test_bad_arguments_are_named(workers):
    (a, q), (b, q_hat) = make(3, 16, 0), make(3, 16, 1)
    for call, message in [
        (lambda: merging.merge(workers, a, b._replace(lse=b.lse[:1])), r"\[1, 3, 3\]"),
        (lambda: merging.merge(workers, a, b._replace(lse=b.lse.double())), "float64"),
        (lambda: merging.merge(workers, a, b._replace(out=b.out.mT.contiguous().mT)), "contiguous"),
        (lambda: merging.corrected(workers, a, q, q_hat[:1], 1.0), r"\[1, 3, 3, 16\]"),
        (lambda: merging.corrected(workers, a._replace(mean_key=None), q, q_hat, 1.0), "no mean key"),
        (lambda: merging.doubt(workers, a, b, q[0], q_hat[0]), r"do not fit \[3, 3, 16\]"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
