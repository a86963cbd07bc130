"""Far attention where the device is a GPU: its stream calls the CPU, and waits for it, by flags in pinned memory."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ..cache.pool import BlockPool, PackedPool
from ..errors import KernelError
from ..kernels.ops import Ops
from ..kernels.requests import CallRequest, PartialRequest, TakeRequest
from ..runtime.handover import FlagTable, Handover, PartialCall, Report, summed
from ..runtime.workers import Workers
from ..types import BlockList, PageSelection, Partial, SplitChoice, SplitRequest
from .far import CallKind, FarTimes, FarTransport, Pending


@dataclass(frozen=True)
class _Buffers(Pending):
    """Where one kind of call of one layer passes through host memory: always the same, so that a graph can hold it.

    layer, kind: of its calls.   result: float32 numbers, those of a partial one after the other, see `_split`.
    """

    layer: int
    kind: CallKind
    q: Tensor
    pages: BlockList
    result: Tensor
    handover: Handover
    ops: Ops
    timeout_s: float

    @override
    def wait(self) -> Partial:
        return self._split(self.ops.take_call(*self._call))

    @override
    def wait_beside(self, near: PartialRequest) -> tuple[Partial, Partial]:
        partial, numbers = self.ops.partial_and_take(near, self._call)
        return partial, self._split(numbers)

    @property
    def _call(self) -> TakeRequest:
        return TakeRequest(self.result, self.handover.flags, self.q[..., 0].numel(), self.timeout_s)

    def _split(self, numbers: Tensor) -> Partial:
        return _split(numbers, self.q.shape, with_mean_key=self.handover.result.mean_key is not None)

    def failed(self, reason: str) -> str:
        """The message about the last call, which has failed.   reason: empty if the call was not answered in time."""
        handover = self.handover
        reason = reason or f"{handover.give_up()}, {self.timeout_s:g} s after the device needed it"
        call = f"layer {self.layer}, {self.kind} call {handover.number} of {handover.pages} pages"
        return f"far attention on the CPU: {call} failed: {reason}"


class Answered(NamedTuple):
    """A call that the device has made, by the number of its flags, for a layer."""

    line: int
    layer: int
    report: Report


def _split(numbers: Tensor, shape: torch.Size, *, with_mean_key: bool) -> Partial:
    """Numbers as a partial of queries [B, H, G, D]: out, mean keys, lse."""
    size, rows = shape.numel(), shape[:-1].numel()
    out, lse = numbers[:size].view(shape), numbers[-rows:].view(shape[:-1])
    return Partial(out, lse, numbers[size : 2 * size].view(shape) if with_mean_key else None)


class StreamTransport(FarTransport):
    """Calls are made and waited for by the device's stream, so that the host only queues."""

    def __init__(
        self, pool: BlockPool | PackedPool, ops: Ops, workers: Workers, scale: float, *, timeout_s: float
    ) -> None:
        """timeout_s: the longest wait for the CPU."""
        self._pool = pool
        self._ops = ops
        self._workers = workers
        self._scale = scale
        self._timeout_s = timeout_s
        self._flags = FlagTable(ops.device)
        self._buffers: dict[tuple[int, CallKind, int, int], _Buffers] = {}
        self._of_line: dict[int, _Buffers] = {}

    @override
    def reset(self) -> None:
        self._flags.begin()

    @override
    def start(self, layer: int, kind: CallKind, q: Tensor, what: PageSelection, *, with_mean_key: bool) -> Pending:
        buffers = self._buffers_of(layer, kind, q, what.blocks.shape[-1], with_mean_key=with_mean_key)
        self._ops.stage_call(q, what, (buffers.q, buffers.pages), buffers.handover.flags)
        return buffers

    @override
    def split(
        self, layer: int, kind: CallKind, what: SplitRequest, call: CallRequest, *, with_mean_key: bool
    ) -> tuple[SplitChoice, Tensor | None, Pending]:
        count = what.wishes.shape[-1]
        buffers = self._buffers_of(layer, kind, call.q, count, with_mean_key=with_mean_key)
        to = (buffers.q, buffers.pages)
        return *self._ops.split_and_call(what, call, to, buffers.handover.flags), buffers

    @override
    def times(self) -> FarTimes:
        self._flags.end()
        late, lines = self._flags.take_late(), self._flags.made()
        hidden_s, waited_s, failed = summed([self._of_line[line].handover for line in lines])
        places = failed, lines.index(late) if late in lines else -1
        broken = [place for place in places if place >= 0]
        if broken:
            first = self._of_line[lines[min(broken)]]
            message = first.failed(first.handover.report().failure)
            self._give_up()
            raise KernelError(message)
        return FarTimes(hidden_s, waited_s)

    def answered(self) -> list[Answered]:
        """The calls of the step that has ended."""
        lines = self._flags.made()
        return [Answered(line, self._of_line[line].layer, self._of_line[line].handover.report()) for line in lines]

    def _give_up(self) -> None:
        """End all calls of a step that has failed."""
        for buffers in self._buffers.values():
            buffers.handover.give_up()
            buffers.handover.forget()

    def _buffers_of(self, layer: int, kind: CallKind, like: Tensor, count: int, *, with_mean_key: bool) -> _Buffers:
        """Where calls pass with queries like these, for so many blocks of a KV head."""
        key = (layer, kind, like.shape[0], count)
        if key not in self._buffers:
            made = self._make(layer, kind, like, count, with_mean_key=with_mean_key)
            self._buffers[key] = self._of_line[made.handover.flags.line] = made
        return self._buffers[key]

    def _make(self, layer: int, kind: CallKind, like: Tensor, count: int, *, with_mean_key: bool) -> _Buffers:
        pinned = self._ops.device.type == "cuda"

        def host(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, pin_memory=pinned)

        q, lists = host(*like.shape), (*like.shape[:2], count)
        listed = BlockList(*(host(*lists, dtype=torch.int32) for _ in range(2)))
        result = host((1 + with_mean_key) * like.numel() + like[..., 0].numel())
        call = PartialCall(q, self._pool.k[layer], self._pool.v[layer], listed, self._scale)
        partial = _split(result, like.shape, with_mean_key=with_mean_key)
        handover = Handover(self._workers, call, partial, self._flags)
        return _Buffers(layer, kind, q, listed, result, handover, self._ops, self._timeout_s)
