"""Block weights on the device, run by Triton's interpreter, against their twin."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.reference_device import block_weights as twin
from scoutattention.kernels.triton_digest import block_weights

from .cases import GARBAGE


def some_weights(B: int, H: int, G: int, D: int, N: int, dtype: torch.dtype) -> dict:
    """Scattered pages; sequence 0 has half of the blocks, the first block a bonus."""
    torch.manual_seed(0)
    S = N + 7
    bonus = torch.zeros(B, 1, N)
    bonus[..., :1], bonus[0, :, N // 2 :] = 2.0, -torch.inf
    return {
        "q": torch.randn(B, H, G, D).to(dtype),
        "digests": reference.min_max(torch.randn(S, H, 16, D)).to(dtype),
        "pages": torch.stack([torch.randperm(S)[:N] for _ in range(B)]).to(torch.int32),
        "bonus": bonus,
        "scale": D**-0.5,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("B", "H", "G", "D", "N"),
    [
        (2, 2, 3, 64, 150),
        (1, 3, 7, 128, 65),
        (2, 1, 1, 24, 64),
        (3, 1, 2, 80, 1),
        (1, 1, 4, 16, 0),
        (1, 1, 2, 16, 1300),
    ],
)
def test_block_weights_are_their_twin(B, H, G, D, N, dtype):
    args = some_weights(B, H, G, D, N, dtype)
    out = torch.full((B, H, N), torch.nan)
    unused = args["pages"].masked_fill(args["bonus"][:, 0] == -torch.inf, GARBAGE)
    assert block_weights(**(args | {"pages": unused}), out=out) is out
    expected = twin(**args)
    assert torch.equal(out.isinf(), expected.isinf())
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_weights_are_shares_and_the_bonus_comes_on_top():
    args = some_weights(2, 2, 3, 64, 40, torch.float32)
    weights = block_weights(**args)
    torch.testing.assert_close(weights[1].sum(-1), torch.tensor([3.0, 3.0]))
    assert (weights[1, :, 0] >= 2).all()
    assert (weights[0, :, 20:] == -torch.inf).all()
    torch.testing.assert_close(weights[0, :, :20].sum(-1), torch.tensor([3.0, 3.0]))


def test_a_sequence_without_blocks_has_no_weights():
    args = some_weights(1, 2, 3, 64, 70, torch.float32)
    args["bonus"][:] = -torch.inf
    assert (block_weights(**args) == -torch.inf).all()
    assert (twin(**args) == -torch.inf).all()


def test_digests_in_the_dtype_of_the_keys_lose_nothing():
    keys = torch.randn(9, 2, 32, 64).to(torch.bfloat16)
    digests = reference.min_max(keys)
    assert torch.equal(digests, digests.to(torch.bfloat16).float())


def test_bad_arguments_are_named():
    args = some_weights(1, 2, 3, 64, 8, torch.float32)
    for changed, message in [
        ({"digests": args["digests"][..., :64]}, r"digests is \[15, 2, 64\]: it must be \[any, 2, 128\]"),
        ({"pages": args["pages"].long()}, "pages is torch.int64"),
        ({"bonus": args["bonus"][0]}, "bonus is"),
        ({"q": args["q"].transpose(2, 3).contiguous().transpose(2, 3)}, "q has strides"),
    ]:
        with pytest.raises(KernelError, match=message):
            block_weights(**(args | changed))
