"""A rank other than the first: a process that carries out the messages of rank 0, until rank 0 ends."""

import logging
import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..config import EngineConfig, SamplingParams, ScoutConfig
from ..errors import RankError, ScoutError
from ..models.loader import load
from ..models.text import Tokenizer
from ..runtime.ranks import Group
from .device import find_device
from .engine import Engine
from .scheduler import NOBODY, Sequence

READY = b"ready\n"


@dataclass(frozen=True)
class Job:
    """The arguments with which a rank starts.   folder: where ranks meet.   model: its directory or file."""

    folder: Path
    index: int
    model: Path
    scout: ScoutConfig
    engine_config: EngineConfig


@dataclass(frozen=True)
class Following:
    """The messages to a rank: each is the name of one of these methods, and its arguments."""

    engine: Engine
    tokenizer: Tokenizer

    def add(self, number: int, prompt_ids: list[int], params: SamplingParams, limit: int, streamed: bool) -> None:
        """Queue a request, which rank 0 has accepted."""
        reader = NOBODY._replace(streamed=streamed)
        self.engine.add(Sequence(number, prompt_ids, params, limit, self.tokenizer, reader=reader))

    def step(self) -> None:
        """Take a step."""
        self.engine.step()

    def cancel(self, number: int) -> None:
        """Forget a request."""
        for sequence in self.engine.scheduler.sequences:
            if sequence.id == number:
                self.engine.cancel(sequence)


def follow(messages: BinaryIO, job: Job) -> None:
    """Carry out the messages until they end."""
    size, leader = job.engine_config.tensor_parallel_size, os.getppid()
    device = find_device(job.engine_config.device, job.index, size)
    ranks = Group(job.folder, job.index, size, device, all_there=lambda: os.getppid() == leader)
    settings = job.engine_config
    model = load(str(job.model), settings.dtype, device, ranks, settings.rope_scaling, weights=settings.weights)
    following = Following(Engine(model.decoder, job.scout, job.engine_config), model.tokenizer)
    while True:
        work, arguments = pickle.load(messages)
        work(following, *arguments)


def main() -> int:
    """Follow rank 0, at the other ends of stdin and stdout; a ScoutError that it does not have is its last word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends rank 0, and that ends this
    logging.disable()  # rank 0 says the same
    try:
        job = pickle.load(sys.stdin.buffer)
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        follow(sys.stdin.buffer, job)
    except (EOFError, pickle.UnpicklingError):  # rank 0 has ended between two messages, or in one
        return 0
    except RankError:
        return 1
    except ScoutError as error:
        print(error, flush=True)
        return 2
    return 0
