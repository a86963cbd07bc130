"""Partial attention over the same blocks as bfloat16, 8-bit and 4-bit pages, scattered: interleaved medians."""

import itertools
from functools import partial

import torch

from scoutattention.bench.common.measure import interleaved
from scoutattention.runtime.packed import Blocks, empty_packed
from scoutattention.runtime.workers import Workers
from scoutattention.types import BlockList

HEADS, BLOCK_SIZE, MEMORY, ROUNDS = 8, 32, 192 << 20, 9
"""KV heads; tokens of a block; bytes of the bfloat16 pages; calls of each."""


def pools(head_dim: int) -> list[tuple[Blocks, Blocks]]:
    """Keys and values [S, H, P, D] of some blocks, in the three formats."""
    blocks = MEMORY // (HEADS * BLOCK_SIZE * head_dim * 2 * 2)
    k, v = (torch.randn(blocks, HEADS, BLOCK_SIZE, head_dim).to(torch.bfloat16) for _ in range(2))
    made: list[tuple[Blocks, Blocks]] = [(k, v)]
    for bits in (8, 4):
        packed = [empty_packed(tuple(k.shape), bits, by_token=by_token) for by_token in (False, True)]
        packed[0][:], packed[1][:] = k, v
        made.append((packed[0], packed[1]))
    return made


def main() -> None:
    """Print a line for each shape."""
    torch.manual_seed(0)
    print("D    G  mean key  bfloat16  int8            int4")
    with Workers() as workers:
        for head_dim in (64, 128):
            made = pools(head_dim)
            count = made[0][0].shape[0]
            index = torch.randperm(count).int().expand(1, HEADS, count)
            blocks = BlockList(index, torch.full((1, HEADS, count), BLOCK_SIZE, dtype=torch.int32))
            for group, mean_key in itertools.product((3, 4, 8), (False, True)):
                q = torch.randn(1, HEADS, group, head_dim)
                call = partial(workers.partial, q, scale=head_dim**-0.5, blocks=blocks, with_mean_key=mean_key)
                calls = [partial(call, k=k, v=v) for k, v in made]
                plain, *packed = interleaved(calls, ROUNDS)
                columns = "  ".join(f"{1e3 * t:5.2f} ms, {plain / t:.2f}x" for t in packed)
                print(f"{head_dim:<4} {group}  {mean_key!s:8}  {1e3 * plain:5.2f} ms  {columns}", flush=True)


if __name__ == "__main__":
    main()
