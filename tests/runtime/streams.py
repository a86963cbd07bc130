"""A device's runtime without a device: streams are threads, and what is queued on one runs in order."""

import ctypes
import queue
import threading
from collections.abc import Callable

from scoutattention.runtime.host_functions import HostFunctions

C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
REFUSED = 700


class FakeStream:
    """One thread, which runs what it is given in order; `handle` is what the runtime calls it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
            self._queue.task_done()
        self._queue.task_done()

    def queue(self, work: Callable[[], None]) -> None:
        self._queue.put(work)

    def synchronize(self) -> None:
        self._queue.join()

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()


class FakeRuntime:
    """A cudaLaunchHostFunc of its own, as a C function; while `graph` is a list, calls are captured there instead."""

    def __init__(self) -> None:
        self._streams: dict[int, FakeStream] = {}
        self._launch = LAUNCH(self._queue)
        self.functions = HostFunctions(self._launch)
        self.graph: list[tuple[int, int]] | None = None

    def stream(self) -> FakeStream:
        handle = 16 * (1 + len(self._streams))
        self._streams[handle] = FakeStream(handle)
        return self._streams[handle]

    def _queue(self, stream: int | None, function: int, argument: int) -> int:
        if stream not in self._streams:
            return REFUSED
        if self.graph is not None:
            self.graph.append((function, argument))
        else:
            self._streams[stream].queue(lambda: C_FUNCTION(function)(argument))
        return 0

    def replay(self, graph: list[tuple[int, int]], stream: FakeStream) -> None:
        for function, argument in graph:
            self._queue(stream.handle, function, argument)

    def end(self) -> None:
        for stream in self._streams.values():
            stream.end()
