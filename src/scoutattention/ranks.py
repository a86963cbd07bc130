"""Ranks: processes that share a model, each with its own KV heads; what attention and the decoder know of each other's.

They meet in sums alone (Megatron-LM, arXiv 1909.08053). Decisions that depend on all heads are made from sums, by every
rank for itself, and so are the same on all.
"""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, distributed

from .errors import RankError

PATIENCE_S = 300.0
"""How long a rank waits for another: ranks have the same work, and wait for requests elsewhere."""


class Ranks(Protocol):
    """All ranks, 0 to size - 1, as one of them sees them."""

    @property
    def index(self) -> int:
        """Its own number."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, of one shape and dtype; the same bits on every rank.

        Every rank must call it, in the same order. Floats are added in float32.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """The one rank of a model that is not shared."""

    index: int = 0
    size: int = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        return tensor


ALONE = Alone()


class Group:
    """Ranks of one machine, over its loopback interface."""

    def __init__(self, folder: Path, index: int, size: int, patience_s: float = PATIENCE_S) -> None:
        """Meet the others, who give the same `folder`.

        Raises RankError where they do not come, as every method does where one has left, within `patience_s` seconds.
        """
        self.index = index
        self.size = size
        self._patience_s = patience_s
        # Not the default group, which is a global; Any, since the stub lacks most of it.
        gloo: Any = distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname="127.0.0.1")]
        options._timeout = timedelta(seconds=patience_s)
        store = distributed.FileStore(str(folder / "met"), size)  # type: ignore[attr-defined]  # so is it
        try:
            self._group = gloo(store, index, size, options)
        except RuntimeError as error:
            raise self._lost(error) from error
        self.sum(torch.zeros(1))  # nobody goes before everybody has come, and the folder may go

    def sum(self, tensor: Tensor) -> Tensor:
        """See `Ranks.sum`."""
        wide = torch.float32 if tensor.is_floating_point() else tensor.dtype
        total = tensor.to(wide, copy=True, memory_format=torch.contiguous_format)
        try:
            self._group.allreduce([total]).wait()
        except RuntimeError as error:
            raise self._lost(error) from error
        return total.to(tensor.dtype)

    def _lost(self, error: RuntimeError) -> RankError:
        reason = str(error).strip().partition("\n")[0]
        return RankError(
            f"rank {self.index} of {self.size} lost another rank, which ended, or was silent for "
            f"{self._patience_s:g} s: {reason}"
        )


def gathered(ranks: Ranks, tensor: Tensor) -> Tensor:
    """Every rank's tensor, in the order of the ranks: [size, ...]."""
    if ranks.size == 1:
        return tensor[None]
    all_of_them = tensor.new_zeros(ranks.size, *tensor.shape)
    all_of_them[ranks.index] = tensor
    return ranks.sum(all_of_them)
