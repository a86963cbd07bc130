"""The plain kernels against PyTorch's own attention in float64, and digests as true bounds."""

import pytest
import torch

from scoutattention.kernels import reference
from scoutattention.types import BlockList

from .cases import CASES, Call, Case, exact, make_call


def listed(call: Call, b: int, h: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one sequence and head in float64, gathered block by block."""
    index, length = (table[b, h].tolist() for table in call.blocks)
    rows = [(call.k[i, h, :n], call.v[i, h, :n]) for i, n in zip(index, length, strict=True) if n > 0]
    keys, values = zip(*rows, strict=True) if rows else ((), ())
    empty = torch.empty(0, call.q.shape[-1])
    return torch.cat([empty, *keys]).double(), torch.cat([empty, *values]).double()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_partial_is_softmax_attention(case: Case):
    call = make_call(case, torch.float32)
    out, lse, mean_key = exact(call)
    for b in range(case.B):
        for h in range(case.H):
            keys, values = listed(call, b, h)
            if len(keys) == 0:
                assert not out[b, h].any()
                assert not mean_key[b, h].any()
                assert (lse[b, h] == -torch.inf).all()
                continue
            q = call.q[b, h].double()
            sdpa = torch.nn.functional.scaled_dot_product_attention
            torch.testing.assert_close(out[b, h], sdpa(q, keys, values, scale=call.scale))
            torch.testing.assert_close(mean_key[b, h], sdpa(q, keys, keys, scale=call.scale))
            torch.testing.assert_close(lse[b, h], torch.logsumexp(q @ keys.T * call.scale, dim=-1))


def test_mean_key_is_the_gradient_of_the_lse():
    case = Case("gradient", lengths=(32, 3))
    call = make_call(case, torch.float32)
    q = call.q.double().requires_grad_()
    result = reference.partial(q, call.k.double(), call.v.double(), call.blocks, call.scale, with_mean_key=True)
    (gradient,) = torch.autograd.grad(result.lse.sum(), q)
    torch.testing.assert_close(result.mean_key * call.scale, gradient)


def test_mean_key_only_when_asked():
    call = make_call(Case("plain"), torch.float32)
    assert reference.partial(call.q, call.k, call.v, call.blocks, call.scale).mean_key is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_is_float32_whatever_the_pool(dtype):
    call = make_call(Case("dtype"), dtype)
    result = reference.partial(call.q.to(dtype), call.k, call.v, call.blocks, call.scale)
    assert result.out.dtype == result.lse.dtype == torch.float32


def test_digests_bound_every_key_of_their_block():
    torch.manual_seed(0)
    S, H, P, D = 20, 2, 16, 64
    k = torch.randn(S, H, P, D)
    q = torch.randn(3, H, 4, D)
    pages = torch.rand(3, H, S).argsort(-1).to(torch.int32)
    bounds = reference.score_min_max(q, reference.min_max(k), pages)
    scores = torch.einsum("bhgd,bhnpd->bhgnp", q, k[pages.long(), torch.arange(H)[:, None]])
    slack = bounds[..., None] - scores
    assert slack.min() >= -1e-4
    assert slack.min() < slack.max() / 2, "a bound that is always far away would also pass"


def test_the_bound_of_a_block_of_one_key_is_its_score():
    torch.manual_seed(0)
    k, q = torch.randn(5, 2, 1, 64), torch.randn(1, 2, 3, 64)
    pages = torch.arange(5, dtype=torch.int32).expand(1, 2, -1)
    bounds = reference.score_min_max(q, reference.min_max(k), pages)
    torch.testing.assert_close(bounds, torch.einsum("bhgd,nhpd->bhgn", q, k))


def test_digests_of_lower_precision_keys_are_exact_float32():
    k = torch.randn(4, 2, 8, 64).to(torch.bfloat16)
    digests = reference.min_max(k)
    assert digests.dtype == torch.float32
    assert torch.equal(digests[..., :64], k.float().amax(-2))
    assert torch.equal(digests[..., 64:], k.float().amin(-2))


def test_an_index_of_a_skipped_block_is_not_looked_at():
    call = make_call(Case("skipped", lengths=(32, 0)), torch.float32)
    other = BlockList(call.blocks.index.masked_fill(call.blocks.length == 0, -5), call.blocks.length)
    first = reference.partial(call.q, call.k, call.v, call.blocks, call.scale)
    again = reference.partial(call.q, call.k, call.v, other, call.scale)
    assert torch.equal(first.out, again.out)
