"""Kept prompts against a plain model: what is found, what is let go, and that no page is lost or used twice."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoutattention.cache.pages import Pages
from scoutattention.cache.pool import BlockPool
from scoutattention.cache.prefix import NOTHING, Lineage, Prefix, PrefixIndex, chain_names
from scoutattention.errors import CapacityError
from scoutattention.kernels.plain import PlainOps

from ..attention.rig import SHAPE

OPS = PlainOps(torch.device("cpu"))
SIZE, CAPACITY, ROWS, MOST = 2, 9, 3, 2


def names(tokens: list[int], seed: bytes = b"") -> list[bytes]:
    return chain_names(tokens, SIZE, seed)


def test_a_name_says_all_tokens_before_the_end_of_its_block():
    one = names([1, 2, 3, 4, 5])
    assert len(one) == 2
    assert len({*one, *names([1, 2, 3, 5]), *names([3, 4, 1, 2]), *names([1, 2, 3, 4], b"a user's")}) == 7
    assert names([1, 2, 3, 4, 9]) == one
    assert names([1]) == []
    assert len(one[0]) == 32


def test_tokens_of_any_size_have_names_of_their_own():
    assert len({*names([1, 2**31]), *names([1, 2**31 + 2**8]), *names([2**8, 1])}) == 3


class Admitted(NamedTuple):
    """A sequence of the model."""

    tokens: list[int]
    pages: list[int]
    prefix: Prefix


class Model:
    """Pages, and beside them a plain account of which page holds which tokens, for which lineage, and since when."""

    def __init__(self) -> None:
        pool = BlockPool(SHAPE, SIZE, CAPACITY, "host_memory")
        self.pages = Pages(pool, lambda *_: None, ROWS, CAPACITY, OPS, PrefixIndex(MOST))
        self.rows: dict[int, Admitted] = {}
        self.kept: dict[Lineage, dict[tuple[int, ...], int]] = {}
        self.left: list[int] = []  # kept pages that nobody uses, in the order in which they were left
        self.order: list[Lineage] = []  # by their last use

    def admit(self, row: int, tokens: list[int], extra: int, needed: tuple[int, int]) -> None:
        if row in self.rows:
            return
        found = self.pages.prefixes.find(names(tokens)[: (len(tokens) - 1) // SIZE], *needed)
        self.check_found(tokens, *needed, found)
        blocks = min(CAPACITY, len(tokens) // SIZE + extra)
        new, free = blocks - len(found.pages), self.free()
        others = [page for page in self.left if page not in found.pages]
        assert self.pages.available(found.pages) == len(free) + len(others)
        if new > len(free) + len(others):
            with pytest.raises(CapacityError):
                self.pages.admit(row, blocks, found.pages)
            return
        self.pages.admit(row, blocks, found.pages)
        for page in others[: max(0, new - len(free))]:
            self.left.remove(page)
            self.forget(page)
        self.left = [page for page in self.left if page not in found.pages]
        if found.lineage is not None:
            self.touch(found.lineage)
        taken = [self.pages.page(row, block) for block in range(blocks)]
        assert taken[: len(found.pages)] == list(found.pages)
        assert not set(taken[len(found.pages) :]) & (self.used() | self.known())
        self.rows[row] = Admitted(tokens, taken, found)

    def keep(self, row: int) -> None:
        if row not in self.rows:
            return
        tokens, pages, prefix = self.rows[row]
        whole = len(tokens) // SIZE
        lineage = prefix.lineage or Lineage([], whole)
        self.rows[row] = Admitted(tokens, pages, Prefix(lineage))
        self.pages.keep(row, lineage, names(tokens))
        for block in range(whole):
            beginning = tuple(tokens[: SIZE * (block + 1)])
            if self.kept.setdefault(lineage, {}).setdefault(beginning, pages[block]) != pages[block]:
                break
        self.touch(lineage)
        if len(self.order) > MOST:
            for page in self.kept.pop(self.order.pop(0)).values():
                self.left = [other for other in self.left if other != page]

    def release(self, row: int) -> None:
        if row not in self.rows:
            return
        self.pages.release(row)
        pages = self.rows.pop(row).pages
        known, used = self.known(), self.used()
        self.left += [page for page in reversed(pages) if page in known and page not in used]

    def check_found(self, tokens: list[int], least: int, first: int, found: Prefix) -> None:
        """The longest beginning that is kept, if it is long enough, of a lineage whose first prompt was."""
        lengths = [0]
        for lineage, kept in self.kept.items():
            if lineage.blocks >= first:
                lengths += [len(beginning) for beginning in kept if list(beginning) == tokens[: len(beginning)]]
        longest = max(length for length in lengths if length < max(1, len(tokens))) // SIZE
        assert len(found.pages) == (longest if longest >= least else 0)
        if found.lineage is not None:
            beginnings = [tuple(tokens[: SIZE * (block + 1)]) for block in range(longest)]
            assert [self.kept[found.lineage][beginning] for beginning in beginnings] == list(found.pages)

    def touch(self, lineage: Lineage) -> None:
        self.order = [other for other in self.order if other is not lineage]
        if lineage in self.kept:
            self.order.append(lineage)

    def forget(self, page: int) -> None:
        for lineage, kept in list(self.kept.items()):
            self.kept[lineage] = {beginning: there for beginning, there in kept.items() if there != page}
            if not self.kept[lineage]:
                del self.kept[lineage]
                self.order.remove(lineage)

    def used(self) -> set[int]:
        return {page for admitted in self.rows.values() for page in admitted.pages}

    def known(self) -> set[int]:
        return {page for kept in self.kept.values() for page in kept.values()}

    def free(self) -> set[int]:
        return set(range(CAPACITY)) - self.used() - self.known()

    def check(self) -> None:
        assert set(self.pages.pool._free) == self.free()
        assert len(self.pages.pool._free) == len(self.free())
        assert set(self.left) == self.known() - self.used()
        assert self.pages.prefixes.num_lineages == len(self.kept) <= MOST
        for kept in self.kept.values():
            assert all(beginning[:-SIZE] in kept for beginning in kept if len(beginning) > SIZE)


PROMPTS = st.lists(st.integers(0, 1), max_size=11)
ROW = st.integers(0, ROWS - 1)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), ROW, PROMPTS, st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 4))),
        st.tuples(st.just("keep"), ROW),
        st.tuples(st.just("release"), ROW),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_pages_and_kept_prompts_are_those_of_a_plain_model(actions):
    model = Model()
    for action, *arguments in actions:
        getattr(model, action)(*arguments)
        model.check()
    for row in range(ROWS):
        model.release(row)
        model.check()
    model.pages.forget()
    assert sorted(model.pages.pool._free) == list(range(CAPACITY))
    assert model.pages.prefixes.num_lineages == 0


def pages_of(most: int, capacity: int = 6) -> Pages:
    return Pages(BlockPool(SHAPE, SIZE, capacity, "host_memory"), lambda *_: None, 2, 6, OPS, PrefixIndex(most))


def test_a_block_goes_before_those_that_it_continues():
    pages = pages_of(2)
    tokens = list(range(8))
    pages.admit(0, 4)
    pages.keep(0, Lineage([], 4), names(tokens))
    pages.release(0)
    pages.admit(1, 4)
    assert len(pages.prefixes.find(names(tokens)).pages) == 2
    pages.release(1)
    assert pages.available() == 6


def test_a_lineage_that_must_go_leaves_its_pages_to_those_who_use_them():
    pages = pages_of(1)
    first, other = Lineage([], 1), Lineage([], 1)
    pages.admit(0, 2)
    pages.keep(0, first, names([1, 2]))
    pages.admit(1, 2)
    pages.keep(1, other, names([3, 4]))
    assert pages.prefixes.find(names([1, 2])) == NOTHING
    assert pages.pool.available == 2
    pages.release(0)
    assert pages.pool.available == 4
    assert pages.prefixes.find(names([3, 4])).lineage is other


def test_nothing_is_taken_where_too_little_is_free():
    pages = pages_of(1)
    pages.admit(0, 2)
    pages.keep(0, Lineage([], 1), names([1, 2]))
    pages.release(0)
    with pytest.raises(CapacityError, match="7 blocks"):
        pages.admit(1, 7)
    assert pages.pool.available == 5
    assert pages.prefixes.find(names([1, 2])).pages


def test_a_block_that_two_sequences_read_is_kept_once():
    pages, lineage, chain = pages_of(1), Lineage([], 1), names([1, 2, 3, 4, 5, 6])
    pages.admit(0, 1)
    pages.keep(0, lineage, chain[:1])
    pages.release(0)
    found = pages.prefixes.find(chain).pages
    for row in range(2):
        pages.admit(row, 3, found)
    pages.keep(0, lineage, chain[:2])
    pages.keep(1, lineage, chain)
    assert pages.prefixes.find(chain).pages == (*found, pages.page(0, 1)), "the third block follows the other's second"
    pages.release(1)
    assert pages.pool.available == 3
    pages.release(0)
    assert (pages.pool.available, pages.available()) == (4, 6)
