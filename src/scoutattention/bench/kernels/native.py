"""Checks the native CPU kernels against plain PyTorch, and times them against a plain read of the same memory."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch

from ...cache.pool import TORCH_DTYPES
from ...hardware.host import usable_cores
from ...runtime.workers import Workers, isa_levels
from ...shape import PACKED_BITS
from ..common.measure import interleaved, relative_error
from .problems import LAYOUTS, PARTIALS, SCORES, Case, make_problem, small

LIMITS = dict.fromkeys(PARTIALS, 1e-5) | {SCORES[0]: 1e-5, SCORES[1]: 1e-2}
"""Largest relative errors. Sums are in float32; scores of 2-bit keys round the queries to 8 bits."""

PACKED_LIMIT = 1e-3
"""Largest relative error on packed pages, against the plain kernel over the same codes; products have 16 bits."""

DTYPES = (*TORCH_DTYPES, *PACKED_BITS)
HEAD_DIMS, GROUPS = (64, 128), (1, 3, 4, 7, 8)
TIMED_DTYPE = "bfloat16"


@dataclass(frozen=True)
class Timing:
    """What was measured of a case.

    max_rel_err: the largest relative error of its results, on less data.   seconds: median of a call.
    gbps, read_gbps: 10^9 bytes per second that it read, and that the same threads read when they do nothing else.
    sdpa_seconds: of PyTorch's attention over the same keys laid out densely, as users call it, with `enable_gqa=True`,
        and with as many threads; None for scores.
    grouped_seconds: of the same with the group's heads given as rows of one head, which PyTorch does faster.
    """

    case: Case
    max_rel_err: float
    seconds: float
    gbps: float
    read_gbps: float
    sdpa_seconds: float | None
    grouped_seconds: float | None

    def as_dict(self) -> dict[str, object]:
        """The measurement, and what follows from it; vs_sdpa is how many times as fast as PyTorch's attention.

        vs_sdpa_grouped: the same, of PyTorch's attention called with the group's heads as rows.
        """
        return asdict(self.case) | {
            "gbps": self.gbps,
            "share_of_read_bandwidth": self.gbps / self.read_gbps,
            "vs_sdpa": None if self.sdpa_seconds is None else self.sdpa_seconds / self.seconds,
            "vs_sdpa_grouped": None if self.grouped_seconds is None else self.grouped_seconds / self.seconds,
            "max_rel_err": self.max_rel_err,
            "seconds": self.seconds,
            "read_gbps": self.read_gbps,
        }


def check_cases(*, quick: bool) -> list[Case]:
    """Each kernel for each instruction set and each dtype that it reads, in several shapes."""
    shapes = [(128, 7)] if quick else [*itertools.product(HEAD_DIMS, GROUPS), (80, 3)]
    bodies = [*itertools.product(PARTIALS, DTYPES), *((kernel, TIMED_DTYPE) for kernel in SCORES)]
    return [
        Case(kernel, isa, dtype, D, G, "scattered", 1)
        for isa, (kernel, dtype), (D, G) in itertools.product(isa_levels(), bodies, shapes)
    ]


def timed_cases(*, quick: bool) -> list[Case]:
    """The best instruction set in every shape, then the other instruction sets and dtypes in one shape."""
    cores, best = usable_cores(), isa_levels()[-1]
    threads = [cores] if quick else sorted({*(1 << n for n in range(cores.bit_length()) if 1 << n < cores), cores})
    dims, groups, layouts = ((128,), (4,), LAYOUTS[1:]) if quick else (HEAD_DIMS, GROUPS, LAYOUTS)
    shapes = itertools.product(dims, (*PARTIALS, *SCORES), groups, layouts, threads)
    cases = [Case(kernel, best, TIMED_DTYPE, D, G, layout, count) for D, kernel, G, layout, count in shapes]
    one = Case(PARTIALS[0], best, TIMED_DTYPE, 128, 4, "scattered", cores)
    others = itertools.product(DTYPES, isa_levels())
    return list(dict.fromkeys([*cases, *(replace(one, isa=isa, dtype=dtype) for dtype, isa in others)]))


def error(case: Case) -> float:
    """The largest relative error of a case's results, on little data with blocks of any length."""
    problem = small(case)
    with Workers(case.threads, isa=case.isa) as workers:
        got = problem.run(workers)
    return max(relative_error(*pair) for pair in zip(got, problem.wanted(), strict=True))


def measure(case: Case, size: int, rounds: int) -> Timing:
    """Time a case on `size` bytes: in every round the kernel, a plain read, and PyTorch's attention."""
    problem = make_problem(case, size)
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    with Workers(case.threads, isa=case.isa) as workers:
        calls = [lambda: problem.run(workers), lambda: workers.read(problem.memory), *problem.dense]
        seconds, read, *sdpa = interleaved(calls, rounds)
    torch.set_num_threads(before)
    gbps, read_gbps = problem.moved / seconds / 1e9, problem.memory.nbytes / read / 1e9
    gqa, grouped = sdpa or (None, None)
    return Timing(case, error(case), seconds, gbps, read_gbps, gqa, grouped)


def wrong(*, quick: bool) -> Iterator[tuple[Case, float]]:
    """The cases whose error is above its limit, or is no number."""
    for case in check_cases(quick=quick):
        found = error(case)
        if not found <= (PACKED_LIMIT if case.dtype in PACKED_BITS else LIMITS[case.kernel]):
            yield case, found
