"""A stand-in for CUDA graphs on the CPU: the operations of a step on a tape, to be played again on the same tensors."""

from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from scoutattention.kernels.ops import Ops
from scoutattention.runtime.graphs import Captured

READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}
"""Operations whose result the host has to wait for: none of them may be in a graph."""


KERNELS = ("copy_blocks", "close_blocks", "recall", "give_wanted")
"""Operations whose plain twins read numbers: each is one kernel on a device, and one entry of a tape."""


class _Taping(TorchDispatchMode):
    def __init__(self, tape: list[Callable[[], None]]) -> None:
        super().__init__()
        self._tape = tape

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in READS, f"{func} would wait for the device in the middle of a step"
        kept = kwargs or {}
        out = func(*args, **kept)

        def again() -> None:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kept)), strict=True):
                if isinstance(old, Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

        self._tape.append(again)
        return out


class Tapes:
    """Records steps."""

    def __init__(self) -> None:
        self._tape: list[Callable[[], None]] | None = None
        self.recorded = self.played = 0

    def waiting(self, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """An operation that reads numbers, for which a device would not wait: it is recorded as one."""

        def recorded(*args: object) -> Tensor:
            with _disable_current_modes():
                out = call(*args)
            if self._tape is not None:
                self._tape.append(lambda: out.copy_(call(*args)))
            return out

        return recorded

    def with_kernels(self, ops: Ops) -> Ops:
        """Operations of which KERNELS are put on the tape as a whole."""
        for name in KERNELS:
            setattr(ops, name, self._kernel(getattr(ops, name)))
        return ops

    def _kernel(self, run: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            with _disable_current_modes():
                out = run(*args)

            def again() -> None:
                for old, new in zip(tree_leaves(out), tree_leaves(run(*args)), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)

            if self._tape is not None:
                self._tape.append(again)
            return out

        return call

    def capture(self, step: Callable[[], Tensor]) -> Captured:
        """Record a step. A graph's would not be done meanwhile, but by its first replay, which does nothing here."""
        tape: list[Callable[[], None]] = []
        self._tape = tape
        try:
            with _Taping(tape):
                logits = step()
        finally:
            self._tape = None
        self.recorded += 1
        done = [lambda: None]

        def replay() -> None:
            for again in done or tape:
                again()
            self.played += not done
            done.clear()

        return Captured(replay, logits)
