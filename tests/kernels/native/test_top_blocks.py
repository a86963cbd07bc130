"""The native top blocks against their plain twin, on every instruction set."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.runtime import workers as cpu


@pytest.fixture(scope="module", params=cpu.isa_levels())
def ops(request):
    with cpu.Workers(2, isa=request.param) as workers:
        yield NativeOps(workers)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("always", [(0, 0), (1, 1), (3, 2)])
@pytest.mark.parametrize(("G", "N"), [(3, 248), (1, 16), (7, 37), (2, 5)])
def test_top_blocks_are_the_reference(ops, G, N, always, largest):
    torch.manual_seed(0)
    scores = torch.randn(3, 2, G, N) * 4
    closed = torch.tensor([N, N - 1, N // 2 + 1])
    for count in {1, N // 2, N}:
        want_blocks, _, want = reference.top_blocks(scores, closed, count, always, largest=largest)
        blocks, best, wishes = ops.top_blocks(scores, closed, count, always, largest=largest)
        torch.testing.assert_close(wishes, want, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(wishes.sum(-1), torch.ones(3, 2))
        assert torch.equal(best, wishes.gather(-1, blocks))
        exists = (blocks < closed[:, None, None]).sum(-1)
        assert (exists == closed.clamp(max=count)[:, None]).all()
        kept = [(b, h, int(exists[b, h])) for b in range(3) for h in range(2)]
        assert all(set(blocks[b, h, :n].tolist()) == set(want_blocks[b, h, :n].tolist()) for b, h, n in kept)


def test_the_most_wanted_come_first_and_equals_in_order(ops):
    scores = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0, 9.0])[None, None, None]
    blocks, *_ = ops.top_blocks(scores, torch.tensor([5]), 6, (1, 0), largest=False)
    assert blocks.tolist() == [[[0, 1, 3, 4, 2, 5]]]


def test_scores_that_are_no_numbers_choose_blocks_that_exist(ops):
    scores = torch.full((2, 1, 3, 40), torch.nan)
    scores[1, :, :, 7] = 1.0
    blocks, *_ = ops.top_blocks(scores, torch.tensor([40, 3]), 4, (1, 1), largest=False)
    assert all(len(set(row)) == 4 for row in blocks[:, 0].tolist())
    assert set(blocks[1, 0, :3].tolist()) == {0, 1, 2}
    assert blocks[0, 0, :2].tolist() == [0, 39], "sink and recent blocks all the same"


def test_a_sequence_without_blocks_wishes_for_nothing(ops):
    blocks, best, wishes = ops.top_blocks(torch.randn(2, 1, 3, 5), torch.tensor([5, 0]), 2, (1, 1), largest=False)
    assert wishes[1].tolist() == [[0.0] * 5]
    assert best[1].tolist() == [[0.0] * 2]
    assert blocks[1].tolist() == [[0, 1]]


def test_bad_arguments_are_named(ops):
    scores, closed = torch.randn(2, 1, 3, 5), torch.tensor([5, 4])
    for changed, message in [
        ({"scores": scores.double()}, "float64"),
        ({"scores": scores.repeat(1, 1, 1, 2)[..., ::2]}, "strides"),
        ({"scores": scores[0]}, r"\[1, 3, 5\]"),
        ({"scores": scores[:, :, :0]}, "G at least 1"),
        ({"closed": closed.int()}, "int32"),
        ({"closed": closed[:1]}, r"\[1\]"),
        ({"closed": closed + 1}, r"6 is outside 0\.\.5"),
        ({"closed": closed - 5}, "-1 is outside"),
        ({"count": 6}, r"count 6 is outside 0\.\.5"),
    ]:
        with pytest.raises(KernelError, match=message):
            ops.top_blocks(
                **({"scores": scores, "closed": closed, "count": 2, "always": (1, 1)} | changed), largest=False
            )
