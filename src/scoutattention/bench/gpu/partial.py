"""Times partial attention over slots on a GPU, against PyTorch's attention over the same keys laid out densely."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial as bind

import torch
from torch import Tensor

from ...errors import ScoutError
from ...kernels import reference
from ...kernels.triton import partial as triton_partial
from ...kernels.triton.base import TritonError
from ...kernels.triton.partial import PartialTile
from ...types import BlockList, Partial
from ..common.measure import relative_error
from .timing import Row, Timer, attempt

BLOCK_SIZE = 32
HEADS = 8
WORKING_SET = 512 << 20  # bytes of keys and values, ten times an L2
LIMIT = 1e-2  # of bfloat16
DTYPE = torch.bfloat16

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
            ranked = sorted(times, key=times.__getitem__)
            for tile in ranked[:8]:
                yield Row("sweep", f"{case}: {_name(tile)}", seconds=times[tile], moved=case.moved)
            for tile in times:
                slowdowns[tile].append(times[tile] / times[ranked[0]])
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
