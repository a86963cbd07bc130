"""A decode step's attention in plain PyTorch, on any device: the twin that other implementations are tested against."""

import torch
from torch import Tensor

from ..runtime.packed import Blocks
from ..types import BlockList, Lateness, Listing, Partial, Sifting
from . import reference, reference_pools
from .native.choice import Late, Sifted
from .ops import Copies, Ranked
from .reference_pools import Pools


def write_blocks(blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
    """See `Ops.write_blocks`."""
    for new, pool in zip(blocks, target, strict=True):
        pool[pages.to(pool.device)] = new.to(pool.device)


def copy_blocks(source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
    """See `Ops.copy_blocks`."""
    layer, page, entry, head = copies
    for here, there in zip(source, target, strict=True):
        blocks = here[tuple(index.to(here.device) for index in (layer, page, head))]
        there[layer, entry, head] = blocks.to(there.dtype).to(there.device)


class PlainOps:
    """The definitions themselves; see `Ops` for what each does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.deferred = device.type != "cpu"

    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        """See `Ops.partial`; blocks that the device does not hold are attended to where they are."""
        here = k.device
        lists = BlockList(blocks.index.to(here), blocks.length.to(here))
        out, lse, _ = reference.partial(q.to(here), k, v, lists, scale)
        return Partial(out.to(q.device), lse.to(q.device))

    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        """See `Ops.append`."""
        reference_pools.append(k, v, pools, entry, fill)

    def page_list(self, what: Listing) -> BlockList:
        """See `Ops.page_list`."""
        return reference_pools.page_list(what)

    def hand_over(self, q: Tensor, what: Listing, to: tuple[Tensor, BlockList]) -> None:
        """See `Ops.hand_over`."""
        reference_pools.hand_over(q, what, to)

    def write_blocks(self, blocks: tuple[Tensor, Tensor], target: tuple[Blocks, Blocks], pages: Tensor) -> None:
        """See `Ops.write_blocks`."""
        write_blocks(blocks, target, pages)

    def copy_blocks(self, source: tuple[Blocks, Blocks], target: tuple[Tensor, Tensor], copies: Copies) -> None:
        """See `Ops.copy_blocks`."""
        copy_blocks(source, target, copies)

    def put_digests(self, k: Tensor, digests: Tensor, pages: Tensor) -> None:
        """See `Ops.put_digests`."""
        reference.put_digests(k, digests, pages)

    def put_key_codes(self, k: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor) -> None:
        """See `Ops.put_key_codes`."""
        reference.put_key_codes(k, codes, bounds, pages)

    def score_digests(self, q: Tensor, digests: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_digests`."""
        return reference.score_digests(q * scale, digests, pages)

    def score_key_codes(self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, scale: float) -> Tensor:
        """See `Ops.score_key_codes`."""
        return reference.score_key_codes(q * scale, codes, bounds, pages)

    def rank_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> Ranked:
        """See `Ops.rank_blocks`."""
        return Ranked(*reference.rank_blocks(scores, closed, count, always, largest=largest))

    def sift(self, what: Sifting) -> Sifted:
        """See `Ops.sift`."""
        valid, absent = reference.sift(what)
        return Sifted(valid, absent, torch.stack([valid.sum(-1), absent.sum(-1)]))

    def blend(self, interest: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        """See `Ops.blend`."""
        reference.blend(interest, wishes, rows, kept)

    def find_late(self, what: Lateness) -> Late:
        """See `Ops.find_late`."""
        spoilt, late = reference.find_late(what)
        return Late(spoilt, late, torch.stack([(spoilt | late.any(-1)).long(), late.sum(-1)]))

    def doubt(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        """See `Ops.doubt`."""
        return reference.doubt(far, near, q, q_hat)

    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        """See `Ops.corrected`."""
        return reference.corrected(far, q, q_hat, scale)

    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        """See `Ops.merge`."""
        return reference.merge(a if without is None else reference.left_out(a, without), b)
