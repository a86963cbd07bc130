"""Ranks: processes that share a model, each with its own KV heads; what attention and the decoder know of each other's.

They meet in sums alone (Megatron-LM, arXiv 1909.08053). Decisions that depend on all heads are made from sums, by every
rank for itself, and so are the same on all. Gloo sums what is in host memory, NCCL what is on GPUs.
"""

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed
from typing_extensions import override

from ..errors import ConfigError, RankError

PATIENCE_S = 300.0
"""How long a rank waits for another: ranks have the same work, and wait for requests elsewhere."""
PAUSE_S = 50e-6
"""How long it sleeps between two looks at its GPU."""
GRACE_S = 1.0
"""How long NCCL may take to let go; it goes on in the background."""


class Ranks(Protocol):
    """All ranks, 0 to size - 1, as one of them sees them."""

    index: int
    """The number of this rank."""
    size: int
    """How many ranks there are."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, of one shape, dtype and kind of device; the same bits on every rank.

        Every rank must call it, in the same order. Floats are added in float32.
        """
        ...

    def settle(self) -> None:
        """Wait for the sums of a graph that was replayed, before anything is read that follows from them."""
        ...


@dataclass(frozen=True)
class Alone(Ranks):
    """The one rank of a model that is not shared."""

    index: int = 0
    size: int = 1

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    @override
    def settle(self) -> None:
        pass


ALONE = Alone()


def _summand(tensor: Tensor) -> Tensor:
    """A copy that is summed in place: floats in float32."""
    wide = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(wide, copy=True, memory_format=torch.contiguous_format)


class Joined(Ranks):
    """Ranks of a process group that another program has made, for tensors in host memory."""

    def __init__(self, group: Any, index: int, size: int) -> None:  # noqa: ANN401  # the stub has no type for it
        self.index = index
        self.size = size
        self._group = group

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        total = _summand(tensor)
        try:
            distributed.all_reduce(total, group=self._group)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RankError(f"rank {self.index} of {self.size} lost another rank: {reason}") from error
        return total.to(tensor.dtype)

    @override
    def settle(self) -> None:
        pass


class Sums(Protocol):
    """What adds tensors over ranks: one of PyTorch's process groups, of which its stub lacks most."""

    def allreduce(self, tensors: list[Tensor], options: object) -> Any:  # noqa: ANN401  # work to wait for, or None
        """Add them in place."""
        ...

    def abort(self) -> None:
        """Abort all sums in progress, and close."""
        ...


class Group(Ranks):
    """Ranks of one machine: gloo over its loopback interface, and NCCL where each has a GPU.

    NCCL's sums are part of the current stream, and of a graph that captures it. They wait for a lost rank forever, and
    so would who reads what follows; so a sum that is not captured is waited for here, with an end.
    """

    def __init__(
        self,
        folder: Path,
        index: int,
        size: int,
        device: torch.device | None = None,
        *,
        patience_s: float = PATIENCE_S,
        all_there: Callable[[], bool] = lambda: True,
    ) -> None:
        """Meet the others, who give the same `folder`; it must stay as long as ranks on GPUs do.

        device: the GPU of this rank, which is the current one; None is the CPU.
        all_there: whether the others have not ended, as far as this rank can know; asked while it waits for its GPU.
        Raises RankError where they do not come, as every method does where one has left, within `patience_s` seconds,
        and ConfigError where PyTorch cannot sum over GPUs.
        """
        self.index = index
        self.size = size
        self._patience_s = patience_s
        self._all_there = all_there
        gpu = None if device is None or device.type == "cpu" else device
        if gpu and not distributed.is_nccl_available():
            raise ConfigError(
                f"tensor_parallel_size={size} on GPUs needs NCCL, and PyTorch {torch.__version__} is built without: "
                "install a build with it, or set tensor_parallel_size to 1"
            )
        store = distributed.FileStore(str(folder / "met"), size)  # type: ignore[attr-defined]  # the stub lacks it
        store.set_timeout(timedelta(seconds=patience_s))
        self._how = distributed.AllreduceOptions()
        self._how.asyncOp = False
        self._keeper: Keeper | None = None
        try:
            self._sums: dict[str, Sums] = {"cpu": _join_gloo(store, index, size, patience_s)}
        except RuntimeError as error:
            raise self._lost(error) from error
        self.sum(torch.zeros(1))  # nobody goes before everybody has come
        if gpu:
            nccl = self._sums[gpu.type] = _join_nccl(store, index, size)
            self._keeper = Keeper(nccl)
            weakref.finalize(self, self._keeper.end).atexit = False
            self.sum(torch.zeros(1, device=gpu))  # connects, which no capture can

    @override
    def sum(self, tensor: Tensor) -> Tensor:
        total = _summand(tensor)
        try:
            work = self._sums[tensor.device.type].allreduce([total], self._how)
            if work is not None:  # what NCCL has queued needs no waiting
                work.wait()
        except torch.AcceleratorError:  # a RuntimeError too, and the GPU's own fault
            raise
        except RuntimeError as error:
            raise self._lost(error) from error
        if tensor.device.type != "cpu" and not torch.cuda.is_current_stream_capturing():
            self.settle()
        return total.to(tensor.dtype)

    @override
    def settle(self) -> None:
        if self._keeper is None:
            return
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        began = time.monotonic()
        while not done.query():
            if not self._all_there() or time.monotonic() - began > self._patience_s:
                self.close()
                raise self._lost("the GPU still waits for it")
            time.sleep(PAUSE_S)

    def close(self) -> None:
        """Have NCCL break off what it does, and let go of its memory once no graph holds a sum any more."""
        if self._keeper is not None:
            self._keeper.end()
            self._keeper.join(GRACE_S)

    def _lost(self, error: object) -> RankError:
        reason = str(error).strip().partition("\n")[0]
        return RankError(
            f"rank {self.index} of {self.size} lost another rank, which ended, or was silent for "
            f"{self._patience_s:g} s: {reason}"
        )


class Keeper(threading.Thread):
    """Holds NCCL's group until it is told to end it.

    NCCL does not end before graphs with its sums are gone. A destructor would wait for that as well, at a moment that
    nobody chooses, so none may run: not while garbage is collected, nor at the interpreter's exit, which this thread
    sleeps through.
    """

    def __init__(self, nccl: Sums) -> None:
        super().__init__(daemon=True)
        self._nccl = nccl
        self._ending = threading.Event()
        self.end = self._ending.set
        self.start()

    def run(self) -> None:
        """Wait, and end it."""
        self._ending.wait()
        self._nccl.abort()


def _join_gloo(store: object, index: int, size: int, patience_s: float) -> Sums:
    """A group of its own: the default one is a global."""
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = timedelta(seconds=patience_s)
    joined: Sums = gloo(store, index, size, options)
    return joined


def _join_nccl(store: object, index: int, size: int) -> Sums:
    """The same for each rank's current GPU."""
    names: Any = distributed
    options = names.ProcessGroupNCCL.Options()
    options._timeout = timedelta(days=365)  # PyTorch would end the process then; `Group.settle` is sooner, and raises
    options.global_ranks_in_group = list(range(size))
    joined: Sums = names.ProcessGroupNCCL(names.PrefixStore("nccl", store), index, size, options)
    return joined


def gathered(ranks: Ranks, tensor: Tensor) -> Tensor:
    """Every rank's tensor, in the order of the ranks: [size, ...]."""
    if ranks.size == 1:
        return tensor[None]
    all_of_them = tensor.new_zeros(ranks.size, *tensor.shape)
    all_of_them[ranks.index] = tensor
    return ranks.sum(all_of_them)
