"""What the table of operations does not ask of the device's digest and rank kernels: other dtypes, bad arguments."""

import pytest
import torch

from scoutattention.errors import KernelError
from scoutattention.kernels import reference
from scoutattention.kernels.triton.choice import blend, find_late, rank_blocks, sift
from scoutattention.kernels.triton.score_digests import score_digests, score_key_codes
from scoutattention.types import Lateness, Sifting

B, H, G, D, N, S = 2, 2, 3, 40, 5, 12


def scored() -> dict:
    torch.manual_seed(0)
    return {"q": torch.randn(B, H, G, D), "pages": torch.randint(0, S, (B, N)).int()}


def test_bounds_in_bfloat16_lose_nothing():
    args, keys = scored(), torch.randn(S, H, 8, D).to(torch.bfloat16)
    digests = reference.min_max(keys)
    assert torch.equal(digests, digests.to(torch.bfloat16).float())
    got = score_digests(**args, digests=digests.to(torch.bfloat16))
    torch.testing.assert_close(got, reference.score_digests(args["q"], digests, args["pages"]), rtol=1e-4, atol=1e-4)


def test_queries_of_half_precision_score_codes():
    args, (codes, bounds) = scored(), reference.key_codes(torch.randn(S, H, 8, D))
    args["q"] = args["q"].to(torch.float16)
    want = reference.score_key_codes(args["q"], codes, bounds, args["pages"])
    torch.testing.assert_close(score_key_codes(**args, codes=codes, bounds=bounds), want, rtol=1e-4, atol=1e-4)


def test_bad_arguments_of_scores_are_named():
    args, (codes, bounds) = scored(), reference.key_codes(torch.randn(S, H, 8, D))
    digests = torch.randn(S, H, 2 * D)
    bounded, coded = {"digests": digests}, {"codes": codes, "bounds": bounds}
    for function, good, changed, message in [
        (score_digests, bounded, {"digests": digests[..., :D]}, r"digests is \[12, 2, 40\]: it must be \[any, 2, 80\]"),
        (score_digests, bounded, {"pages": args["pages"].long()}, "pages is torch.int64"),
        (score_digests, bounded, {"q": args["q"].transpose(2, 3).contiguous().transpose(2, 3)}, "q has strides"),
        (score_key_codes, coded, {"codes": codes[:, :, :1]}, "codes is"),
        (score_key_codes, coded, {"codes": codes.int()}, "codes is torch.int32"),
        (score_key_codes, coded, {"bounds": bounds[:3]}, "bounds is"),
        (score_key_codes, coded, {"bounds": bounds.float()}, "bounds is torch.float32"),
        (score_key_codes, coded, {"pages": args["pages"][:1]}, "pages is"),
    ]:
        with pytest.raises(KernelError, match=message):
            function(**(args | good | changed))


def test_bad_arguments_of_choices_are_named():
    wishes, closed, mask = torch.rand(B, H, N), torch.full((B,), N), torch.ones(B, dtype=torch.bool)
    blocks, chosen = torch.zeros(B, H, 3, dtype=torch.int64), torch.zeros(B, H, 3, dtype=torch.bool)
    slots, rows = (torch.zeros(B, H, N, dtype=torch.int64), 3), (mask, mask, torch.zeros(B))
    doubt = torch.zeros(B, H)
    for call, message in [
        (lambda: rank_blocks(torch.rand(B, H, G, N).double(), closed, 2, (1, 1), largest=False), "scores is"),
        (lambda: rank_blocks(torch.rand(B, H, G, N), closed.int(), 2, (1, 1), largest=False), "closed is torch.int32"),
        (lambda: sift(Sifting(blocks.int(), wishes, closed, slots, rows, 1)), "blocks is torch.int32"),
        (lambda: sift(Sifting(blocks, wishes[:1], closed, slots, rows, 1)), "wishes is"),
        (lambda: sift(Sifting(blocks, wishes, closed, slots, (mask, mask.int(), rows[2]), 1)), "all_of_it is"),
        (lambda: sift(Sifting(blocks, wishes, closed, (slots[0].int(), 3), rows, 1)), "slot_of is"),
        (lambda: blend(wishes[..., :2], wishes, mask, 0.5), "interest is"),
        (lambda: blend(wishes, wishes, mask[:1], 0.5), "rows is"),
        (lambda: find_late(Lateness((blocks, chosen, wishes), (blocks[:1], chosen), doubt, mask, 1)), "ahead is"),
        (lambda: find_late(Lateness((blocks, chosen, wishes), (blocks, chosen), doubt[:1], mask, 1)), "doubt is"),
        (lambda: find_late(Lateness((blocks, chosen.int(), wishes), (blocks, chosen), doubt, mask, 1)), "absent is"),
    ]:
        with pytest.raises(KernelError, match=message):
            call()
