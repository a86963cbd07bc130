"""The table of operations can fail: an implementation with one wrong result is found out by its test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from scoutattention.kernels.ops import Ops
from scoutattention.kernels.plain import PlainOps

from . import test_ops, test_ops_attention, test_ops_pages, test_ops_recall
from .columns import CPU, Column
from .sizes import CHOICES, LISTS, MERGES, SCORES, SIZES
from .test_ops_attention import PROMPTS
from .test_ops_recall import POLICIES, RECALLS

F32 = torch.float32
Wrong = Callable[[Any, tuple[Any, ...]], Any]
"""wrong(result, arguments): the result that is given instead, or what is done to memory that was written."""


def heavier(partial, _):
    return partial._replace(lse=partial.lse + 0.1)


def one_changed(place: int) -> Wrong:
    """The first number of the pool, or of the first of a pair, that is argument `place`."""

    def wrong(result: Any, args: tuple[Any, ...]) -> Any:
        pool = args[place]
        while isinstance(pool, tuple):
            pool = pool[0]
        pool.view(-1)[0] += 1
        return result

    return wrong


WRONG: list[tuple[str, Wrong, Callable[..., None], tuple[Any, ...]]] = [
    ("causal", lambda r, _: r * 1.05, test_ops_attention.test_the_attention_of_a_prompt, (*PROMPTS[2], F32)),
    ("partial", lambda r, _: r._replace(out=r.out * 1.01), test_ops_attention.test_partial, (LISTS[2], F32)),
    ("partial", heavier, test_ops_attention.test_partial, (LISTS[2], F32)),
    ("corrected", heavier, test_ops_attention.test_correction_and_merge, (MERGES[-1], F32)),
    ("merge", heavier, test_ops_attention.test_correction_and_merge, (MERGES[-1], F32)),
    ("merge", heavier, test_ops_attention.test_a_merge_without_some_heads, (MERGES[-1],)),
    ("scout_error", lambda r, _: r * 1.01, test_ops_attention.test_scout_error, (MERGES[-1], F32)),
    ("join", heavier, test_ops_attention.test_join, (MERGES[-1], F32, 0.7)),
    ("page_list", lambda r, _: r._replace(length=r.length + 1), test_ops_pages.test_page_lists, (SIZES[0],)),
    (
        "near_list",
        lambda r, _: r._replace(length=r.length + 1),
        test_ops_pages.test_lists_with_the_open_block,
        (SIZES[0], False),
    ),
    ("stage_call", one_changed(2), test_ops_pages.test_a_staged_call, (SIZES[0], F32)),
    ("stage_call", lambda _, args: args[3].called.sub_(1), test_ops_pages.test_a_staged_call, (SIZES[0], F32)),
    ("take_call", lambda r, _: r + 1, test_ops_pages.test_a_taken_call, (7, 3, False)),
    ("take_call", lambda _, args: args[0].clone(), test_ops_pages.test_a_taken_call, (7, 3, False)),
    ("partial_and_take", lambda r, _: (r[0], r[1] + 1), test_ops_pages.test_a_taken_call, (7, 3, True)),
    (
        "partial_and_take",
        lambda r, _: (r[0]._replace(out=r[0].out * 1.01), r[1]),
        test_ops_pages.test_a_taken_call,
        (7, 3, True),
    ),
    ("append", one_changed(2), test_ops_pages.test_appended_tokens, (SIZES[0], F32)),
    ("copy_blocks", one_changed(1), test_ops_pages.test_copies, (8, 64, False, F32)),
    ("close_blocks", one_changed(1), test_ops_pages.test_closed_blocks, (False, F32)),
    ("write_blocks", one_changed(1), test_ops_pages.test_written_blocks, (False, F32)),
    ("write_min_max", one_changed(1), test_ops.test_digests_made, (SIZES[0], F32)),
    (
        "write_key_codes",
        lambda _, args: args[0].bounds[-1].add_(1),
        test_ops.test_key_codes_made,
        (SIZES[0], F32, "each"),
    ),
    (
        "write_key_codes",
        lambda _, args: args[0].codes[-1].add_(1),
        test_ops.test_key_codes_made,
        (SIZES[0], F32, "none"),
    ),
    ("main_dims", lambda r, _: r.flip(1), test_ops.test_main_dims, (SIZES[0], F32)),
    ("main_dims", lambda r, _: r * 1.01, test_ops.test_main_dims, (SIZES[0], F32)),
    ("factors", lambda r, _: r._replace(factor=r.factor * 1.01), test_ops.test_factors, (20, F32)),
    ("factors", lambda r, _: r._replace(inverse=r.inverse * 1.01), test_ops.test_factors, (20, F32)),
    ("project", lambda r, _: r * 1.01, test_ops.test_projected_queries, (SIZES[0], F32)),
    ("score_min_max", lambda r, _: r + 1, test_ops.test_digest_scores, (SCORES[4], F32)),
    ("score_key_codes", lambda r, _: r * 1.01, test_ops.test_key_code_scores, (SCORES[4], F32)),
    ("top_blocks", lambda r, _: r._replace(wishes=r.wishes * 1.01), test_ops.test_top_blocks, (CHOICES[5], False)),
    ("top_blocks", lambda r, _: r._replace(all_wishes=r.all_wishes * 1.01), test_ops.test_top_blocks, (SIZES[2], True)),
    (
        "top_by_key_codes",
        lambda r, _: r._replace(blocks=r.blocks.flip(-1)),
        test_ops.test_top_blocks_by_key_codes,
        (SCORES[-2], F32),
    ),
    ("split_choice", lambda r, _: r._replace(absent=~r.absent), test_ops.test_split_choice, (CHOICES[5],)),
    ("split_choice", lambda r, _: r._replace(blocks=r.blocks + 1), test_ops.test_split_choice, (CHOICES[5],)),
    ("split_choice", lambda r, args: (args[0].counts.add_(1), r)[1], test_ops.test_split_choice, (CHOICES[5],)),
    ("split_and_call", lambda r, _: (r[0], r[1] + 1), test_ops_pages.test_a_split_that_calls, (SIZES[0], F32)),
    (
        "split_and_call",
        lambda r, args: (args[2][1].length.add_(1), r)[1],
        test_ops_pages.test_a_split_that_calls,
        (SIZES[0], F32),
    ),
    (
        "split_and_note",
        lambda r, args: (args[1].interest.mul_(0.9), r)[1],
        test_ops.test_a_split_that_notes,
        (CHOICES[5],),
    ),
    ("split_and_note", lambda r, _: r._replace(absent=~r.absent), test_ops.test_a_split_that_notes, (CHOICES[5],)),
    ("update_interest", one_changed(0), test_ops.test_updated_interest, (CHOICES[5],)),
    ("find_late", lambda r, _: r._replace(spoilt=~r.spoilt), test_ops.test_late, (CHOICES[5],)),
    ("count_shares", lambda r, _: r + 1, test_ops_recall.test_counted_shares, (True,)),
    ("count_shares", lambda r, args: (args[0].totals.add_(1), r)[1], test_ops_recall.test_counted_shares, (False,)),
    ("follow_shares", lambda r, _: ~r, test_ops_recall.test_followed_shares, (POLICIES[0],)),
    (
        "follow_shares",
        lambda r, args: (args[0].threshold.mul_(1.1), r)[1],
        test_ops_recall.test_followed_shares,
        (POLICIES[0],),
    ),
    ("give_wanted", lambda r, _: r._replace(page=r.page + 1), test_ops_recall.test_given_slots, (RECALLS[0],)),
    (
        "give_wanted",
        lambda r, args: (args[0].slots.slot_of.add_(1), r)[1],
        test_ops_recall.test_given_slots,
        (RECALLS[0],),
    ),
    ("recall", lambda r, args: args[0].slots.content.add_(1), test_ops_recall.test_recalled, (RECALLS[0],)),
    ("recall", lambda r, args: args[0].copies[1].add_(1), test_ops_recall.test_recalled, (RECALLS[0],)),
    ("recall", lambda r, args: args[0].recalled.add_(1), test_ops_recall.test_recalled, (RECALLS[0],)),
]


def spoilt(operation: str, wrong: Wrong) -> Column:
    """A column of plain operations, one of them with a wrong result."""
    ops = PlainOps(CPU)
    right = getattr(ops, operation)

    def call(*args: Any, **options: Any) -> Any:
        return wrong(right(*args, **options), args)

    setattr(ops, operation, call)
    return Column("spoilt", lambda: ops)


@pytest.mark.parametrize(
    ("operation", "wrong", "test", "args"), WRONG, ids=[f"{case[0]}-{number}" for number, case in enumerate(WRONG)]
)
def test_a_wrong_result_is_found(operation, wrong, test, args):
    torch.manual_seed(0)
    test(Column("right", lambda: PlainOps(CPU)), *args)
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        test(spoilt(operation, wrong), *args)


def test_every_operation_is_spoilt():
    operations = {name for name, member in vars(Ops).items() if callable(member) and not name.startswith("_")}
    assert operations == {operation for operation, *_ in WRONG}
