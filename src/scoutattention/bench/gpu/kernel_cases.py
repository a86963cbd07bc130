"""Cases of the device kernels' benchmark: attention over slots, scores and choices, and copies of blocks."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from functools import partial as bind

import torch
from torch import Tensor

from ...errors import ScoutError
from ...kernels import reference
from ...kernels.triton import move_blocks as triton_move
from ...kernels.triton import partial as triton_partial
from ...kernels.triton.base import TritonError
from ...kernels.triton.choices import choose as triton_choice
from ...kernels.triton.digests import score as triton_digest
from ...kernels.triton.packed_pages import blocks as triton_packed
from ...kernels.triton.packed_pages import partial as triton_partial_packed
from ...kernels.triton.packed_pages import write as triton_write
from ...kernels.triton.partial_size import PartialTile
from ...runtime.packed import Packed, pack
from ...types import BlockList, Copies, Partial
from ..common.measure import relative_error
from .timing import Row, Timer, attempt

HEADS, BLOCK_SIZE, DTYPE = 8, 32, torch.bfloat16
WORKING_SET = 512 << 20
"""Bytes of keys and values, ten times an L2."""
LIMIT = 1e-2
"""Largest relative error, of bfloat16."""
GROUP, HEAD_DIM, CHOSEN = 4, 128, 64
"""Of the cases that choose and copy: query heads of a KV head, channels, and blocks that are chosen."""
PAGES = 1024
"""Pages of the host pool, 1 MiB each."""

SWEEP_TOKENS, SWEEP_WARPS, SWEEP_STAGES, SWEEP_WAVES = (32, 64, 128), (2, 4, 8), (1, 3, 5, 7), (2, 4, 8, 16)
SWEEP_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class DecodeCase:
    """One decode step of B sequences over slots that fill WORKING_SET bytes."""

    B: int
    G: int
    D: int
    scattered: bool = True

    @property
    def N(self) -> int:
        """Blocks of a sequence."""
        return WORKING_SET // (self.B * HEADS * BLOCK_SIZE * 2 * self.D * DTYPE.itemsize)

    @property
    def moved(self) -> int:
        """Bytes that a call has to move: keys, values, lists, queries and results."""
        entries, outs = self.B * self.N, self.B * HEADS * self.G
        keys = entries * HEADS * BLOCK_SIZE * 2 * self.D * DTYPE.itemsize
        return keys + 4 * entries * (1 + HEADS) + outs * (self.D * (DTYPE.itemsize + 4) + 4)

    def __str__(self) -> str:
        layout = "scattered" if self.scattered else "contiguous"
        return f"B {self.B} G {self.G} D {self.D} tokens {self.N * BLOCK_SIZE} {layout}"


@dataclass(frozen=True)
class Problem:
    """A case's tensors."""

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: BlockList
    out: Partial
    scale: float

    def run(self, tile: PartialTile | None = None) -> Partial:
        """The call that is timed."""
        return triton_partial.partial(self.q, self.k, self.v, self.blocks, self.scale, out=self.out, tile=tile)


def make_problem(case: DecodeCase) -> Problem:
    """Fresh random tensors, outputs poisoned; every head of a sequence has the same slots."""
    B, G, D, N = case.B, case.G, case.D, case.N
    k, v = (torch.randn(B * N, HEADS, BLOCK_SIZE, D, device="cuda", dtype=DTYPE) for _ in range(2))
    slots = torch.randperm(B * N, device="cuda") if case.scattered else torch.arange(B * N, device="cuda")
    index = slots.reshape(B, 1, N).to(torch.int32).expand(B, HEADS, N)
    length = torch.full((B, HEADS, N), BLOCK_SIZE, dtype=torch.int32, device="cuda")
    q = torch.randn(B, HEADS, G, D, device="cuda", dtype=DTYPE)
    out = Partial(torch.full(q.shape, torch.nan, device="cuda"), torch.full(q.shape[:3], torch.nan, device="cuda"))
    return Problem(q, k, v, BlockList(index, length), out, D**-0.5)


def torch_attention(problem: Problem) -> Callable[[], Tensor]:
    """PyTorch's attention over the same queries [B, Q, 1, D] and, laid out densely, keys and values [B, H, T, D]."""
    slots = problem.blocks.index[:, 0].long()
    keys, values = (pool[slots].transpose(1, 2).flatten(2, 3).contiguous() for pool in (problem.k, problem.v))
    q = problem.q.flatten(1, 2)[:, :, None]
    return bind(torch.nn.functional.scaled_dot_product_attention, q, keys, values, enable_gqa=q.shape[1] > HEADS)


def time_case(case: DecodeCase, timer: Timer) -> Row:
    """Check a case, time it, and time PyTorch's attention on it, where that runs."""
    problem = make_problem(case)
    problem.run()
    q, k, v = problem.q.double(), problem.k.double(), problem.v.double()
    error = relative_error(problem.out.out, reference.partial(q, k, v, problem.blocks, problem.scale).out)
    del q, k, v
    seconds = timer.seconds(problem.run)
    plain = attempt("", "", lambda: Row("", "", seconds=timer.seconds(torch_attention(problem))))
    more = {} if plain.seconds is None else {"torch attention seconds": plain.seconds}
    return Row("", "", error, LIMIT, seconds, case.moved, more)


def decode_rows(timer: Timer, *, quick: bool) -> Iterator[Row]:
    """A row for every case."""
    cases = [DecodeCase(*sizes) for sizes in itertools.product((1, 8, 32), (1, 4, 7, 8), (64, 128), (False, True))]
    if quick:
        cases = [DecodeCase(1, 4, 128), DecodeCase(8, 1, 64), DecodeCase(8, 8, 128), DecodeCase(32, 7, 128)]
    for case in cases:
        yield attempt("partial", str(case), bind(time_case, case, timer))
        torch.cuda.empty_cache()


def sweep_rows(timer: Timer) -> Iterator[Row]:
    """For each shape the eight fastest tiles; then, for each head dim, the best tiles over all its shapes."""
    tiles = [PartialTile(*sizes) for sizes in itertools.product(SWEEP_TOKENS, SWEEP_WARPS, SWEEP_STAGES, SWEEP_WAVES)]
    for D in (64, 128):
        slowdowns: dict[PartialTile, list[float]] = {tile: [] for tile in tiles}
        for B in SWEEP_BATCHES:
            case = DecodeCase(B, 4, D)
            times = _time_tiles(make_problem(case), tiles, timer)
            top = sorted(times, key=times.__getitem__)
            for tile in top[:8]:
                yield Row("sweep", f"{case}: {_name(tile)}", seconds=times[tile], moved=case.moved)
            for tile in times:
                slowdowns[tile].append(times[tile] / times[top[0]])
            torch.cuda.empty_cache()
        whole = {tile: math.prod(each) ** (1 / len(each)) for tile, each in slowdowns.items() if len(each) == 3}
        for tile in sorted(whole, key=whole.__getitem__)[:8]:
            yield Row("sweep", f"D {D}, all batches: {_name(tile)}", more={"slowdown": whole[tile]})


def _time_tiles(problem: Problem, tiles: list[PartialTile], timer: Timer) -> dict[PartialTile, float]:
    """Seconds of each tile that compiles and fits the device."""
    times = {}
    for tile in tiles:
        try:
            times[tile] = timer.seconds(bind(problem.run, tile))
        except (RuntimeError, ScoutError, TritonError) as error:
            print(f"sweep: {_name(tile)} was left out: {str(error)[:100]}")
    return times


def _name(tile: PartialTile) -> str:
    return f"tokens {tile.tokens} warps {tile.warps} stages {tile.stages} waves {tile.waves}"


def on_device(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Normal random numbers on the device."""
    return torch.randn(shape, device="cuda").to(dtype)


def some_codes(pages: int) -> tuple[Tensor, Tensor]:
    """Random keys in 2 bits a channel: codes and bounds."""
    codes = torch.randint(0, 256, (pages, HEADS, HEAD_DIM // 16, BLOCK_SIZE, 4), dtype=torch.uint8, device="cuda")
    return codes, torch.rand(pages, HEADS, 2, HEAD_DIM, device="cuda").half()


def time_choice(B: int, N: int, timer: Timer) -> Row:
    """Scores of 2-bit keys of B sequences of N closed blocks, and how long choosing the best of them takes."""
    pages = torch.randperm(B * N, device="cuda").reshape(B, 1, N).to(torch.int32).expand(B, HEADS, N)
    closed = torch.full((B,), N, device="cuda")
    (codes, bounds), q = some_codes(B * N), on_device(B, HEADS, GROUP, HEAD_DIM)
    scores = triton_digest.score_key_codes(q, codes, bounds, pages, closed)
    seconds = timer.seconds(lambda: triton_digest.score_key_codes(q, codes, bounds, pages, closed))
    count = min(CHOSEN, N)
    choosing = timer.seconds(lambda: triton_choice.top_blocks(scores, closed, count, (1, 1), largest=False))
    moved = codes.nbytes + bounds.nbytes + 4 * B * N + scores.nbytes
    return Row("", "", seconds=seconds, moved=moved, more={"ranking seconds": choosing})


@cache
def host_pools(entries: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer in pinned host memory, which takes long to make."""
    shape = (1, entries, HEADS, BLOCK_SIZE, HEAD_DIM)
    k, v = (torch.randn(shape).to(DTYPE).pin_memory() for _ in range(2))
    return k, v


def time_recall(moves: int, programs: int, timer: Timer) -> Row:
    """Scattered blocks read by the device from pinned host memory."""
    source = host_pools(PAGES)
    target = (torch.empty_like(source[0], device="cuda"), torch.empty_like(source[1], device="cuda"))
    place = torch.randperm(PAGES * HEADS, device="cuda")[:moves]
    page, head = place // HEADS, place % HEADS
    entry = PAGES - 1 - page
    copies = Copies(torch.zeros_like(page), page, entry, head)
    call = bind(triton_move.copy_blocks, source, target, copies, programs=programs)
    return Row("", "", seconds=timer.seconds(call), moved=moves * 2 * BLOCK_SIZE * HEAD_DIM * DTYPE.itemsize)


def time_host_copy(moves: int, timer: Timer) -> Row:
    """One plain copy of the bytes of `moves` blocks from pinned host memory."""
    source = host_pools(PAGES)[0].view(-1, 2, BLOCK_SIZE, HEAD_DIM)[:moves]
    target = torch.empty_like(source, device="cuda")
    return Row("", "", seconds=timer.seconds(lambda: target.copy_(source, non_blocking=True)), moved=source.nbytes)


@cache
def packed_pools(bits: int) -> tuple[Packed, Packed]:
    """The pages of `host_pools` in codes, in pinned host memory."""
    k, v = (pool[0] for pool in host_pools(PAGES))
    keys, values = (
        replace(packed, words=packed.words.pin_memory(), bounds=packed.bounds.pin_memory())
        for packed in (pack(k, bits, by_token=False), pack(v, bits, by_token=True))
    )
    return keys, values


def head_bytes(pools: tuple[Packed, Packed]) -> int:
    """Bytes of one block of one KV head."""
    return sum(pool[0, 0].words.nbytes + pool[0, 0].bounds.nbytes for pool in pools)


def time_packed_recall(moves: int, bits: int, timer: Timer) -> Row:
    """Scattered packed blocks, unpacked on their way from pinned host memory."""
    source = packed_pools(bits)
    k, v = (torch.empty(source[0].shape, dtype=DTYPE, device="cuda") for _ in range(2))
    place = torch.randperm(PAGES * HEADS)[:moves]
    page, head = place // HEADS, place % HEADS
    entry = PAGES - 1 - page
    there = (index.cuda() for index in (page, entry, head))
    call = bind(triton_packed.copy_packed_blocks, source, (k, v), *there, programs=32)
    call()
    error = max(
        relative_error(pool[entry, head], kept[page, head].to(DTYPE)) for pool, kept in ((k, source[0]), (v, source[1]))
    )
    return Row("", "", error, 0.0, timer.seconds(call), moves * head_bytes(source))


def time_packing(blocks: int, bits: int, timer: Timer) -> Row:
    """Blocks of all KV heads, packed on their way to pinned host memory."""
    source, target = host_pools(PAGES), packed_pools(bits)
    pages = torch.randperm(PAGES)[:blocks]
    k, v = (pool[0, pages].cuda() for pool in source)  # what the pages hold already
    wanted = target[0][pages].float(), target[1][pages].float()
    call = bind(triton_write.write_packed_blocks, k, v, target, pages.cuda())
    call()
    torch.cuda.synchronize()
    error = max(relative_error(pool[pages].float(), want) for pool, want in zip(target, wanted, strict=True))
    return Row("", "", error, 0.0, timer.seconds(call), blocks * HEADS * head_bytes(target))


def time_late(B: int, bits: int, timer: Timer) -> Row:
    """Attention to packed pages in pinned host memory: two of CHOSEN listed blocks of each KV head."""
    pools, q = packed_pools(bits), on_device(B, HEADS, GROUP, HEAD_DIM)
    index = torch.randint(0, PAGES, (B, HEADS, CHOSEN)).int()
    length = BLOCK_SIZE * (torch.rand(B, HEADS, CHOSEN).argsort(-1) < 2).int()
    there = BlockList(index.cuda(), length.cuda())
    call = bind(triton_partial_packed.partial_packed, q, pools, there, HEAD_DIM**-0.5)
    wanted = reference.partial(q.cpu().double(), *pools, BlockList(index, length), HEAD_DIM**-0.5)
    error = relative_error(call().out, wanted.out)
    return Row("", "", error, 1e-4, timer.seconds(call), 2 * B * HEADS * head_bytes(pools))


def other_rows(timer: Timer, *, quick: bool) -> Iterator[Row]:
    """A row for every case."""
    for B, N in ((8, 1024),) if quick else ((1, 1024), (1, 4096), (8, 1024), (8, 4096), (32, 1024)):
        yield attempt("score_key_codes", f"B {B} N {N}", bind(time_choice, B, N, timer))
    for moves in (256, 4096):
        yield attempt("copy from host", f"{moves} blocks", bind(time_host_copy, moves, timer))
        for programs in (32,) if quick else (4, 8, 16, 32, 64, 132):
            case = f"{moves} blocks, {programs} programs"
            yield attempt("copy_blocks from host", case, bind(time_recall, moves, programs, timer))
        for bits in (8, 4):
            yield attempt(
                "copy_packed_blocks", f"{moves} blocks, {bits} bits", bind(time_packed_recall, moves, bits, timer)
            )
    for bits in (8, 4):
        yield attempt("write_packed_blocks", f"256 blocks, {bits} bits", bind(time_packing, 256, bits, timer))
        yield attempt("partial_packed", f"B 8, 2 of {CHOSEN} blocks, {bits} bits", bind(time_late, 8, bits, timer))
