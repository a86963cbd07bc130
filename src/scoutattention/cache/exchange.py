"""What the host and the device tell each other of a step: one copy there before it, one copy back after it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.ops import Ops

NUMBERS = 6
"""Of each sequence: its row, closed blocks, tokens in the open block, the open block's entry, token and position."""
COUNTS = 8
"""Numbers that a step counts."""


class StepExchange:
    """Memory of the device that every step reads its inputs from, and leaves its results in.

    It stays where it is, so that a captured graph can hold it. Where the device works for the host at once, the host
    writes to it directly.

    numbers, masks: for the host to write, int64 [NUMBERS, R] and bool [M, R]; `send` brings them to the device.
    on_device: the same, there.   counts: int64 [COUNTS], on the device.
    drawn: int64 [R], on the device, the likeliest token of each sequence.
    """

    def __init__(self, rows: int, masks: int, ops: Ops) -> None:
        """`masks`: how many of them a step has for each sequence."""
        size = (8 * NUMBERS + masks) * rows
        pinned = ops.device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        self._device = torch.zeros(size, dtype=torch.uint8, device=ops.device) if ops.deferred else self._host
        (self.numbers, self.masks), self.on_device = (_parts(side, rows) for side in (self._host, self._device))
        self._results = torch.zeros(COUNTS + rows, dtype=torch.int64, device=ops.device)
        self.counts, self.drawn = self._results[:COUNTS], self._results[COUNTS:]

    def set_tokens(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        """Say which token of each sequence the next step is fed, and where it stands."""
        self.numbers[4:, : len(token_ids)] = torch.tensor([list(token_ids), list(positions)])

    def tokens(self, size: int) -> Tensor:
        """Tokens and positions of a step of `size` sequences, on the device: int64 [2, B]."""
        return self.on_device[0][4:, :size]

    def send(self) -> None:
        """Bring what the host has written to the device."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def read(self) -> tuple[list[int], list[int]]:
        """What the step counted, and the likeliest tokens; waits for the step."""
        numbers: list[int] = self._results.tolist()
        return numbers[:COUNTS], numbers[COUNTS:]


def _parts(memory: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Numbers and masks, which lie one after the other."""
    cut = 8 * NUMBERS * rows
    return memory[:cut].view(torch.int64).view(NUMBERS, rows), memory[cut:].view(torch.bool).view(-1, rows)
