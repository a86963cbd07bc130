"""One table of attention calls, made to order in any dtype, and the comparison with float64."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoutattention.kernels import reference
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.reference_stored import expand
from scoutattention.runtime.stored import StoredKind, stored
from scoutattention.runtime.workers import Workers
from scoutattention.types import BlockList, Partial

GARBAGE = 2**31 - 1

Arguments = dict[str, Any]
"""Of a kernel, by their names."""


@dataclass(frozen=True)
class Case:
    """`lengths` are dealt to the listed blocks in turn; `q_scale` makes scores large, or all equal (0)."""

    name: str
    B: int = 1
    H: int = 2
    G: int = 3
    D: int = 64
    P: int = 32
    S: int = 24
    N: int = 8
    lengths: tuple[int, ...] = (32,)
    q_scale: float = 1.0
    expanded: bool = False
    strided: bool = False


CASES = [
    Case("no list", N=0),
    Case("only skipped blocks", lengths=(0,)),
    Case("one key", N=1, lengths=(1,)),
    Case("one key among skipped blocks", lengths=(0, 0, 0, 0, 0, 1, 0, 0)),
    Case("lengths around vectors", N=16, lengths=(0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32)),
    Case("lengths around chunks", P=130, N=6, lengths=(63, 64, 65, 127, 129, 130)),
    Case("pages of one position", P=1, N=24, lengths=(1,)),
    Case("some rows empty", B=3, N=2, lengths=(32, 7, 0, 0)),
    Case("one head a group", G=1, N=12),
    Case("two heads a group", G=2, N=12),
    Case("seven heads a group", G=7, N=12, D=128),
    Case("head dim 128", D=128, lengths=(32, 11)),
    Case("head dim 80", D=80, lengths=(32, 11)),
    Case("head dim 24", D=24, G=5, lengths=(32, 11)),
    Case("head dim 7", D=7, lengths=(32, 11)),
    Case("large scores", q_scale=4000.0),
    Case("equal scores", q_scale=0.0),
    Case("one list for all heads", B=2, H=3, expanded=True, lengths=(32, 5)),
    Case("pages inside a larger pool", strided=True),
    Case("one long sequence", H=3, S=300, N=300, lengths=(32, 32, 9)),
    Case("uneven sequences", B=4, S=80, N=80, lengths=(32,) * 150 + (1,) * 60 + (0,) * 110),
]


@dataclass(frozen=True)
class Call:
    """The arguments of one partial."""

    q: Tensor
    k: Tensor
    v: Tensor
    blocks: BlockList
    scale: float


def make_pool(case: Case, dtype: torch.dtype, layers: int) -> Tensor:
    """[S, H, P, D]; where strided, one layer of a pool that keeps the `layers` of a head together."""
    if not case.strided:
        return torch.randn(case.S, case.H, case.P, case.D).to(dtype)
    return torch.randn(case.S, case.H, layers, case.P, case.D).to(dtype)[:, :, 1]


def make_call(case: Case, dtype: torch.dtype, seed: int = 0) -> Call:
    """Scattered pages, lengths dealt in turn, garbage for an index wherever the length is 0."""
    torch.manual_seed(seed)
    heads = 1 if case.expanded else case.H
    shape = (case.B, heads, case.N)
    dealt = torch.arange(case.B * heads * case.N) % len(case.lengths)
    length = torch.tensor(case.lengths, dtype=torch.int32)[dealt].reshape(shape)
    pages = [torch.randperm(case.S)[: case.N] for _ in range(case.B * heads)]
    index = torch.stack(pages).reshape(shape).to(torch.int32).masked_fill(length == 0, GARBAGE)
    blocks = BlockList(index.expand(case.B, case.H, -1), length.expand(case.B, case.H, -1))
    q = torch.randn(case.B, case.H, case.G, case.D) * case.q_scale
    return Call(q, make_pool(case, dtype, 3), make_pool(case, dtype, 2), blocks, case.D**-0.5)


def exact(call: Call) -> Partial:
    """The call in float64, mean key included."""
    return reference.partial(
        call.q.double(), call.k.double(), call.v.double(), call.blocks, call.scale, with_mean_key=True
    )


def assert_close(got: Partial, want: Partial, q_scale: float = 1.0) -> None:
    """`got` is float32 and `want` as good as exact: a score may be off by its float32 rounding, and no more."""
    tolerance = 3e-6 * max(1.0, q_scale)
    pairs = zip(got, want, strict=True)
    for name, (left, right) in zip(Partial._fields, pairs, strict=True):
        if right is None:
            assert left is None, name
            continue
        assert left is not None, name
        assert left.dtype == torch.float32, name
        torch.testing.assert_close(left.double(), right.double(), rtol=tolerance, atol=tolerance, msg=name)


def scorer(workers: Workers, name: str) -> Callable[..., Tensor]:
    """A native score operation of queries that are scaled already, by default of all pages."""
    operation = partial(getattr(NativeOps(workers), name), scale=1.0)

    def score(*args: Tensor, pages: Tensor, closed: Tensor | None = None, **digests: Tensor) -> Tensor:
        if closed is None:
            closed = torch.full(pages.shape[:1], pages.shape[-1], dtype=torch.int64)
        return operation(*args, pages=pages, closed=closed, **digests)

    return score


def of_closed(scores: Tensor, closed: Tensor) -> Tensor:
    """Scores [B, H, G, N], 0 for what is not closed: a kernel leaves anything there."""
    return scores.masked_fill(torch.arange(scores.shape[-1]) >= closed[:, None, None, None], 0)


def most(numbers: Tensor) -> float:
    """The largest finite magnitude, 0 where there is none."""
    return max(numbers.double().abs().nan_to_num(0, 0, 0).flatten().tolist(), default=0.0)


def code_rounding(args: Arguments) -> float:
    """The most that products rounded to 8 bits change a score: codes lie at most 1.5 from their mean."""
    return most(args["q"]) * most(args["bounds"][..., 1, :]) / 127 * 0.5 * 1.5 * args["q"].shape[-1]


def stored_rounding(args: Arguments) -> float:
    """The most that a row of x changes a product where it is rounded to 8 bits."""
    weight = expand(stored(args["data"], StoredKind.Q4_1, args["x"].shape[-1]), slice(0, None), torch.float64)
    return most(args["x"]) / 127 * 0.5 * most(weight.abs().sum(-1))
