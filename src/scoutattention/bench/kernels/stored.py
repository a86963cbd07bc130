"""Checks and times the native products of a few rows with weights in stored blocks."""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from ...hardware.host import usable_cores
from ...kernels import reference_rows
from ...kernels.native import RowKernels
from ...runtime.stored import StoredKind, StoredMatrix, stored
from ...runtime.workers import Workers, isa_levels
from ..common.measure import interleaved, relative_error

COLUMNS = 4096
ROWS = (1, 2, 4, 8)
LIMIT = 1e-3
"""Largest relative error: rows are rounded to 16 bits in each 256 columns."""
_TIMED_ON_ALL = (StoredKind.Q4_1, StoredKind.Q4_K, StoredKind.Q8_0)


@dataclass(frozen=True)
class WeightCase:
    """One product.   kind: of the stored blocks.   rows: that are multiplied.   threads: that share the work."""

    kind: str
    rows: int
    isa: str
    threads: int


@dataclass(frozen=True)
class WeightTiming:
    """What was measured of a case.

    max_rel_err: relative error of its result, on less data.   seconds: median of a call.
    gbps, read_gbps: 10^9 bytes per second that it read, and that the same threads read when they do nothing else.
    """

    case: WeightCase
    max_rel_err: float
    seconds: float
    gbps: float
    read_gbps: float

    def as_dict(self) -> dict[str, object]:
        """The measurement, and values computed from it."""
        return asdict(self.case) | {
            "gbps": self.gbps,
            "share_of_read_bandwidth": self.gbps / self.read_gbps,
            "max_rel_err": self.max_rel_err,
            "seconds": self.seconds,
            "read_gbps": self.read_gbps,
        }


def random_blocks(kind: StoredKind, rows: int, columns: int, most: float = 2.0) -> StoredMatrix:
    """Any numbers; of quantised kinds any codes, with scales of magnitudes up to `most`."""
    if kind.dtype is not None:
        return stored(torch.randn(rows, columns).to(kind.dtype).view(torch.uint8), kind, columns)
    blocks = torch.randint(256, (rows, columns // kind.length, kind.size), dtype=torch.uint8)
    for at in kind.scales:
        scale = (torch.rand(rows, columns // kind.length, 1) * 2 - 1) * most
        blocks[..., at : at + 2] = scale.half().view(torch.uint8)
    return stored(blocks.flatten(1), kind, columns)


def timed_cases(*, quick: bool) -> list[WeightCase]:
    """Every kind on the best instruction set, then a few on the others."""
    cores, best = usable_cores(), isa_levels()[-1]
    if quick:
        return [WeightCase(kind.name, 1, best, cores) for kind in _TIMED_ON_ALL]
    cases = [WeightCase(kind.name, rows, best, cores) for kind, rows in itertools.product(StoredKind, ROWS)]
    others = itertools.product(_TIMED_ON_ALL, isa_levels()[:-1])
    return [*cases, *(WeightCase(kind.name, 1, isa, cores) for kind, isa in others)]


def error(case: WeightCase) -> float:
    """The relative error of a case's result, on little data."""
    torch.manual_seed(0)
    weight, x = random_blocks(StoredKind[case.kind], 67, 512), torch.randn(case.rows, 512)
    with Workers(case.threads, isa=case.isa) as workers:
        got = RowKernels(workers).linear(x, weight)
    return relative_error(got, reference_rows.linear(x.double(), weight))


def measure(case: WeightCase, size: int, rounds: int) -> WeightTiming:
    """Time a case on `size` bytes: in every round the product and a plain read."""
    torch.manual_seed(0)
    kind = StoredKind[case.kind]
    few = random_blocks(kind, 64, COLUMNS).parts[0].data
    data = few.repeat(max(1, size // few.nbytes), 1)  # of whole groups of 256 bytes, as 64 rows are
    weight, x = stored(data, kind, COLUMNS), torch.randn(case.rows, COLUMNS)
    with Workers(case.threads, isa=case.isa) as workers:
        ops = RowKernels(workers)
        seconds, read = interleaved([lambda: ops.linear(x, weight), lambda: workers.read(data)], rounds)
    return WeightTiming(case, error(case), seconds, data.nbytes / seconds / 1e9, data.nbytes / read / 1e9)


def wrong() -> Iterator[tuple[WeightCase, float]]:
    """The cases whose error is above its limit, or is no number."""
    for kind, isa in itertools.product(StoredKind, isa_levels()):
        case = WeightCase(kind.name, 3, isa, 1)
        found = error(case)
        if not found <= LIMIT:
            yield case, found
