"""How attention over slots is cut into programs, from shapes alone."""

from dataclasses import dataclass

import torch

from .base import ceil_div


@dataclass(frozen=True)
class PartialTile:
    """How the work is cut. tokens: of one iteration.   waves: programs per multiprocessor that the splits aim at.

    least: tokens of a split, at least, so that combining costs little.   stages: depth of the load pipeline.
    """

    tokens: int = 64
    warps: int = 2
    stages: int = 3
    waves: int = 4
    least: int = 256


def default_tile(head_dim: int, dtype: torch.dtype, *, hip: bool = torch.version.hip is not None) -> PartialTile:
    """The tile for a pool; on AMD (`hip`) a program has 64 KiB of shared memory, a third of what it has elsewhere.

    float32 products are no matrix instructions and need the registers of more warps. The 16-bit tile was among the best
    of a sweep on an H100 at both head dims (`python -m scoutattention.bench.gpu.kernels --sweep`).
    """
    if dtype == torch.float32:
        return PartialTile(tokens=32, warps=8, stages=3)
    if hip or head_dim > 128:
        return PartialTile(tokens=32)
    return PartialTile()


def blocks_per_split(rows: int, blocks: int, block_size: int, tile: PartialTile, multiprocessors: int) -> int:
    """Blocks that one program walks, for `rows` lists of `blocks` entries: whole iterations, from shapes alone."""
    splits = ceil_div(tile.waves * multiprocessors, max(1, rows))
    tokens = max(tile.least, ceil_div(blocks * block_size, splits))
    step = ceil_div(tile.tokens, block_size)
    return ceil_div(ceil_div(tokens, block_size), step) * step
