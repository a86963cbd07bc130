"""Attention beside a sink logit, against the softmax that it stands for."""

import pytest
import torch

from scoutattention.attention.softmax import Softmax
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.reference import merge
from scoutattention.types import Partial

CPU = torch.device("cpu")
H, G, SCALE = 2, 3, 0.3
SINKS = torch.tensor([[[0.5, -2.0, 9.0], [3.0, 0.0, -20.0]]])


def expected(q, k, v):
    """The last n queries' weights of their keys and of one more score; q [n, H, G, D]."""
    n, T = len(q), len(k)
    scores = torch.einsum("nhgd,thd->hgnt", q, k) * SCALE
    scores.masked_fill_(torch.arange(T) > torch.arange(T - n, T)[:, None], -torch.inf)
    weights = torch.cat((scores, SINKS[0][..., None, None].expand(H, G, n, 1)), -1).softmax(-1)
    return torch.einsum("hgnt,thd->nhgd", weights[..., :-1], v)


@pytest.mark.parametrize("width", [16, 20])
@pytest.mark.parametrize("n", [1, 5, 9])
def test_a_prompt(width, n):
    q, k, v = torch.randn(n, H, G, width), torch.randn(9, H, width), torch.randn(9, H, width)
    made = Softmax(PlainOps(CPU), SCALE, SINKS).causal(0, q, k, v)
    torch.testing.assert_close(made, expected(q, k, v))
    assert made.is_contiguous()


def test_a_decode_step():
    q, k, v = torch.randn(1, H, G, 16), torch.randn(9, H, 16), torch.randn(9, H, 16)
    scores = torch.einsum("hgd,thd->hgt", q[0], k)[None] * SCALE
    keys = Partial(torch.einsum("bhgt,thd->bhgd", scores.softmax(-1), v), scores.logsumexp(-1))
    made = Softmax(PlainOps(CPU), SCALE, SINKS).beside_sink(0, keys)
    torch.testing.assert_close(made, expected(q, k, v))
    beside = Partial(torch.zeros_like(keys.out), SINKS)
    torch.testing.assert_close(made, merge(keys, beside).out)
