"""Times the device kernels beside attention: choices, and copies of blocks from the host."""

from collections.abc import Iterator
from functools import cache
from functools import partial as bind

import torch
from torch import Tensor

from ...kernels.triton import choice as triton_rank
from ...kernels.triton import move_blocks as triton_move
from ...kernels.triton import score_digests as triton_digest
from .timing import Row, Timer, attempt

HEADS, GROUP, HEAD_DIM, BLOCK_SIZE = 8, 4, 128, 32
DTYPE = torch.bfloat16
CHOSEN = 64
PAGES = 1024  # of the host pool, 1 MiB each


def on_device(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Normal numbers on the device."""
    return torch.randn(shape, device="cuda").to(dtype)


def some_codes(pages: int) -> tuple[Tensor, Tensor]:
    """Keys in 2 bits a channel, as good as any: codes and bounds."""
    codes = torch.randint(0, 256, (pages, HEADS, HEAD_DIM // 16, BLOCK_SIZE, 4), dtype=torch.uint8, device="cuda")
    return codes, torch.rand(pages, HEADS, 2, HEAD_DIM, device="cuda").half()


def time_choice(B: int, N: int, timer: Timer) -> Row:
    """Scores of 2-bit keys of B sequences of N closed blocks, and how long choosing the best of them takes."""
    pages = torch.randperm(B * N, device="cuda").reshape(B, N).to(torch.int32)
    (codes, bounds), q = some_codes(B * N), on_device(B, HEADS, GROUP, HEAD_DIM)
    scores = triton_digest.score_key_codes(q, codes, bounds, pages)
    closed = torch.full((B,), N, device="cuda")
    seconds = timer.seconds(lambda: triton_digest.score_key_codes(q, codes, bounds, pages))
    count = min(CHOSEN, N)
    rank = timer.seconds(lambda: triton_rank.top_blocks(scores, closed, count, (1, 1), largest=False))
    moved = codes.nbytes + bounds.nbytes + pages.nbytes + scores.nbytes
    return Row("", "", seconds=seconds, moved=moved, more={"ranking seconds": rank})


@cache
def host_pools(entries: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer in pinned host memory, which takes long to make."""
    shape = (entries, HEADS, BLOCK_SIZE, HEAD_DIM)
    k, v = (torch.randn(shape).to(DTYPE).pin_memory() for _ in range(2))
    return k, v


def time_recall(moves: int, programs: int, timer: Timer) -> Row:
    """Scattered blocks read by the device from pinned host memory."""
    source = host_pools(PAGES)
    target = (torch.empty_like(source[0], device="cuda"), torch.empty_like(source[1], device="cuda"))
    place = torch.randperm(PAGES * HEADS, device="cuda")[:moves]
    page, head = place // HEADS, place % HEADS
    entry = PAGES - 1 - page
    call = bind(triton_move.copy_blocks, source, target, page, entry, head, programs=programs)
    return Row("", "", seconds=timer.seconds(call), moved=moves * 2 * BLOCK_SIZE * HEAD_DIM * DTYPE.itemsize)


def time_host_copy(moves: int, timer: Timer) -> Row:
    """One plain copy of as many bytes as `moves` blocks have, from pinned host memory."""
    source = host_pools(PAGES)[0].view(-1, 2, BLOCK_SIZE, HEAD_DIM)[:moves]
    target = torch.empty_like(source, device="cuda")
    return Row("", "", seconds=timer.seconds(lambda: target.copy_(source, non_blocking=True)), moved=source.nbytes)


def other_rows(timer: Timer, *, quick: bool) -> Iterator[Row]:
    """A row for every case."""
    for B, N in ((8, 1024),) if quick else ((1, 1024), (1, 4096), (8, 1024), (8, 4096), (32, 1024)):
        yield attempt("score_key_codes", f"B {B} N {N}", bind(time_choice, B, N, timer))
    for moves in (256, 4096):
        yield attempt("copy from host", f"{moves} blocks", bind(time_host_copy, moves, timer))
        for programs in (32,) if quick else (4, 8, 16, 32, 64, 132):
            case = f"{moves} blocks, {programs} programs"
            yield attempt("copy_blocks from host", case, bind(time_recall, moves, programs, timer))
