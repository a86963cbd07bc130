"""The thread that runs the engine: it takes steps while there is work, for any number of users."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from ..errors import ScoutError
from .engine import Engine
from .scheduler import Sequence as Request
from .stats import StepCounts

CANCELLED = ScoutError("the answer was cancelled")


class EngineThread:
    """Runs requests; after each step it tells the readers of those of which there is news.

    What changes the engine between two steps is an errand: requests that come, and requests that are given up. No
    signal ever breaks into a step, since signals break into the main thread alone.

    step_counts: its steps, by the tokens that they completed.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.step_counts = StepCounts()
        self._errands: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # of `_awake` and `_closed`; held for a moment
        self._awake = False
        self._closed = False
        self._process = os.getpid()
        device = engine.store.device
        begin = None if device.type == "cpu" else partial(torch.cuda.set_device, device)
        self._queue = ThreadPoolExecutor(1, "scout-engine", initializer=begin)

    def submit(self, requests: Sequence[Request]) -> None:
        """Run requests; returns at once. Raises ScoutError where the engine was closed."""
        self.check()
        self._errands.append(partial(self._add, requests))
        self._wake()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Give up requests, and free what they hold, after the step that is under way.

        It takes no lock and waits for nobody, since the garbage collector may call it at any place of any thread. It
        need not wake the thread: while a request of these has not ended, the thread is awake.
        """
        self._errands.extend(partial(self._cancel, request) for request in requests)

    def settle(self) -> None:
        """Wait for the step that is under way: an answer is known before its step has freed what it held."""
        self._queue.submit(int).result()

    def check(self) -> None:
        """Raises ScoutError where the engine was closed."""
        if self._closed:
            raise ScoutError("the LLM was closed: make a new one")

    def close(self) -> None:
        """Close the engine, after the step that is under way; whoever waits for an answer gets an error."""
        if os.getpid() != self._process:
            return  # the engine is the other process's
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._queue.submit(self._end).result()
        self._queue.shutdown()

    def _wake(self) -> None:
        with self._lock:
            if not self._awake and not self._closed:
                self._awake = True
                self._take_step()

    def _take_step(self) -> None:
        """Have the thread take a step, and come again while there is work."""
        self._queue.submit(self._after, self._queue.submit(self._step))

    def _step(self) -> None:
        self._run_errands()
        before = self._engine.stats.computed_tokens
        for request in self._engine.step() if self._engine.busy else ():
            request.reader.tell()
        self.step_counts.add(self._engine.stats.computed_tokens - before)

    def _after(self, step: "Future[None]") -> None:
        """Go on after a step. Whatever it failed with, who waits for an answer gets it."""
        if (error := step.exception()) is not None:
            self._cancel_all(error)
        with self._lock:
            self._awake = not self._closed and (self._engine.busy or bool(self._errands))
            try:
                if self._awake:
                    self._take_step()
            except RuntimeError:  # the interpreter is ending, and no thread may be asked for more
                self._cancel_all(ScoutError("the main thread has ended before this answer: let it wait for the answer"))

    def _run_errands(self) -> None:
        while self._errands:
            self._errands.popleft()()

    def _add(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                self._engine.add(request)
            except ScoutError as error:  # it is this request's
                request.fail(error)
                request.reader.tell()

    def _cancel(self, request: Request, error: BaseException = CANCELLED) -> None:
        self._engine.cancel(request)
        if request.finish_reason is None:
            request.fail(error)
            request.reader.tell()

    def _cancel_all(self, error: BaseException) -> None:
        for request in self._engine.scheduler.sequences:
            self._cancel(request, error)

    def _end(self) -> None:
        self._run_errands()
        self._cancel_all(ScoutError("the LLM was closed: make a new one"))
        self._engine.close()
