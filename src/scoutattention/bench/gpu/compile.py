"""Compiles every device kernel for several GPUs, none of which has to be there.

`python -m scoutattention.bench.gpu.compile` prints what the compilers say: registers and spills of a thread, shared
memory of a program.
"""

from collections.abc import Iterator

import torch

from ...kernels.triton.base import Launch, ceil_div
from ...kernels.triton.choice import interest_launch, late_launch, split_launch, wish_launch
from ...kernels.triton.merge import correct_launch, merge_launch, scout_error_launch
from ...kernels.triton.move_blocks import append_launch, copy_launch
from ...kernels.triton.page_lists import list_launch
from ...kernels.triton.partial import default_tile, partial_launches
from ...kernels.triton.precompile import TARGETS, compile_launch
from ...kernels.triton.rows import norm_launch, rotate_launch, swiglu_launch
from ...kernels.triton.score_digests import bound_launch, code_launch
from ...kernels.triton.write_digests import bounding_launch, coding_launch
from ...types import (
    BlockList,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Rope,
    SplitChoice,
    SplitRequest,
)

PROCESSORS = 132


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory: a compiler asks for its dtype and strides alone."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(dtype: torch.dtype, head_dim: int, *, hip: bool) -> Iterator[Launch]:
    """Every kernel as a decode step of 8 sequences launches it, 8 KV heads with 4 query heads each."""
    B, H, G, D, N, S, P = 8, 8, 4, head_dim, 256, 2048, 32
    q, k, v = some(B, H, G, D, dtype=dtype), some(S, H, P, D, dtype=dtype), some(S, H, P, D, dtype=dtype)
    index, length = some(B, 1, N, dtype=torch.int32).expand(B, H, N), some(B, H, N, dtype=torch.int32)
    near, far = (Partial(some(B, H, G, D), some(B, H, G), some(B, H, G, D)) for _ in range(2))
    moves = some(64, dtype=torch.int64)
    token = some(B, H, D, dtype=dtype)
    places = some(B, dtype=torch.int64)
    tile = default_tile(D, dtype, hip=hip)
    yield from partial_launches(q, (k, v), BlockList(index, length), 0.1, near, tile, PROCESSORS)
    table, scores = some(B, N, dtype=torch.int32), some(B, H, G, N)
    pages = table[:, None].expand(B, H, N)
    yield bound_launch(q, some(S, H, 2 * D, dtype=dtype), pages, places, scores)
    words, bounds = some(S, H, ceil_div(D, 16), P, 4, dtype=torch.uint8), some(S, H, 2, D, dtype=torch.float16)
    yield code_launch(q, (words, bounds), pages, places, scores)
    yield from choice_launches(scores)
    yield merge_launch(near, far, far)
    yield correct_launch(far, q, q, 0.1, far.lse)
    yield scout_error_launch(far, near, q, q, some(B, H))
    closed, digests = some(64, H, P, D, dtype=dtype), some(S, H, 2 * D)
    yield bounding_launch(closed, digests, moves)
    yield coding_launch(closed, words, bounds, moves)
    listing = PageSelection(table, some(B, H, 63, dtype=torch.int64), some(B, H, 63, dtype=torch.bool), P)
    listed = BlockList(some(B, H, 63, dtype=torch.int32), some(B, H, 63, dtype=torch.int32))
    yield list_launch(listing, listed)
    yield list_launch(listing, listed, q, some(B, H, G, D))
    yield from row_launches(H * G, D, dtype)
    yield append_launch(token, token, (k, v), places, places)
    yield copy_launch((k, v), (k, v), moves, moves, moves, programs=32)


def choice_launches(scores: torch.Tensor) -> Iterator[Launch]:
    """What is made of scores [B, H, G, N]: 63 blocks of a KV head."""
    B, H, _, N = scores.shape
    blocks, mask, wishes = some(B, H, 63, dtype=torch.int64), some(B, H, 63, dtype=torch.bool), some(B, H, N)
    closed, rows, counts = some(B, dtype=torch.int64), some(B, dtype=torch.bool), some(2, B, H, dtype=torch.int64)
    yield wish_launch(scores, closed, wishes, wishes, (1, 1), largest=False)
    slots = some(B, H, N, dtype=torch.int64)
    wished = some(B, H, 63)
    split = SplitRequest(blocks, wished, closed, (slots, 128), (rows, rows, some(B)), 2, counts)
    yield split_launch(split, SplitChoice(mask, mask))
    yield interest_launch(some(B, H, N), blocks, wished, rows, 0.85)
    guard = GuardRequest((blocks, mask, wished), (blocks, mask), some(B, H), rows, 0.02, counts)
    yield late_launch(guard, GuardFinding(some(B, H, dtype=torch.bool), mask))


def row_launches(heads: int, head_dim: int, dtype: torch.dtype) -> Iterator[Launch]:
    """What a layer computes of 8 rows beside its products: norms of rows and of heads, rotary embedding, gated unit."""
    x, width = some(8, heads, head_dim, dtype=dtype), heads * head_dim
    row = some(8, 1, width, dtype=dtype)
    yield norm_launch(row, some(width), 1e-5, row)
    yield norm_launch(x, some(heads, head_dim), 1e-5, x)
    yield rotate_launch(x, Rope(some(8, head_dim), some(8, head_dim)), x)
    yield swiglu_launch(some(8, 8 * width, dtype=dtype), some(8, 4 * width, dtype=dtype))


def main() -> None:
    """Print a line for each kernel, dtype, head dim and target."""
    print(f"{'dtype':<10}{'D':>4}  {'target':<8}{'kernel':<18}{'registers':>10}{'spills':>8}{'shared':>8}")
    for dtype, head_dim in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 128), (torch.float32, 80)):
        for target, (backend, _, _) in TARGETS.items():
            for launch in launches(dtype, head_dim, hip=backend == "hip"):
                it = compile_launch(launch, target)
                usage = f"{it.registers:>10}{it.spills:>8}{it.shared:>8}"
                print(f"{str(dtype)[6:]:<10}{head_dim:>4}  {target:<8}{it.kernel:<18}{usage}")


if __name__ == "__main__":
    main()
