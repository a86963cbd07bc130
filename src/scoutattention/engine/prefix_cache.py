"""Prompts that were read, to be found again by those that begin alike."""

from collections.abc import Callable
from math import ceil
from weakref import WeakKeyDictionary

from ..cache.memory_plan import MemoryPlan
from ..cache.prefix import NOTHING, Lineage, Prefix, chain_names
from ..cache.store import KVStore
from .scheduler import Sequence

LONGER = 1.5
"""A prompt may be so many times as long as the one whose bases it uses. Queries and keys turn with their positions, and
bases fit the positions that they were made from, in any text; docs/lab/2026-11-26-prefix-bases.md has the figures."""
LEAST_PART = 0.25
"""Of a prompt, what must be kept of it, or reading it whole costs little, and makes its own bases and corrections."""


class PrefixCache:
    """Names the blocks of prompts, keeps those that were read, and says what is kept of those that come."""

    def __init__(
        self, store: KVStore, plan: MemoryPlan, budget_blocks: int | None, frequencies: Callable[[int], int]
    ) -> None:
        """`budget_blocks`: of which all are chosen; None is any number.   frequencies: see `Decoder.frequencies_of`."""
        self._store = store
        self._store.pages.forget()
        self._plan = plan
        self._budget_blocks = budget_blocks
        self._frequencies = frequencies
        self._named: WeakKeyDictionary[Sequence, list[bytes]] = WeakKeyDictionary()

    def find(self, sequence: Sequence) -> Prefix:
        """What is kept of a sequence's beginning: whole blocks, and never its last token, whose logits are wanted.

        Bases and corrections of a lineage are its first prompt's; see LONGER and LEAST_PART. They do not matter to a
        sequence that is so short that all its blocks are chosen.
        """
        if not self._plan.lineages:
            return NOTHING
        names, blocks = self._names(sequence, sequence.num_tokens), self._plan.blocks(sequence.limit)
        may_be_found = names[: (sequence.num_tokens - 1) // self._plan.block_size]
        least, first = ceil(LEAST_PART * len(names)), ceil(len(names) / LONGER)
        if self._budget_blocks is None or blocks <= self._budget_blocks:
            least = first = 0
        found = self._store.pages.prefixes.find(may_be_found, least, first)
        return found._replace(tokens=len(found.pages) * self._plan.block_size)

    def keep(self, row: int, sequence: Sequence, count: int) -> None:
        """Keep a sequence's first `count` tokens, which were just read into a row, for those that begin alike."""
        names, lineage = self._names(sequence, count), sequence.prefix.lineage
        sequence.prefix = sequence.prefix.length()
        if lineage is None:
            if not self._plan.lineages or len(names) < self._plan.least_kept:
                return
            lineage = Lineage(self._store.state_of(row), len(names))
        self._store.pages.keep(row, lineage, names)

    def _names(self, sequence: Sequence, count: int) -> list[bytes]:
        """Of the full blocks of a sequence's first tokens."""
        size, names = self._plan.block_size, self._named.get(sequence)
        if names is None or len(names) != count // size:
            seed = f"{self._frequencies(count)} {sequence.params.cache_salt}".encode()
            names = chain_names((sequence.prompt_ids + sequence.output_ids)[:count], size, seed)
            self._named[sequence] = names
        return names
