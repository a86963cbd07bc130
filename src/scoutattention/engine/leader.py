"""Rank 0: starts the processes of the other ranks, and forwards its engine's requests to them."""

import pickle
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Concatenate, ParamSpec

import torch
from typing_extensions import override

from ..config import EngineConfig, ScoutConfig
from ..errors import RankError
from ..models.decoder import Decoder
from ..models.formats.model_files import ModelFiles
from ..models.loader import LoadedModel, config_of, load
from ..runtime.ranks import Group
from .device import find_device
from .engine import Engine
from .follower import READY, Following, Job
from .scheduler import Sequence as Request

P = ParamSpec("P")

# Not `multiprocessing`: it would import the caller's main module again, which may be a script without a guard.
_FOLLOWER = (sys.executable, "-P", "-c", f"import sys; from {Following.__module__} import main; sys.exit(main())")
_GRACE_S = 2.0  # until a process has ended whose connection is gone


class Followers:
    """The processes of ranks 1 and up; they end when this one does, however it does.

    ranks: all of them, as rank 0 sees them.
    """

    def __init__(self, model: Path, scout: ScoutConfig, engine_config: EngineConfig, device: torch.device) -> None:
        """Start them, and meet them; `device` is rank 0's. Raises RankError where one ends before."""
        size, pipe = engine_config.tensor_parallel_size, subprocess.PIPE
        folder = tempfile.TemporaryDirectory(prefix="scout-ranks-")
        self._processes = [subprocess.Popen(_FOLLOWER, stdin=pipe, stdout=pipe) for _ in range(1, size)]
        self._end = weakref.finalize(self, _end, self._processes, folder)
        self._leave = ExitStack()
        with self.together():
            for index, process in enumerate(self._processes, start=1):
                _send(process, Job(Path(folder.name), index, model, scout, engine_config))
            for index, process in enumerate(self._processes, start=1):
                if _stream(process.stdout).readline() != READY:
                    raise RankError(f"rank {index} did not start")
            self.ranks = Group(Path(folder.name), 0, size, device, all_there=partial(_all_run, self._processes))
            self._leave.callback(self.ranks.close)
            if device.type == "cpu":  # NCCL looks into the folder now and then
                folder.cleanup()

    @property
    def ended(self) -> bool:
        """Whether they were ended."""
        return not self._end.alive

    def close(self) -> None:
        """End them, and what their GPUs do together. A second call does nothing."""
        self._leave.close()
        self._end()

    def tell(self, work: Callable[Concatenate[Following, P], None], *arguments: P.args, **_: P.kwargs) -> None:
        """Make each rank call a method of `Following`. Raises RankError if one has ended."""
        if self.ended:
            raise RankError(
                f"the ranks beside rank 0, {len(self._processes)} of them, were ended with a step that was broken off: "
                "make a new LLM"
            )
        with self.together():
            for process in self._processes:
                _send(process, (work, arguments))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What all ranks do at once: where it breaks off here, the others would wait for this one, and are ended."""
        with ExitStack() as broken_off:
            broken_off.callback(self.close)
            try:
                yield
            except (RankError, BrokenPipeError) as error:
                raise RankError(f"{self._last_words() or error}: make a new LLM") from error
            broken_off.pop_all()

    def _last_words(self) -> str:
        """A sentence about the processes that have ended, and how; empty if none has."""
        found = []
        for index, process in enumerate(self._processes, start=1):
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_GRACE_S)
                words = _stream(process.stdout).read().decode().strip()
                found.append(f"rank {index} ended with {words or f'exit code {code} (-9: memory was short)'}")
        return ", ".join(found)


class LeadingEngine(Engine):
    """The engine of rank 0. What it is told, it tells the other ranks, so that all take the same steps.

    `add`, `step` and `cancel` raise RankError where a rank was lost. A step that is broken off is the last one.
    """

    def __init__(self, decoder: Decoder, scout: ScoutConfig, engine_config: EngineConfig, followers: Followers) -> None:
        super().__init__(decoder, scout, engine_config)
        self._followers = followers

    @override
    def add(self, sequence: Request) -> None:
        super().add(sequence)
        what = sequence.id, sequence.prompt_ids, sequence.params, sequence.limit, sequence.reader.streamed
        self._followers.tell(Following.add, *what)

    @override
    def step(self) -> list[Request]:
        self._followers.tell(Following.step)
        with self._followers.together():
            return super().step()

    @override
    def cancel(self, sequence: Request) -> None:
        super().cancel(sequence)
        if not self._followers.ended:
            self._followers.tell(Following.cancel, sequence.id)

    @override
    def close(self) -> None:
        super().close()
        self._followers.close()


def lead(files: ModelFiles, scout: ScoutConfig, engine_config: EngineConfig) -> tuple[LoadedModel, LeadingEngine]:
    """Load a model with as many ranks as the configuration says, and make the engine of rank 0.

    Raises what `load` raises, and RankError where a rank ends.
    """
    size = engine_config.tensor_parallel_size
    dtype, scaling = engine_config.dtype, engine_config.rope_scaling
    config_of(files, dtype, scaling).shape.split(size)  # before anything is started
    device = find_device(engine_config.device, 0, size)
    followers = Followers(files.path, scout, engine_config, device)
    with followers.together():
        loaded = load(files, dtype, device, followers.ranks, scaling, weights=engine_config.weights)
        return loaded, LeadingEngine(loaded.decoder, scout, engine_config, followers)


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    pipe = _stream(process.stdin)
    pickle.dump(message, pipe)
    pipe.flush()


def _stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _all_run(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is None for process in processes)


def _end(processes: Sequence[subprocess.Popen[bytes]], folder: tempfile.TemporaryDirectory[str]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what could not be sent
                _stream(pipe).close()
    folder.cleanup()
