"""Several users of one engine: each takes a turn at its steps, and every step serves all of them."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

from ..errors import ScoutError
from .engine import Engine, Watch
from .runner import Progress
from .scheduler import Ready
from .scheduler import Sequence as Request

T = TypeVar("T")


class Turns:
    """Runs requests for any number of threads, and for generators that are read in turn.

    A thread that waits for its request takes the next step of the engine, unless another thread is in one. A step
    serves everybody's requests. Tokens stay in the requests until they are read.

    What changes the engine between two steps is an errand: a request that comes, or one that is given up. The thread
    in a step does the errands that are left meanwhile. So a generator never waits for a step when it is closed, which
    the garbage collector may do at any place of any thread.

    Signals break into the main thread alone. A helper thread takes its steps, so that Ctrl-C never breaks off a step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()  # held during a step
        self._changed = threading.Condition()  # told when a step has ended; held for a moment
        self._errands: deque[Callable[[], None]] = deque()
        self._gone: set[Request] = set()  # whose readers have left
        self._stepping: int | None = None  # the thread whose turn it is
        self._closed = False
        self._process = os.getpid()
        device = engine.store.device
        begin = None if device.type == "cpu" else partial(torch.cuda.set_device, device)
        self._helper = ThreadPoolExecutor(1, "scout-steps", initializer=begin)

    def run(self, requests: Sequence[Request], on_prompt: Progress | None = None) -> Generator[list[Ready], None, None]:
        """Run requests until all have ended; yields what is ready of each when there is news of any.

        on_prompt: told (done, total) tokens of a prompt that is read in this user's turn.
        A generator that is closed, or fails, cancels its own requests. Raises ScoutError where the engine was closed.
        """
        known = [Ready() for _ in requests]

        def watch(request: Request, done: int, total: int) -> None:
            if request in self._gone and self._engine.ranks.size == 1:  # ranks end a prompt together
                raise ScoutError("the request was cancelled")
            if on_prompt is not None and request in requests:
                on_prompt(done, total)

        try:
            self._errands.extend(partial(self._add, request) for request in requests)
            while any(ready.finish_reason is None for ready in known):
                known = self._wait(requests, known, watch)
                yield known
        finally:
            running = [request for request in requests if request.finish_reason is None]
            self._gone.update(running)
            self._errands.extend(partial(self._cancel, request) for request in running)
            if os.getpid() == self._process:
                self._finish_errands()

    def close(self) -> None:
        """Close the engine, after the step that is under way; whoever waits for an answer gets an error."""
        if os.getpid() != self._process:
            return  # the engine is the other process's
        self._refuse_inside()
        with self._turn:
            self._do_errands()
            if not self._closed:
                self._closed = True
                self._engine.close()
        self._tell()
        self._helper.shutdown(wait=False)

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
            self._safely(lambda: self._take_turn(news, watch))
            with self._changed:
                if not news() and self._turn.locked():
                    self._changed.wait()
        return [request.ready for request in requests]

    def _take_turn(self, news: Callable[[], bool], watch: Watch) -> None:
        """Take a step if no other thread is at one, and nothing is new."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._stepping = threading.get_ident()
            self._do_errands()
            if not self._closed and not news():
                self._engine.step(watch)
        finally:
            self._stepping = None
            self._turn.release()
            self._tell()
            self._finish_errands()

    def _safely(self, work: Callable[[], T]) -> T:
        """Do something where no signal breaks in, and wait for it, which a signal may break off."""
        if threading.current_thread() is not threading.main_thread():
            return work()
        return self._helper.submit(work).result()

    def _finish_errands(self) -> None:
        """Do what is left to do between two steps, or leave it to the thread that is in one. Waits for no thread."""
        while self._errands and self._turn.acquire(blocking=False):
            try:
                self._do_errands()
            finally:
                self._turn.release()
                self._tell()

    def _do_errands(self) -> None:
        while self._errands:
            self._errands.popleft()()

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except ScoutError as error:  # it is this request's, whoever has the turn
            request.fail(error)

    def _cancel(self, request: Request) -> None:
        self._engine.cancel(request)
        self._gone.discard(request)

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _refuse_inside(self) -> None:
        if self._stepping == threading.get_ident():
            raise ScoutError("on_prompt asks the LLM that is just reading a prompt: return first")
