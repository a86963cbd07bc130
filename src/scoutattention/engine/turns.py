"""Several users of one engine: each takes a turn at its steps, and every step serves all of them."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import partial

from ..errors import ScoutError
from .engine import Engine, Watch
from .runner import Progress
from .scheduler import Ready
from .scheduler import Sequence as Request


class Turns:
    """Runs requests for any number of threads, and for generators that are read in turn.

    Who waits for news of a request takes the next step of the engine, unless another thread is at it; the step serves
    everybody's requests, and tokens wait for their reader in the requests. What changes the engine between two steps
    is an errand, done by whoever has the turn: so nobody who leaves, not even by the garbage collector in the middle
    of a step, waits for a lock.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()  # held during a step
        self._changed = threading.Condition()  # told when a step has ended; held for a moment
        self._errands: deque[Callable[[], None]] = deque()
        self._stepping: int | None = None  # the thread whose turn it is
        self._closed = False

    def run(self, requests: Sequence[Request], on_prompt: Progress | None = None) -> Generator[list[Ready], None, None]:
        """Run requests until all have ended; yields what is ready of each when there is news of any.

        on_prompt: told (done, total) tokens of a prompt that is read in this thread's turn.
        A generator that is closed, or fails, cancels its own requests. Raises ScoutError where the engine was closed.
        """
        known = [Ready() for _ in requests]

        def watch(request: Request, done: int, total: int) -> None:
            if on_prompt is not None and request in requests:
                on_prompt(done, total)

        try:
            self._errands.extend(partial(self._engine.add, request) for request in requests)
            while any(ready.finish_reason is None for ready in known):
                known = self._wait(requests, known, watch)
                yield known
        finally:
            running = [request for request in requests if request.finish_reason is None]
            self._errands.extend(partial(self._engine.cancel, request) for request in running)
            self._run_errands()
            self._tell()  # who interrupts a step may not have come so far

    def close(self) -> None:
        """Close the engine, after the step that is under way; whoever waits for an answer gets an error."""
        self._refuse_inside()
        with self._turn:
            if not self._closed:
                self._closed = True
                self._engine.close()
        self._tell()

    def check(self) -> None:
        """Raises ScoutError where the engine was closed, or this thread is in the middle of a step of it."""
        self._refuse_inside()
        if self._closed:
            raise ScoutError("the LLM was closed: make a new one")

    def _wait(self, requests: Sequence[Request], known: list[Ready], watch: Watch) -> list[Ready]:
        """Take steps, or wait for another thread's, until there is news of requests beyond what is known."""

        def news() -> bool:
            return [request.ready for request in requests] != known

        while not news():
            self.check()
            mine = False
            try:
                with self._changed:
                    mine = self._turn.acquire(blocking=False)
                    if not mine:
                        self._changed.wait()
                if mine:
                    self._stepping = threading.get_ident()
                    self._do_errands()
                    if not self._closed and not news():
                        self._engine.step(watch)
            finally:
                if mine:
                    self._stepping = None
                    self._turn.release()
                    self._run_errands()
                    self._tell()
        return [request.ready for request in requests]

    def _run_errands(self) -> None:
        """Do what is to be done between two steps, now, or let the thread do it that is in one."""
        while self._errands and self._turn.acquire(blocking=False):
            try:
                self._do_errands()
            finally:
                self._turn.release()
                self._tell()

    def _do_errands(self) -> None:
        while self._errands:
            self._errands.popleft()()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _refuse_inside(self) -> None:
        if self._stepping == threading.get_ident():
            raise ScoutError("on_prompt asks the LLM that is just reading a prompt: return first")
