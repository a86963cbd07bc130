"""Digests: a few numbers per closed block and KV head, from which a query's affinity to the block is judged.

One class for each kind. All have the same four methods and live beside the pages: an entry for every page.
"""

from typing import Protocol

import torch
from torch import Tensor

from ...config import DigestName
from ...kernels.ops import Ops
from ...kernels.reference import key_codes, score_exactly
from ...runtime.memory import empty
from ...runtime.packed import Blocks
from ...shape import ModelShape
from ...types import BlockList
from ..pool import BlockPool, PackedPool


class Digests(Protocol):
    """What a chooser and the pages need of any kind of digest."""

    def put(self, k: Tensor, places: Tensor) -> None:
        """Digest closed blocks.   k: [n, H, P, D].   places: int64 [n], layer * S + page of each."""
        ...

    def score(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """Estimated log-sum-exp of the scaled scores of each block's keys, up to a constant: float32 [B, H, G, N].

        q: [B, H, G, D].   pages: int32 [B, N], any page where there is no block.   closed: int64 [B], how many are.
        """
        ...

    def bytes_per_token(self) -> float:
        """Bytes per token over all layers and KV heads."""
        ...


class MinMaxDigests:
    """Channel maxima and minima of the keys; scores are upper bounds (Quest, arXiv 2406.10774, section 3.2)."""

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, ops: Ops) -> None:
        self.values = empty(
            (shape.num_layers, capacity, shape.num_kv_heads, 2 * shape.head_dim), torch.float32, ops.device
        )
        self._block_size = block_size
        self._ops = ops
        self._scale = shape.scale

    def put(self, k: Tensor, places: Tensor) -> None:
        """See `Digests.put`."""
        self._ops.put_digests(k, self.values.flatten(0, 1), places)

    def score(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """See `Digests.score`."""
        return self._ops.score_digests(q, self.values[layer], pages, self._scale)

    def bytes_per_token(self) -> float:
        """See `Digests.bytes_per_token`."""
        return self.values[:, 0].nbytes / self._block_size


class KeyCodeDigests:
    """The keys themselves in 2 bits a channel, between each block's own channel minima and maxima.

    codes, bounds: what `key_codes` makes of the keys, [L, S, H, ...] each.
    """

    def __init__(self, shape: ModelShape, block_size: int, capacity: int, ops: Ops) -> None:
        entries = (shape.num_layers, capacity, shape.num_kv_heads)
        codes, bounds = key_codes(torch.zeros(block_size, shape.head_dim))
        self.codes = empty((*entries, *codes.shape), codes.dtype, ops.device)
        self.bounds = empty((*entries, *bounds.shape), bounds.dtype, ops.device)
        self._block_size = block_size
        self._ops = ops
        self._scale = shape.scale

    def put(self, k: Tensor, places: Tensor) -> None:
        """See `Digests.put`."""
        self._ops.put_key_codes(k, self.codes.flatten(0, 1), self.bounds.flatten(0, 1), places)

    def score(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """See `Digests.score`."""
        return self._ops.score_key_codes(q, self.codes[layer], self.bounds[layer], pages, self._scale)

    def bytes_per_token(self) -> float:
        """See `Digests.bytes_per_token`."""
        return (self.codes[:, 0].nbytes + self.bounds[:, 0].nbytes) / self._block_size


class ExactDigests:
    """The keys themselves, read from their pages: the ceiling that other digests are measured against, and slow."""

    def __init__(self, shape: ModelShape, block_size: int, keys: Blocks) -> None:
        """`keys`: the host pool's, [L, S, H, P, D]."""
        self._keys = keys
        self._bytes = shape.kv_bytes_per_token / 2
        self._scale = shape.scale

    def put(self, k: Tensor, places: Tensor) -> None:
        """Nothing to do: the pages hold the keys."""

    def score(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """See `Digests.score`."""
        return score_exactly(q * self._scale, self._keys[layer], pages)

    def bytes_per_token(self) -> float:
        """See `Digests.bytes_per_token`."""
        return self._bytes


class TwoStageDigests:
    """Another kind of digest for all blocks; for those that it ranks highest, the keys themselves.

    The second stage attends to each of these blocks alone: the log-sum-exp of that is the block's exact score.
    """

    def __init__(
        self, first: Digests, shape: ModelShape, pool: BlockPool | PackedPool, ops: Ops, survivors: int
    ) -> None:
        """`pool`: of host pages.   survivors: so many blocks of each KV head reach the second stage."""
        self._first = first
        self._pool = pool
        self._ops = ops
        self._survivors = survivors
        self._scale = shape.scale

    def put(self, k: Tensor, places: Tensor) -> None:
        """See `Digests.put`."""
        self._first.put(k, places)

    def score(self, layer: int, q: Tensor, pages: Tensor, closed: Tensor) -> Tensor:
        """See `Digests.score`; the others keep their first scores, less what those of the survivors were too high."""
        rough = self._first.score(layer, q, pages, closed)
        block = torch.arange(rough.shape[-1], device=closed.device)
        absent = block >= closed[:, None]  # whatever their pages hold
        rough = rough.masked_fill(absent[:, None, None], -torch.inf)
        count = min(self._survivors, rough.shape[-1])
        best = rough.softmax(-1).mean(2).topk(count).indices[:, :, None].expand(-1, -1, rough.shape[2], -1)
        fine = self._exactly(layer, q, pages, best[:, :, 0])
        real = best < closed[:, None, None, None]
        excess = torch.where(real, rough.gather(-1, best) - fine, 0).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
        return (rough - excess).scatter(-1, best, fine)

    def _exactly(self, layer: int, q: Tensor, pages: Tensor, best: Tensor) -> Tensor:
        """Exact scores of the blocks `best`, int64 [B, H, n]: float32 [B, H, G, n]."""
        B, H, n = best.shape
        index = pages[:, None].expand(-1, H, -1).gather(-1, best).transpose(1, 2).reshape(B * n, H, 1)
        alone = BlockList(index, torch.full_like(index, self._pool.k.shape[-2]))
        queries = q[:, None].expand(-1, n, *q.shape[1:]).reshape(B * n, *q.shape[1:])
        k, v = self._pool.k[layer], self._pool.v[layer]
        lse = self._ops.partial(queries, k, v, alone, self._scale).lse
        return lse.view(B, n, H, -1).permute(0, 2, 3, 1)

    def bytes_per_token(self) -> float:
        """See `Digests.bytes_per_token`."""
        return self._first.bytes_per_token()


def make_digests(
    name: DigestName, shape: ModelShape, pool: BlockPool | PackedPool, ops: Ops, *, survivors: int = 64
) -> Digests:
    """The digests that a configuration names, for the pages of a pool.   survivors: see `TwoStageDigests`."""
    block_size = pool.k.shape[3]
    if name == "minmax":
        return MinMaxDigests(shape, block_size, pool.capacity, ops)
    if name == "exact":
        return ExactDigests(shape, block_size, pool.k)
    codes = KeyCodeDigests(shape, block_size, pool.capacity, ops)
    return codes if name == "keys2" else TwoStageDigests(codes, shape, pool, ops, survivors)
