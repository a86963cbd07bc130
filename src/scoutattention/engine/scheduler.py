"""Which sequences run: first come, first served, each with its memory reserved, so none is ever preempted."""

from collections import deque

from ..cache.memory_plan import MemoryPlan
from ..cache.store import KVStore
from .sequence import Sequence


class Scheduler:
    """The waiting and the running sequences; `running[i]` is the sequence in row i of the store."""

    def __init__(self, store: KVStore, plan: MemoryPlan, max_num_seqs: int) -> None:
        self._store = store
        self._plan = plan
        self._max_num_seqs = max_num_seqs
        self._most = plan.max_running(1)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def admit(self) -> Sequence | None:
        """Move the first waiting sequence into the next row if its pages and slots are free; returns it."""
        if not self.waiting:
            return None
        if not self.running:  # the device's slots are shared anew
            self._most = self._plan.max_running(min(self._max_num_seqs, len(self.waiting)))
        sequence = self.waiting[0]
        blocks = self._plan.blocks(sequence.limit)
        if len(self.running) == self._most or blocks > self._store.pages.pool.available:
            return None
        self._store.admit(len(self.running), blocks, self._plan.quota(self._most, sequence.limit))
        self.running.append(self.waiting.popleft())
        return sequence

    def retire(self) -> None:
        """Release the rows of finished sequences; the last rows move into the gaps, so that rows stay contiguous."""
        for row in range(len(self.running) - 1, -1, -1):
            if self.running[row].finish_reason is not None:
                self.drop(row)

    def drop(self, row: int) -> None:
        """Release one row."""
        last = len(self.running) - 1
        self._store.release(row)
        if row != last:
            self._store.move(last, row)
            self.running[row] = self.running[last]
        self.running.pop()

    def clear(self) -> None:
        """Forget every sequence, as after an interruption."""
        self.waiting.clear()
        while self.running:
            self.drop(len(self.running) - 1)
