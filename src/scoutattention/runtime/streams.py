"""A stream beside the current one, for copies and other work that overlaps with its own."""

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
        """Queue work inside on the second stream: after all work queued before, and concurrent with work queued later.

        tensors: earlier tensors that this work uses; their memory is not reused before the work is done.
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
        """Set a mark behind the work queued so far on the second stream."""
        if self._marks:
            self._marks[index].record(self._stream)

    def wait(self, index: int) -> None:
        """Make the current stream wait for the work before a mark."""
        if self._marks:
            self._marks[index].wait()

    def join(self) -> None:
        """Make the current stream wait for the second stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
