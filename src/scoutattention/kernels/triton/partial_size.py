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


SHORT = 2560
"""Tokens of a list up to which its splits are short: else so few programs would take so long as one."""


def default_tile(
    head_dim: int, dtype: torch.dtype, tokens: int, *, hip: bool = torch.version.hip is not None
) -> PartialTile:
    """The tile for lists of so many tokens of a pool.

    On AMD (`hip`) a program has 64 KiB of shared memory, a third of what it has elsewhere. float32 products are no
    matrix instructions and need the registers of more warps. The 16-bit tiles were among the best of sweeps: on an H100
    at both head dims (`python -m scoutattention.bench.gpu.kernels --sweep`), and with lists of 33 blocks (4 and 8
    sequences); on an H200 with lists of 65 blocks (4, 8 and 18 sequences).
    """
    if dtype == torch.float32:
        return PartialTile(tokens=32, warps=8, stages=3)
    if hip or head_dim > 128:
        return PartialTile(tokens=32)
    if tokens <= SHORT:
        return PartialTile(warps=4, stages=2, least=128)
    return PartialTile()


def blocks_per_split(rows: int, blocks: int, block_size: int, tile: PartialTile, multiprocessors: int) -> int:
    """Blocks that one program walks, for `rows` lists of `blocks` entries: whole iterations, from shapes alone."""
    splits = ceil_div(tile.waves * multiprocessors, max(1, rows))
    tokens = max(tile.least, ceil_div(blocks * block_size, splits))
    step = ceil_div(tile.tokens, block_size)
    return ceil_div(ceil_div(tokens, block_size), step) * step
