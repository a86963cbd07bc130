"""Prompts that were read, to be found again by those that begin alike."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from ..cache.memory_plan import MemoryPlan
from ..cache.prefix import NOTHING, Lineage, Prefix, chain_names
from ..cache.store import KVStore
from .scheduler import Sequence


class PrefixCache:
    """Names the blocks of prompts, keeps those that were read, and says what is kept of those that come."""

    def __init__(
        self, store: KVStore, plan: MemoryPlan, budget_blocks: int | None, frequencies: Callable[[int], int]
    ) -> None:
        """`budget_blocks`: of which all are chosen; None is any number.   frequencies: see `Decoder.frequencies_of`."""
        self._store = store
        self._plan = plan
        self._budget_blocks = budget_blocks
        self._frequencies = frequencies
        self._named: WeakKeyDictionary[Sequence, list[bytes]] = WeakKeyDictionary()

    def find(self, sequence: Sequence) -> Prefix:
        """What is kept of a sequence's beginning: whole blocks, and never its last token, whose logits are wanted.

        Digests and scouts of a lineage are made for its first prompt. So a sequence must have half of its own tokens
        in common with that prompt, unless it is so short that all its blocks are chosen, whatever digests say.
        """
        if not self._plan.lineages:
            return NOTHING
        names, blocks = self._names(sequence, sequence.num_tokens), self._plan.blocks(sequence.limit)
        within_budget = self._budget_blocks is None or blocks <= self._budget_blocks
        may_be_found = names[: (sequence.num_tokens - 1) // self._plan.block_size]
        found = self._store.pages.prefixes.find(may_be_found, 0 if within_budget else (len(names) + 1) // 2)
        return found._replace(tokens=len(found.pages) * self._plan.block_size)

    def keep(self, row: int, sequence: Sequence, count: int) -> None:
        """Keep a sequence's first `count` tokens, which were just read into a row, for those that begin alike."""
        names, lineage = self._names(sequence, count), sequence.prefix.lineage
        sequence.prefix = sequence.prefix.length()
        if lineage is None:
            if not self._plan.lineages or len(names) < self._plan.least_kept:
                return
            lineage = Lineage(self._store.state_of(row), names)
        self._store.pages.keep(row, lineage, names)

    def _names(self, sequence: Sequence, count: int) -> list[bytes]:
        """Of the full blocks of a sequence's first tokens."""
        size, names = self._plan.block_size, self._named.get(sequence)
        if names is None or len(names) != count // size:
            seed = f"{self._frequencies(count)} {sequence.params.cache_salt}".encode()
            names = chain_names((sequence.prompt_ids + sequence.output_ids)[:count], size, seed)
            self._named[sequence] = names
        return names
