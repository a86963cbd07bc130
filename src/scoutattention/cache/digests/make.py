"""The digests that a configuration names."""

from ...config import DigestName
from ...kernels.ops import Ops
from ...shape import ModelShape
from ..pool import BlockPool, PackedPool
from .base import Digests
from .exact import ExactDigests
from .key_codes import KeyCodeDigests
from .min_max import MinMaxDigests


def make_digests(name: DigestName, shape: ModelShape, pool: BlockPool | PackedPool, ops: Ops) -> Digests:
    """Digests of one kind, with room for every page of a pool."""
    if name == "exact":
        return ExactDigests(shape, pool.k)
    kind = MinMaxDigests if name == "minmax" else KeyCodeDigests
    return kind(shape, pool.k.shape[3], pool.capacity, ops)
