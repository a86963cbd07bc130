"""Bounds of packed pages: they hold whatever the rows' dtype holds, and hide nothing that is not finite."""

import pytest
import torch
from torch import Tensor

from scoutattention.kernels import reference
from scoutattention.runtime import workers as cpu
from scoutattention.runtime.packed import Packed, pack
from scoutattention.types import BlockList

TOP = {8: 255, 4: 15}
POWERS = {torch.float16: (-6, 4), torch.bfloat16: (-38, 37), torch.float32: (-38, 37)}
"""Powers of ten of the channels' magnitudes."""

every_bits = pytest.mark.parametrize("bits", [8, 4])
every_dtype = pytest.mark.parametrize("dtype", POWERS, ids=str)
by_token = pytest.mark.parametrize("by_token", [False, True], ids=["by channel", "by token"])


def rows_of_any_magnitude(dtype: torch.dtype, offset: float, *shape: int) -> Tensor:
    """Rows whose channels have magnitudes of their own.   offset: of each channel's mean, in magnitudes."""
    torch.manual_seed(0)
    magnitudes = 10 ** torch.empty(shape[-1]).uniform_(*POWERS[dtype])
    return ((torch.rand(shape) * 2 - 1 + offset * torch.randn(shape[-1])) * magnitudes).to(dtype)


def steps(packed: Packed) -> Tensor:
    """As float64 [..., 1, D]."""
    return packed.bounds[..., 1:, :].double()


@every_bits
@every_dtype
@by_token
@pytest.mark.parametrize("offset", [0, 3])
def test_rows_of_any_magnitude_are_kept_within_half_a_step(dtype, bits, by_token, offset):
    rows = rows_of_any_magnitude(dtype, offset, 4, 2, 32, 80)
    packed = pack(rows, bits, by_token=by_token)
    error = (packed.float().double() - rows.double()).abs()
    assert (error <= 0.5001 * steps(packed)).all()
    assert packed.to(dtype).isfinite().all()
    low, high = rows.double().amin(-2), rows.double().amax(-2)
    widest = (high - low) / TOP[bits] * (1 + 2**-7) + low.abs() * 2**-7 / TOP[bits] * (1 + 2**-7)
    assert (steps(packed)[..., 0, :] <= widest + 2.0**-133).all()


@every_bits
@by_token
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        (torch.float16, [[65504, -65504, 1], [0, 65504, 65000], [65504, 65504, 65504], [6e-8, 0, 1.2e-7]]),
        (torch.bfloat16, [[3.38e38, -3.38e38, 0], [3.38e38, 0, 1e-38], [-3.38e38, -3.38e38, -3.38e38], [1e-40, 0, 1]]),
        (torch.float32, [[3e38, -3e38, 0], [3.4e38, 0, 1], [1e-45, 0, 3e-45], [-1e-38, -1e-38, 1e-38]]),
    ],
    ids=str,
)
def test_extremes_stay_finite(dtype, channels, bits, by_token):
    rows = torch.tensor(channels).T.to(dtype)
    packed = pack(rows, bits, by_token=by_token)
    got = packed.to(dtype)
    assert got.isfinite().all()
    allowed = 0.5001 * steps(packed) + 2.0**-133 + rows.double().abs() * torch.finfo(dtype).eps
    assert ((got.double() - rows.double()).abs() <= allowed).all()


@every_dtype
def test_a_channel_that_does_not_change_is_exact(dtype):
    """Where bfloat16 holds its value; 0 / 0 is not computed."""
    rows = torch.tensor([[0.0, -0.0, 1.5, -(2.0**-14), 2.0**15]]).to(dtype).expand(6, 5)
    assert torch.equal(pack(rows, 8, by_token=True).to(dtype), rows)


@every_bits
@every_dtype
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_channel_with_what_is_not_finite_is_not_finite(dtype, bits, bad):
    rows = torch.randn(3, 16, 8).to(dtype)
    rows[1, 5, 2] = bad
    got = pack(rows, bits, by_token=False).to(dtype)
    assert not got[1, :, 2].isfinite().any()
    rows[1, :, 2] = got[1, :, 2] = 0
    torch.testing.assert_close(got, rows, rtol=0, atol=0.3)


@pytest.mark.parametrize("isa", cpu.isa_levels())
@every_bits
def test_native_attention_to_channels_of_any_magnitude(isa, bits):
    """Scores of all channels are about as large; and each output is measured by its channel's magnitude."""
    torch.manual_seed(1)
    H, S, P, D = 2, 6, 32, 64
    key_sizes, value_sizes = 10 ** torch.empty(D).uniform_(-30, 30), 10 ** torch.empty(D).uniform_(-36, 36)
    q, k, v = torch.randn(1, H, 3, D) / key_sizes, torch.randn(S, H, P, D) * key_sizes, torch.randn(S, H, P, D)
    pools = pack(k, bits, by_token=False), pack(v * value_sizes, bits, by_token=True)
    blocks = BlockList(torch.arange(S).int().expand(1, H, S), torch.full((1, H, S), P).int())
    with cpu.Workers(1, isa=isa) as workers:
        got = workers.partial(q, *pools, blocks, 0.125)
    want = reference.partial(q.double(), *pools, blocks, 0.125)
    torch.testing.assert_close(got.out / value_sizes, (want.out / value_sizes).float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(got.lse, want.lse.float(), rtol=0, atol=1e-3)
