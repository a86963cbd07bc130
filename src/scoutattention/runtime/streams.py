"""A stream beside the current one, for copies that overlap with its work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """A stream beside the current one, for copies that overlap with it; on the CPU there is but one.

    A mark is a place in it that the current stream can wait for. What waits may be captured in a graph: a replay waits
    for the mark as it is then. ROCm's graphs cannot do that, and there are no marks: see `join_unmarked`.
    """

    def __init__(self, device: torch.device, marks: int = 0) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._marks: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if torch.version.hip is None:
                self._marks = [torch.cuda.Event(external=True) for _ in range(marks)]  # type: ignore[no-untyped-call]
            for mark in self._marks:
                mark.record(self._stream)  # one that never was is no event, and a graph would hold no wait for it

    @contextmanager
    def after(self, *tensors: Tensor) -> Iterator[None]:
        """What is queued inside runs beside what comes later, and after what was queued before.

        tensors: from before, that it uses: their memory is not given away until it has.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        for tensor in tensors:
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            yield

    def mark(self, index: int) -> None:
        """Set a mark behind what is beside the current stream by now."""
        if self._marks:
            self._marks[index].record(self._stream)

    def wait(self, index: int) -> None:
        """Let the current stream wait for what is before a mark."""
        if self._marks:
            self._marks[index].wait()

    def join_unmarked(self) -> None:
        """Where there are no marks to wait for later, let the current stream wait now."""
        if not self._marks:
            self.join()

    def join(self) -> None:
        """Let the current stream wait for what is beside it."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
