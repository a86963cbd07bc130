"""What memory a prompt's attention takes beside its result."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoutattention.attention.prompt.prefill import causal, causal_by_group, causal_by_head


class Allocated(TorchDispatchMode):
    """Counts bytes of the tensors that operations return in memory of their own."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.seen[storage.data_ptr()] = storage.nbytes()
        return result


def prompt(T=200, H=3, G=5, D=16):
    return (torch.randn(T, *shape) for shape in ((H, G, D), (H, D), (H, D)))


def test_no_key_is_copied_for_each_query_head():
    """What is allocated is the result, once more in another order, and its log-sum-exp."""
    q, k, v = prompt()
    inputs = {tensor.untyped_storage().data_ptr() for tensor in (q, k, v)}
    with Allocated() as allocated:
        out = causal(q, k, v, 0.3)
    taken = sum(size for at, size in allocated.seen.items() if at not in inputs)
    assert out.nbytes <= taken <= 2.1 * out.nbytes


@pytest.mark.parametrize("attend", [causal_by_group, causal_by_head])
def test_each_query_head_attends_to_its_own_keys_up_to_its_own_position(attend):
    q, k, v = prompt(T=17)
    scores = (0.3 * torch.einsum("thgd,shd->hgts", q, k)).masked_fill(torch.ones(17, 17).triu(1).bool(), -torch.inf)
    want = torch.einsum("hgts,shd->thgd", scores.softmax(-1), v)
    out = attend(q, k, v, 0.3)
    assert out.is_contiguous()
    torch.testing.assert_close(out, want)
