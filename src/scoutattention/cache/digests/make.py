"""The digests that a configuration names."""

from ...config import DigestName
from ...kernels.ops import Ops
from ...shape import ModelShape
from ..pool import BlockPool, PackedPool
from .base import Digests
from .exact import ExactDigests
from .key_codes import FirstDims, KeyCodeDigests, MainDimDigests
from .min_max import MinMaxDigests
from .stages import Stages


def make_digests(
    name: DigestName, shape: ModelShape, pool: BlockPool | PackedPool, ops: Ops, *, rows: int, dims: tuple[int, int]
) -> Stages:
    """Digests of one kind or two, with room for every page of a pool.

    dims: main dimensions that are scanned, and that are kept; see `memory_plan.scan_dims` and `kept_dims`.
    """
    size = pool.k.shape[3]
    if name == "two-stage":
        scanned, kept = dims
        whole = MainDimDigests(shape, (size, pool.capacity, rows, kept), ops)
        return Stages(FirstDims(whole, scanned), whole)
    only: Digests
    if name == "exact":
        only = ExactDigests(shape, pool.k, ops)
    elif name == "minmax":
        only = MinMaxDigests(shape, pool.capacity, ops)
    else:
        only = KeyCodeDigests(shape, size, pool.capacity, ops)
    return Stages(only, only)
