"""The digests of a choice in two stages."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Digests
from .basis import Seen
from .key_codes import MainDimDigests


@dataclass(frozen=True)
class Stages:
    """What all blocks are scanned by, and what the candidates that were found are judged by; may be the same."""

    scan: Digests
    judge: Digests

    @property
    def kinds(self) -> tuple[Digests, ...]:
        """Each kind of digest that is kept, once."""
        return (self.judge,) if self.scan is self.judge else (self.scan, self.judge)

    @property
    def fitted(self) -> bool:
        """Whether anything is fitted to a prompt."""
        return isinstance(self.judge, MainDimDigests)

    def fit(self, row: int, first: int, prompt: Sequence[Seen]) -> None:
        """See a prompt in some layers with every kind of digest; the arguments are those of `Digests.fit`."""
        for kind in self.kinds:
            kind.fit(row, first, prompt)

    def put(self, k: Tensor, places: Tensor, owners: Tensor) -> None:
        """Digest closed blocks with every kind; the arguments are those of `Digests.put`."""
        for kind in self.kinds:
            kind.put(k, places, owners)

    def content(self) -> tuple[Tensor, ...]:
        """All that is kept of blocks: [L, S, ...] each."""
        return tuple(part for kind in self.kinds for part in kind.content())

    def block_bytes(self) -> int:
        """Bytes of one block's digests in one layer and KV head."""
        return sum(kind.block_bytes() for kind in self.kinds)
