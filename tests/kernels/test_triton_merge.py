"""The corrected merge: its first-order claim, and the device kernel against its twin."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference, reference_device
from scoutattention.kernels.triton_merge import merge_corrected
from scoutattention.types import BlockList, Partial

from .cases import Case, exact, make_call

SHAPE = (3, 2, 5, 80)


def some_sides(dtype: torch.dtype) -> tuple[Partial, Partial, torch.Tensor, torch.Tensor]:
    """Near and far partials over a wide range of weights: sequence 0 has no near keys, 1 neither, 2 no far ones."""
    torch.manual_seed(0)
    near = Partial(torch.randn(SHAPE), torch.randn(SHAPE[:3]) * 20)
    far = Partial(torch.randn(SHAPE), torch.randn(SHAPE[:3]) * 20, torch.randn(SHAPE))
    for tensors, rows in ((near[:2], [0, 1]), (far, [1, 2])):
        for tensor in tensors:
            tensor[rows, :, :2] = -torch.inf if tensor.dim() == 3 else 0.0
    q = torch.randn(SHAPE).to(dtype)
    return near, far, q, (q.float() + 0.3 * torch.randn(SHAPE)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_merge_corrected_is_its_twin(dtype, tolerance):
    near, far, q, q_hat = some_sides(dtype)
    out = torch.full(SHAPE, torch.nan, dtype=dtype)
    got = merge_corrected(near, far, q, q_hat, 0.2, out=out)
    assert got is out
    expected = reference_device.merge_corrected(near, far, q, q_hat, 0.2)
    assert expected.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(got[1, :, :2], torch.zeros(2, 2, 80, dtype=dtype)), "no keys at all"


def test_without_a_change_of_query_it_is_the_plain_merge():
    near, far, q, _ = some_sides(torch.float32)
    expected = reference.merge(near, far).out
    torch.testing.assert_close(merge_corrected(near, far, q, q, 0.2), expected)
    torch.testing.assert_close(reference.corrected(far, q, q, 0.2).lse, far.lse)


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
    corrected = (merge_corrected(near, far, call.q, scout, call.scale) - whole).norm()
    plain = (merge_corrected(near, far, call.q, call.q, call.scale) - whole).norm()
    assert corrected < 0.2 * plain


def test_bad_arguments_are_named():
    near, far, q, q_hat = some_sides(torch.float32)
    for changed, message in [
        ({"far": Partial(*far[:2])}, "mean_key"),
        ({"q_hat": q_hat[:2]}, "q_hat is"),
        ({"near": Partial(near.out, near.lse.double())}, "near.lse is torch.float64"),
        ({"far": far._replace(mean_key=far.mean_key.transpose(0, 1).contiguous().transpose(0, 1))}, "far.mean_key has"),
        ({"out": torch.empty(SHAPE, dtype=torch.float16)}, "out is torch.float16"),
    ]:
        with pytest.raises(KernelError, match=message):
            merge_corrected(**({"near": near, "far": far, "q": q, "q_hat": q_hat, "scale": 0.1} | changed))
