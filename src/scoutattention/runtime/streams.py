"""A stream beside the current one, for copies that overlap with its work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """A stream beside the current one, for copies that overlap with it; on the CPU there is but one.

    A mark is a place in it that the current stream can wait for. Both may be captured in a graph, which must wait for
    all that it has queued beside itself.
    """

    def __init__(self, device: torch.device, marks: int = 0) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._marks: list[torch.cuda.Event] = []
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self._marks = [torch.cuda.Event() for _ in range(marks)]  # type: ignore[no-untyped-call]

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

    def join(self) -> None:
        """Let the current stream wait for what is beside it."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
