"""The native kernels of a CPU: a decode step's attention, and what a layer computes of a few rows.

The native side checks every tensor that it is given.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from ..errors import KernelError
from ..runtime.memory import CPU
from ..runtime.packed import Blocks
from ..runtime.stored import StoredMatrix, StoredRows, in_order
from ..runtime.workers import Workers
from ..types import (
    BlockList,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    Pools,
    Rope,
    SplitChoice,
    SplitRequest,
    TopBlocks,
)
from . import reference_rows, reference_stored
from .plain import PlainOps, left_out
from .reference_rows import HeadPlacing, LayerEnd, RowCorrection
from .requests import CodesRequest, NearRequest, TopRequest

MOST_ROWS = 16
"""Rows up to which every CPU multiplies stored blocks as they are; of more rows PyTorch's products may be as fast.

They have one kernel, so that a row's product does not depend on how many others are in the batch.
"""


class NativeOps(PlainOps):
    """The native kernels, on the threads of `workers`; what is not native is PyTorch's, as in `PlainOps`.

    Products with 2-bit keys are rounded to 8 bits. Of equal wishes the earlier block comes first.
    """

    def __init__(self, workers: Workers) -> None:
        super().__init__(CPU)
        self._workers = workers
        self._native = workers.native

    @override
    def causal(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = torch.empty(q.shape)
        self._native.causal(q.to(k.dtype), k, v, scale, out)
        return out.to(k.dtype)

    @override
    def partial(self, q: Tensor, k: Blocks, v: Blocks, blocks: BlockList, scale: float) -> Partial:
        return self._workers.partial(q, k, v, blocks, scale)

    @override
    def append(self, k: Tensor, v: Tensor, pools: Pools, entry: Tensor, fill: Tensor) -> None:
        for pool, new in zip(pools, (k, v), strict=True):
            self._native.append(new, pool, entry, fill)

    @override
    def page_list(self, what: PageSelection) -> BlockList:
        return BlockList(*self._native.page_list(*what))

    @override
    def near_list(self, what: NearRequest) -> BlockList:
        return BlockList(*self._native.near_list(what))

    @override
    def write_key_codes(self, what: CodesRequest) -> None:
        self._native.write_key_codes(what._replace(k=what.k.float()))

    @override
    def project(self, q: Tensor, basis: Tensor) -> Tensor:
        return self._native.project(_floats(q).flatten(0, 1), basis.flatten(0, 1)).view(*q.shape[:3], -1)

    @override
    def score_min_max(self, q: Tensor, digests: Tensor, pages: Tensor, closed: Tensor, scale: float) -> Tensor:
        return self._native.score_min_max(_floats(q * scale), digests, pages, closed)

    @override
    def score_key_codes(
        self, q: Tensor, codes: Tensor, bounds: Tensor, pages: Tensor, closed: Tensor, scale: float
    ) -> Tensor:
        return self._native.score_key_codes(_floats(q * scale), codes, bounds, pages, closed)

    @override
    def top_blocks(
        self, scores: Tensor, closed: Tensor, count: int, always: tuple[int, int], *, largest: bool
    ) -> TopBlocks:
        return TopBlocks(*self._native.top_blocks(scores, closed, count, always, largest))

    @override
    def top_by_key_codes(self, what: TopRequest) -> TopBlocks:
        return TopBlocks(*self._native.top_by_key_codes(what._replace(q=_floats(what.q))))

    @override
    def split_choice(self, what: SplitRequest) -> SplitChoice:
        return SplitChoice(*self._native.split_choice(what))

    @override
    def update_interest(self, interest: Tensor, blocks: Tensor, wishes: Tensor, rows: Tensor, kept: float) -> None:
        self._native.update_interest(interest, blocks, wishes, rows, kept)

    @override
    def find_late(self, what: GuardRequest) -> GuardFinding:
        return GuardFinding(*self._native.find_late(what))

    @override
    def scout_error(self, far: Partial, near: Partial, q: Tensor, q_hat: Tensor) -> Tensor:
        return self._native.scout_error(far, near, _floats(q), _floats(q_hat))

    @override
    def corrected(self, far: Partial, q: Tensor, q_hat: Tensor, scale: float) -> Partial:
        return far._replace(lse=self._native.corrected_lse(far, _floats(q), _floats(q_hat), scale))

    @override
    def merge(self, a: Partial, b: Partial, without: Tensor | None = None) -> Partial:
        a = a if without is None else left_out(a, without)
        return Partial(*self._native.merge(a, b))


class RowKernels:
    """What a decoder layer computes of a few rows: each weight is read from memory once, in the dtype that it has.

    A decode step is bound by reading weights, and PyTorch's products of a few rows read them at half to a quarter of
    the memory's speed (docs/lab/2026-11-23-matrix-products.md). The results are those of `reference_rows`; all but the
    weights is float32. Every method raises KernelError where a tensor does not fit.
    """

    def __init__(self, workers: Workers) -> None:
        self._native = workers.native

    def _rows(self, x: Tensor) -> Tensor:
        return _floats(x)

    def linear(self, x: Tensor, weight: Tensor | StoredMatrix) -> Tensor:
        """Rows x [T, A] times weight^T.   weight: [B, A], or [T, B, A], one for each row; matrices contiguous.

        With a stored matrix, rows are rounded to 16 bits in each 256 columns, and multiplied with the blocks as they
        are. So are more than MOST_ROWS rows where there are kernels for many, and x is not bfloat16, which PyTorch
        multiplies as fast there. Else their product is PyTorch's, with tiles that are expanded. The product of so many
        is in the dtype of x.
        """
        if isinstance(weight, StoredMatrix):
            if x.dim() == 2 and x.shape[0] > MOST_ROWS:
                return self._linear_of_many(x, weight)
            return self._linear_of_blocks(x, weight, many=False)
        return self._native.linear(_floats(x), weight)

    def _linear_of_blocks(self, x: Tensor, weight: StoredMatrix, *, many: bool) -> Tensor:
        x, weight = in_order(x, weight)
        parts = [(part.data, part.kind.number) for part in weight.parts]
        return self._native.linear_stored(_floats(x), parts, many)

    def _has_many_rows(self, weight: StoredMatrix) -> bool:
        """Whether there are kernels for many rows, for each part of a matrix."""
        return self._native.has_many_rows and all(part.kind.dtype is None for part in weight.parts)

    def _linear_of_many(self, x: Tensor, weight: StoredMatrix) -> Tensor:
        if x.shape[1] != weight.columns or not x.is_floating_point():
            raise KernelError(
                f"x is {x.dtype} {list(x.shape)}, and the stored matrix has {weight.columns} columns: x must have "
                "floats, and as many columns"
            )
        if x.dtype == torch.bfloat16 or not self._has_many_rows(weight):
            return reference_rows.linear(x, weight, self._fill)
        return self._linear_of_blocks(x, weight, many=True).to(x.dtype)

    def expand(self, weight: StoredMatrix, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a stored matrix as numbers; see `reference_stored.expand`."""
        return reference_stored.expand(weight, rows, dtype, self._fill)

    def _fill(self, out: Tensor, part: StoredRows) -> None:
        if part.kind.dtype is None:
            wide = out if out.dtype in (torch.float32, torch.bfloat16) else torch.empty(out.shape)
            self._native.expand(part.data, part.kind.number, wide)
            if wide is not out:
                out.copy_(wide)
        else:
            reference_stored.fill_plainly(out, part)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Rows x [T, A] over their root mean squares, times weight [A]; or x [T, N, A], weight [N, A]."""
        return self._native.rms_norm(self._rows(x), _floats(weight), eps)

    def add_norm(self, x: Tensor, change: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The sum of x [T, A] and its change, and the norm of the sum; see `rms_norm`."""
        return self._native.add_norm(self._rows(x), self._rows(change), _floats(weight), eps)

    def corrected_norm(self, x: Tensor, weight: Tensor, eps: float, by: Sequence[RowCorrection]) -> Tensor:
        """The norm of x [T, A] with what corrections change it by; see `reference_rows.corrected_norm`."""
        z = total = self.rms_norm(x, weight, eps)
        for left, right, used in by:
            change = self.linear(self.linear(z, left), right)
            total = total + (change if used is None else change * used[:, None])
        return total

    def place_heads(self, x: Tensor, how: HeadPlacing) -> tuple[Tensor, Tensor, Tensor]:
        """Projected heads x as queries, keys and values; see `reference_rows.place_heads`."""
        return self._native.place_heads(self._rows(x), _in_floats(how))

    def swiglu(self, x: Tensor) -> Tensor:
        """silu(gate) * up of x [T, 2 * I], gate beside up: [T, I]."""
        return self._native.swiglu(self._rows(x))

    def project_heads(
        self, x: Tensor, weight: Tensor | StoredMatrix, how: HeadPlacing
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`linear` and `place_heads` in one job."""
        return self._native.project_heads(_floats(x), _parts(weight), _in_floats(how))

    def end_layer(self, x: Tensor, attended: Tensor, by: LayerEnd) -> tuple[Tensor, Tensor]:
        """What follows a layer's attention, in one job; of x [T, E] and attended [T, A]: [T, E] twice."""
        output, gate_up, down = _parts(by.output), _parts(by.gate_up), _parts(by.down)
        how = (output, _floats(by.post_norm), gate_up, down, _floats(by.next_norm), by.eps)
        return self._native.end_layer(_floats(x), _floats(attended), how)


class ManyRowKernels(RowKernels):
    """What a decoder layer computes of a prompt's rows: products by PyTorch, and the rest by native kernels.

    Rows in bfloat16 stay so; of others the results are float32.
    """

    def _rows(self, x: Tensor) -> Tensor:
        return x.contiguous() if x.dtype == torch.bfloat16 else _floats(x)

    def linear(self, x: Tensor, weight: Tensor | StoredMatrix) -> Tensor:
        """Rows x [T, A] times weight^T.   weight: [B, A], in the dtype of x, or stored."""
        return reference_rows.linear(x, weight, self._fill)


def _parts(matrix: Tensor | StoredMatrix) -> list[tuple[Tensor, int | None]]:
    """A matrix as the native kernels take it: its parts, with the numbers of their kinds where these are stored."""
    if isinstance(matrix, StoredMatrix):
        return [(part.data, part.kind.number) for part in matrix.parts]
    return [(matrix, None)]


def _in_floats(how: HeadPlacing) -> HeadPlacing:
    bias, norm = (None if part is None else _floats(part) for part in (how.bias, how.norm))
    return how._replace(bias=bias, norm=norm, rope=Rope(_floats(how.rope.cos), _floats(how.rope.sin)))


def _floats(x: Tensor) -> Tensor:
    """The form in which the native kernels read queries and rows; mostly they have it, and this is called often."""
    if x.dtype == torch.float32 and x.is_contiguous():
        return x
    return x.to(torch.float32).contiguous()
