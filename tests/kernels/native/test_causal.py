"""The native attention of a prompt, on every instruction set."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.reference_prompt import causal
from scoutattention.runtime import workers as cpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", params=cpu.isa_levels())
def ops(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield NativeOps(workers)


def prompt(n, T, H=2, G=3, D=64):
    torch.manual_seed(n + T)
    return torch.randn(n, H, G, D), torch.randn(T, H, D), torch.randn(T, H, D)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_reference(ops, dtype):
    tensors = [t.to(dtype) for t in prompt(150, 200)]
    want = causal(*(t.double() for t in tensors), 0.3)
    got = ops.causal(*tensors, 0.3)
    assert got.dtype == dtype
    assert (got.double() - want).norm() < {torch.float32: 1e-6, torch.float16: 1e-3}.get(dtype, 1e-2) * want.norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 37, 64, 100])
def test_a_prompt_in_pieces_has_the_same_numbers(ops, dtype, size):
    q, k, v = (t.to(dtype) for t in prompt(130, 130))
    whole = ops.causal(q, k, v, 0.3)
    pieces = [ops.causal(q[at : at + size], k[: at + size], v[: at + size], 0.3) for at in range(0, 130, size)]
    assert torch.equal(torch.cat(pieces), whole)


def test_scores_far_from_zero_do_not_overflow(ops):
    q, k, v = prompt(100, 100)
    q, k = 40 * q, 40 * k
    want = causal(q.double(), k.double(), v.double(), 0.3).float()
    torch.testing.assert_close(ops.causal(q, k, v, 0.3), want, atol=1e-2, rtol=0)  # scores of thousands, in float32


def test_what_is_no_number_reaches_later_positions_alone(ops):
    q, k, v = prompt(100, 100)
    k[70, 1] = torch.nan
    out = ops.causal(q, k, v, 0.3)
    assert out[:70].isfinite().all()
    assert out[:, 0].isfinite().all()
    assert out[70:, 1].isnan().all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda q, k, v: (q, k.half(), v), "torch.float16"),
        (lambda q, k, v: (q, k, v[:-1]), r"\[7, 2, 64\]"),
        (lambda q, k, v: (q, k[:3], v[:3]), r"n at most T"),
        (lambda q, k, v: (q[:, :1], k, v), r"\[5, 1, 3, 64\]"),
        (lambda q, k, v: (q, k.transpose(0, 1), v), "contiguous"),
        (lambda q, k, v: (q, k, v[0]), "v is"),
        (lambda q, k, v: (q.double(), k.double(), v.double()), "torch.float64"),
    ],
)
def test_a_bad_argument_is_named(ops, change, named):
    q, k, v = change(*prompt(5, 8))
    with pytest.raises(KernelError, match=named):
        ops._native.causal(q, k, v, 0.3, torch.empty(q.shape))
