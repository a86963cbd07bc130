"""A process for each engine. So its memory can be told, and it works only when its turn comes."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Concatenate, ParamSpec, TypeVar

from ...errors import CapacityError, ScoutError
from ...hardware.host import peak_memory, resident_memory
from .job import DecodeJob, Decoding, Setup, Timed, Traced

ENGINES = {
    "scout": ("scout", "OurDecoding"),
    "scout-slots": ("scout", "SlotsDecoding"),
    "dense": ("scout", "OurDecoding"),
    "transformers": ("transformers", "TransformersDecoding"),
    "transformers-static": ("transformers", "StaticTransformersDecoding"),
    "transformers-scout": ("transformers", "ScoutTransformersDecoding"),
    "llama.cpp": ("llama_cpp", "LlamaDecoding"),
    "llama.cpp-converted": ("llama_cpp", "ConvertedLlamaDecoding"),
}
"""Module and class of each engine. Only the engine's own process imports them, since they count as its memory."""

GRACE_S = 5.0
"""Seconds that a process has to end by itself, and then to clean up."""
P = ParamSpec("P")
R = TypeVar("R")

_SPAWN = multiprocessing.get_context("spawn")  # a fork would carry over the parent's memory and its threads' locks


@dataclass(frozen=True)
class Serving:
    """What a process can be asked for. A message is one of these methods and its arguments."""

    decoding: Decoding

    def read(self) -> float:
        """Prefill the prompts; returns the seconds that this took."""
        start = time.perf_counter()
        self.decoding.read()
        return time.perf_counter() - start

    def steps(self, count: int) -> list[Timed]:
        """So many steps."""
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            far = self.decoding.step()
            taken.append(Timed(time.perf_counter() - start, far))
        return taken

    def traced(self, count: int) -> Traced | None:
        """Some more steps, of which a timeline tells, and as many beside them; None where the engine has none."""
        return self.decoding.traced_steps(count)

    def answers(self) -> list[list[int]]:
        """The new tokens of each sequence so far."""
        return self.decoding.answers()

    def setup(self) -> Setup:
        """The set-up that the engine runs with."""
        return self.decoding.setup()

    def memory(self) -> tuple[int, int]:
        """Bytes of memory that the process has now, and the most that it has had."""
        return resident_memory(), peak_memory()


def serve(pipe: Connection, engine: str, job: DecodeJob) -> None:
    """Answer messages until the other end closes. A ScoutError is the answer where there was one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that asks, and that ends this one
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # temporary folders are removed
    module, name = ENGINES[engine]
    try:
        serving = Serving(getattr(import_module(f"{__package__}.{module}"), name)(job))
        pipe.send(None)
        while True:
            work, arguments = pipe.recv()
            pipe.send(work(serving, *arguments))
    except ScoutError as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):  # nobody asks any more
        return
    finally:
        signal.signal(signal.SIGTERM, before)


class EngineProcess:
    """An engine in a process of its own. It works only while it is asked something."""

    def __init__(self, engine: str, job: DecodeJob) -> None:
        """Start the process, and wait until the model is loaded. Raises what the engine and `ask` raise."""
        self._engine = engine
        self._pipe, child = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=serve, args=(child, engine, job), daemon=True)
        self._process.start()
        child.close()
        self._exchange()

    def ask(self, work: Callable[Concatenate[Serving, P], R], *arguments: P.args, **_: P.kwargs) -> R:
        """What a method of `Serving` returns in the process.

        Raises the ScoutError that it raised, and CapacityError where the process has ended.
        """
        answer: R = self._exchange((work, arguments))
        return answer

    def close(self) -> None:
        """End the process, even if it is working."""
        self._pipe.close()
        for end in (self._process.terminate, self._process.kill):
            self._process.join(GRACE_S)
            if self._process.is_alive():
                end()
        self._process.join()

    def _exchange(self, *messages: object) -> Any:  # noqa: ANN401  # what the other end sends
        try:
            for message in messages:
                self._pipe.send(message)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise CapacityError(
                f"the process of {self._engine} ended with exit code {self._process.exitcode} (-9: memory was short): "
                "lower --contexts or --batches, or leave it out with --engines"
            ) from None
        if isinstance(answer, ScoutError):
            raise answer
        return answer
