"""Prompts that are kept and found again: which pages hold their blocks, and which go first when memory runs out.

No tensor is touched here: pages are numbers, and what belongs to a lineage beside its pages is only handed on.
"""

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Container, Sequence
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

HASH_BYTES = 32
"""Of a block's name. A collision would give one prompt another one's keys, so there is none in practice."""


def chain_names(token_ids: Sequence[int], block_size: int, seed: bytes) -> list[bytes]:
    """A name of each full block that says what all tokens up to its end are.

    seed: what else decides a block's keys, or who may find it.
    """
    names, name = [], blake2b(seed, digest_size=HASH_BYTES).digest()
    for end in range(block_size, len(token_ids) + 1, block_size):
        block = array("q", token_ids[end - block_size : end])
        name = blake2b(name + block.tobytes(), digest_size=HASH_BYTES).digest()
        names.append(name)
    return names


class Lineage:
    """A prompt, and those that began like it: their blocks are digested in one basis, and their scouts corrected alike.

    state: what the first prompt's reading decided, see `KVStore.state_of`.   blocks: of the first prompt.
    pages: of the blocks that are kept, by name. A block is there only together with all blocks before it.
    """

    def __init__(self, state: Sequence[Tensor], blocks: int) -> None:
        self.state = state
        self.blocks = blocks
        self.pages: dict[bytes, int] = {}


class Prefix(NamedTuple):
    """The beginning of a prompt that is kept: its lineage, and the pages of its blocks, which have so many tokens."""

    lineage: Lineage | None = None
    pages: tuple[int, ...] = ()
    tokens: int = 0

    def length(self) -> "Prefix":
        """How long it was, without what else is of use only until the rest of the prompt is read."""
        return Prefix(tokens=self.tokens)


NOTHING = Prefix()
"""Of a prompt that begins like none."""


class PrefixIndex:
    """The lineages that are kept, and the pages among theirs that no sequence uses, least recently used first.

    Whoever uses a block uses those before it too, and lets go of the last one first. So a block goes before those that
    it continues.
    """

    def __init__(self, most: int) -> None:
        """`most`: lineages."""
        self._most = most
        self._lineages: OrderedDict[Lineage, None] = OrderedDict()  # least recently used first
        self._places: dict[int, tuple[Lineage, bytes]] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, page: int) -> bool:
        """Whether a page is kept when no sequence uses it."""
        return page in self._places

    @property
    def num_lineages(self) -> int:
        """Lineages that are kept."""
        return len(self._lineages)

    def unused(self, but: Sequence[int] = ()) -> int:
        """The number of kept pages that no sequence uses, without the pages in `but`."""
        return len(self._unused) - sum(page in self._unused for page in but)

    def find(self, names: Sequence[bytes], least: int = 0, first: int = 0) -> Prefix:
        """The longest beginning of a prompt that one lineage has.

        names: see `chain_names`, of the blocks that may be found.   least: blocks that must be found; else none is.
        first: blocks that the lineage's first prompt must have had.
        """
        best, most = None, max(0, least - 1)
        for lineage in self._lineages:
            length = common(names, lineage.pages)
            if length > most and lineage.blocks >= first:
                best, most = lineage, length
        if best is None:
            return NOTHING
        return Prefix(best, tuple(best.pages[name] for name in names[:most]))

    def use(self, pages: Sequence[int]) -> None:
        """Mark kept pages as used by a running sequence."""
        for page in pages:
            self._unused.pop(page, None)
        if pages and pages[0] in self._places:
            self._lineages.move_to_end(self._places[pages[0]][0])

    def leave(self, page: int) -> None:
        """Mark a kept page as unused by running sequences."""
        self._unused[page] = None

    def add(self, lineage: Lineage, names: Sequence[bytes], pages: Sequence[int]) -> list[int]:
        """Keep the first blocks of a prompt in a lineage; returns pages that had to go for it, which are free.

        pages: of these blocks, in use.   Where the lineage has a block in another page already, that one is kept, and
        no block after it is added: a lineage's blocks are used together with those before them.
        """
        for name, page in zip(names, pages, strict=True):
            if lineage.pages.setdefault(name, page) != page:
                break
            self._places[page] = lineage, name
        if not lineage.pages:
            return []
        self._lineages[lineage] = None
        self._lineages.move_to_end(lineage)
        return self._drop(next(iter(self._lineages))) if len(self._lineages) > self._most else []

    def evict(self, count: int) -> list[int]:
        """Drop this many unused pages, least recently used first; returns them. They are free now."""
        pages = [self._unused.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            lineage, name = self._places.pop(page)
            del lineage.pages[name]
            if not lineage.pages:
                del self._lineages[lineage]
        return pages

    def clear(self) -> list[int]:
        """Drop all kept prompts; returns the pages that are free now."""
        return [page for lineage in list(self._lineages) for page in self._drop(lineage)]

    def _drop(self, lineage: Lineage) -> list[int]:
        """Forget a lineage; pages in use stay their users'."""
        pages = list(lineage.pages.values())
        lineage.pages = {}
        del self._lineages[lineage]
        for page in pages:
            del self._places[page]
        unused = [page for page in pages if page in self._unused]
        for page in unused:
            del self._unused[page]
        return unused


def common(names: Sequence[bytes], known: Container[bytes]) -> int:
    """How many of a chain's names are known: the first ones, if any."""
    return bisect_left(range(len(names)), True, key=lambda at: names[at] not in known)
