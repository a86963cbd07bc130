"""A prompt's blocks go to host pages by a GPU's copy engines, which take no processor from the kernels beside them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.packed import Blocks, Packed
from ..runtime.pinned import STEP, pieces

MOST_RUNS = 32
"""Runs of pages up to which copy engines are used: the host queues a copy for each, which takes it microseconds."""


class PageRun(NamedTuple):
    """Blocks that follow one another in pages that do: the first of each, and how many there are."""

    block: int
    page: int
    length: int


def page_runs(pages: Sequence[int]) -> list[PageRun]:
    """The runs of blocks 0, 1, ... in these pages."""
    starts = [block for block, page in enumerate(pages) if block == 0 or page != pages[block - 1] + 1]
    ends = [*starts[1:], len(pages)]
    return [PageRun(block, pages[block], end - block) for block, end in zip(starts, ends, strict=False)]


def copy_runs(blocks: Blocks, pages: Blocks, runs: Sequence[PageRun]) -> None:
    """Queue copies of contiguous blocks [n, H, P, D] to contiguous pages [S, H, P, D] of pinned host memory."""
    source, target = _memory(blocks), _memory(pages)
    each = source.numel() // blocks.shape[0]
    for block, page, length in runs:
        for start, end in pieces(page * each, (page + length) * each, STEP):
            at = start + (block - page) * each
            target[start:end].copy_(source[at : at + end - start], non_blocking=True)


def _memory(blocks: Blocks) -> Tensor:
    """All bytes of blocks."""
    return blocks.memory if isinstance(blocks, Packed) else blocks.view(-1).view(torch.uint8)
