"""What the table of operations does not ask of the device's digest and rank kernels: other dtypes, bad arguments."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.triton.choices.choose import find_late, top_blocks
from scoutattention.kernels.triton.choices.split import split_choice, update_interest
from scoutattention.kernels.triton.digests.score import score_key_codes, score_min_max
from scoutattention.types import GuardRequest, SplitRequest

from ..columns import DTYPES, assert_near, wide

B, H, G, D, N, S = 2, 2, 3, 40, 5, 12


def scored() -> dict:
    torch.manual_seed(0)
    return {
        "q": torch.randn(B, H, G, D),
        "pages": torch.randint(0, S, (B, H, N)).int(),
        "closed": torch.full((B,), N),
    }


def test_bounds_in_bfloat16_lose_nothing():
    args, keys = scored(), torch.randn(S, H, 8, D).to(torch.bfloat16)
    digests = reference.min_max(keys)
    assert torch.equal(digests, digests.to(torch.bfloat16).float())
    got = score_min_max(**args, digests=digests.to(torch.bfloat16))
    torch.testing.assert_close(got, reference.score_min_max(args["q"], digests, args["pages"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queries_and_bounds_of_one_dtype(column, dtype):
    args, digests = scored(), reference.min_max(torch.randn(S, H, 8, D)).to(dtype)
    q = args["q"].to(dtype)
    got = score_min_max(*column.put((q, digests, args["pages"], args["closed"])))
    assert_near(column.back(got), reference.score_min_max(*wide((q, digests)), args["pages"]), 1e-3)


def test_queries_of_half_precision_score_codes(column):
    args, (codes, bounds) = scored(), reference.key_codes(torch.randn(S, H, 8, D))
    args["q"] = args["q"].to(torch.float16)
    want = reference.score_key_codes(args["q"], codes, bounds, args["pages"])
    got = column.back(score_key_codes(*column.put((args["q"], codes, bounds, args["pages"], args["closed"]))))
    tolerance = 1e-3 if column.compiled else 1e-4
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_bad_arguments_of_scores_are_named():
    args, (codes, bounds) = scored(), reference.key_codes(torch.randn(S, H, 8, D))
    digests = torch.randn(S, H, 2 * D)
    bounded, coded = {"digests": digests}, {"codes": codes, "bounds": bounds}
    for function, good, changed, message in [
        (score_min_max, bounded, {"digests": digests[..., :D]}, r"digests is \[12, 2, 40\]: it must be \[any, 2, 80\]"),
        (score_min_max, bounded, {"pages": args["pages"].long()}, "pages is torch.int64"),
        (score_min_max, bounded, {"q": args["q"].transpose(2, 3).contiguous().transpose(2, 3)}, "q has strides"),
        (score_key_codes, coded, {"codes": codes[:, :, :1]}, "codes is"),
        (score_key_codes, coded, {"codes": codes.int()}, "codes is torch.int32"),
        (score_key_codes, coded, {"bounds": bounds[:3]}, "bounds is"),
        (score_key_codes, coded, {"bounds": bounds.float()}, "bounds is torch.float32"),
        (score_key_codes, coded, {"pages": args["pages"][:1]}, "pages is"),
        (score_key_codes, coded, {"pages": args["pages"][:, 0]}, "pages is"),
        (score_key_codes, coded, {"closed": args["closed"].int()}, "closed is torch.int32"),
    ]:
        with pytest.raises(KernelError, match=message):
            function(**(args | good | changed))


def test_bad_arguments_of_choices_are_named():
    wishes, closed, mask = torch.rand(B, H, N), torch.full((B,), N), torch.ones(B, dtype=torch.bool)
    blocks, chosen = torch.zeros(B, H, 3, dtype=torch.int64), torch.zeros(B, H, 3, dtype=torch.bool)
    slots, rows = (torch.zeros(B, H, N, dtype=torch.int64), 3), (mask, mask, torch.zeros(B))
    scores, wished, counts = torch.rand(B, H, G, N), torch.rand(B, H, 3), torch.zeros(2, B, H, dtype=torch.int64)
    split = SplitRequest(blocks, None, wished, closed, slots, rows, 1, counts)
    guard = GuardRequest((blocks, chosen, wished), (blocks, chosen), torch.zeros(B, H), mask, 1, counts)
    for call, message in [
        (lambda: top_blocks(scores.double(), closed, 2, (1, 1), largest=False), "scores is"),
        (lambda: top_blocks(scores, closed.int(), 2, (1, 1), largest=False), "closed is torch.int32"),
        (lambda: split_choice(split._replace(candidates=blocks.int())), "candidates is torch.int32"),
        (lambda: split_choice(split._replace(picks=blocks.int())), "picks is torch.int32"),
        (lambda: split_choice(split._replace(candidates=blocks[..., :2].contiguous())), "3 blocks are chosen of 2"),
        (lambda: split_choice(split._replace(wishes=wished[:1])), "candidates is"),
        (lambda: split_choice(split._replace(rows=(mask, mask.int(), rows[2]))), "all_of_it is"),
        (lambda: split_choice(split._replace(slots=(slots[0].int(), 3))), "slot_of is"),
        (lambda: split_choice(split._replace(counts=counts.int())), "counts is"),
        (lambda: update_interest(wishes[:1], blocks, wished, mask, 0.5), "interest is"),
        (lambda: update_interest(wishes, blocks.int(), wished, mask, 0.5), "blocks is torch.int32"),
        (lambda: update_interest(wishes, blocks, wished, mask[:1], 0.5), "rows is"),
        (lambda: find_late(guard._replace(scouted=(blocks[:1], chosen))), "scouted is"),
        (lambda: find_late(guard._replace(scout_error=torch.zeros(1, H))), "scout_error is"),
        (lambda: find_late(guard._replace(wanted=(blocks, chosen.int(), wished))), "absent is"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
