"""A prompt's attention: the memory that it takes, and that pieces and turns change nothing."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scoutattention.attention.prompt import prefill, trial
from scoutattention.attention.prompt.prefill import PromptAttention
from scoutattention.attention.softmax import Softmax
from scoutattention.config import ScoutConfig
from scoutattention.kernels.plain import PlainOps
from scoutattention.kernels.reference_prompt import causal, causal_by_group, causal_by_head
from scoutattention.types import Rope
from tests.attention.rig import Rig


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
    for last in (1, 5, 16):
        torch.testing.assert_close(attend(q[-last:], k, v, 0.3), want[-last:])


@pytest.mark.parametrize("size", [5, 64, 100])
def test_a_layer_in_pieces_places_what_a_layer_at_once_does(size):
    """Voters and samples have tokens of several pieces, and pieces without any sampled token."""
    whole, pieces = placed(100, 100), placed(100, size)
    assert len(whole) == len(pieces) == 2
    for one, other in zip(whole, pieces, strict=True):
        for a, b in zip(
            (one.voters, one.k, one.v, *one.sample[:2]), (other.voters, *other[1:3], *other.sample[:2]), strict=True
        ):
            torch.testing.assert_close(a, b, atol=0, rtol=0)
        assert one.sample.q.shape[0] == 34


def placed(tokens, size):
    """The two layers of a prompt that was read in pieces."""
    torch.manual_seed(3)
    found = []
    cpu = torch.device("cpu")
    sizes = {"closed": [0], "block_size": 8, "device": cpu, "num_layers": 2, "resident": True}
    empty = SimpleNamespace(**sizes, read_prefix=lambda layer, row: torch.empty(2, 0, 3, 16))
    reader = PromptAttention(None, empty, SimpleNamespace(fitted=False), Softmax(PlainOps(cpu), 0.3), None, None)
    reader._place = lambda row, layer, waiting, ends: iter(found.append(waiting.pop()) or ())
    attend = reader.begin(0, Rope(torch.randn(tokens, 16), torch.randn(tokens, 16)))
    for layer in range(2):
        layer_inputs = (*prompt(tokens), torch.randn(tokens, 8))
        for start in range(0, tokens, size):
            attend(layer, *(part[start : start + size] for part in layer_inputs))
    return found


@pytest.mark.parametrize("quota", [None, 4])
def test_a_prompt_in_short_turns_is_bit_for_bit_the_prompt_at_once(quota, monkeypatch):
    """Whoever else runs between two turns: the native kernel sums the keys of a position in the same order."""
    whole = Rig(ScoutConfig(block_size=8), quota=quota)
    outs = whole.add(203)
    monkeypatch.setattr(prefill, "TURN_PAIRS", 41 * 203)
    monkeypatch.setattr(prefill, "LEAST_TURN", 41)
    monkeypatch.setattr(prefill, "TURN_BLOCKS", 10)
    shared = Rig(ScoutConfig(block_size=8), quota=quota)
    turns = Counting(shared.prompt)
    shared.prompt = turns
    for (_, one), (_, other) in zip(outs, shared.add(203), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    # Before each of 5 parts and behind the last; behind writing in 3, fitting and digesting in 3; with slots, behind
    # filling and trying.
    assert turns.counts == [6 + (7 if quota is None else 9)] * 3
    for one, other in zip(closed_blocks(whole), closed_blocks(shared), strict=True):
        torch.testing.assert_close(one, other)


def closed_blocks(rig):
    """What is kept of the closed blocks of the sequence in row 0: keys, values and digests."""
    pages = rig.store.pages.table[0, : rig.store.closed[0]].long()
    return [part[:, pages] for part in (*rig.store.pages.pool.content, *rig.digests.content())]


class Counting:
    """A prompt's attention that counts the turns of each piece."""

    def __init__(self, prompt):
        self._prompt = prompt
        self.finish = prompt.finish
        self.counts = []

    def begin(self, row, rope):
        in_turns = self._prompt.begin_in_turns(row, rope)

        def attend(*piece):
            work, count = in_turns(*piece), 0
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    self.counts.append(count)
                    return end.value
                count += 1

        return attend


@pytest.fixture(autouse=True)
def few_tried(monkeypatch):
    monkeypatch.setattr(trial, "TRIED", (34, 40))
