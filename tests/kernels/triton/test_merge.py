"""The correction of a far part: its first-order claim, and what the device kernels refuse."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.triton.merge import corrected, merge, scout_error
from scoutattention.types import BlockList, Partial

from ..cases import Case, exact, make_call

SHAPE = (3, 2, 5, 80)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_queries_of_half_precision(column, dtype):
    far = Partial(torch.randn(SHAPE), torch.randn(SHAPE[:3]), torch.randn(SHAPE))
    q, q_hat = torch.randn(2, *SHAPE).to(dtype)
    expected = reference.corrected(far, q, q_hat, 0.2).lse
    got = column.back(corrected(*column.put((far, q, q_hat)), 0.2).lse)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    expected = reference.scout_error(far, far, q.float(), q_hat.float())
    got = column.back(scout_error(*column.put((far, far, q, q_hat))))
    torch.testing.assert_close(got, expected, rtol=1e-4 if column.compiled else 1e-5, atol=1e-5)


def test_the_correction_leaves_an_error_of_second_order():
    call = make_call(Case("far", lengths=(32, 7)), torch.float32)
    q, step = call.q.double(), torch.randn_like(call.q).double()

    def error(size: float) -> float:
        scout = q + size * step
        far = reference.partial(scout, call.k.double(), call.v.double(), call.blocks, call.scale, with_mean_key=True)
        return float((reference.corrected(far, q, scout, call.scale).lse - exact(call).lse).abs().max())

    assert error(1e-3) > 0
    assert error(1e-2) / error(1e-3) == pytest.approx(100, rel=0.1)


def test_far_keys_weigh_what_they_do_for_the_true_query():
    """Near and far halves of one list; of the far one's results only out is the true query's."""
    call = make_call(Case("whole"), torch.float32)
    halves = [
        BlockList(call.blocks.index, call.blocks.length * half.int())
        for half in (torch.arange(8) < 4, torch.arange(8) >= 4)
    ]
    scout = call.q + 0.05 * torch.randn_like(call.q)
    near, true = (reference.partial(call.q, call.k, call.v, half, call.scale) for half in halves)
    far = reference.partial(scout, call.k, call.v, halves[1], call.scale, with_mean_key=True)._replace(out=true.out)
    whole = exact(call).out
    better = (merge(near, corrected(far, call.q, scout, call.scale)).out - whole).norm()
    plain = (merge(near, far).out - whole).norm()
    assert better < 0.2 * plain


def test_bad_arguments_are_named():
    near, far = Partial(torch.randn(SHAPE), torch.randn(SHAPE[:3])), Partial(torch.randn(SHAPE), torch.randn(SHAPE[:3]))
    q, key = torch.randn(SHAPE), torch.randn(SHAPE)
    with_key, strided = far._replace(mean_key=key), key.transpose(0, 1).contiguous().transpose(0, 1)
    for call, message in [
        (lambda: corrected(far, q, q, 0.1), "mean_key"),
        (lambda: corrected(with_key, q, q[:2], 0.1), "q_hat is"),
        (lambda: corrected(far._replace(mean_key=strided), q, q, 0.1), "far.mean_key has"),
        (lambda: merge(near, Partial(far.out, far.lse.double())), "b.lse is torch.float64"),
        (lambda: merge(near, Partial(far.out[:2], far.lse)), "b.out is"),
        (lambda: scout_error(far, Partial(near.out, near.lse[:2]), q, q), "near.lse is"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
