"""The data that host and device exchange in a step: its first work copies to the device, its last work copies back."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.ops import Ops

NUMBERS = 6
"""Of each sequence: its row, closed blocks, tokens in the open block, the open block's entry, token and position."""
DRAW = 9
"""Numbers that say how a sequence's next token is drawn."""
COUNTS = 8
"""Numbers that a step counts."""


class StepInputs(NamedTuple):
    """The inputs of a step.   numbers: int64 [NUMBERS, R].   draws: float32 [DRAW, R].   masks: bool [M, R]."""

    numbers: Tensor
    draws: Tensor
    masks: Tensor


class StepExchange:
    """Memory of the device that every step reads its inputs from, and leaves its results in.

    It stays where it is, so that a captured graph can hold it, and both copies. Where the device works for the host at
    once, the host writes to it directly, and nothing is copied.

    host: for the host to write, perhaps while the device works on the step before.   device: where `receive` leaves it.
    counts: int64 [COUNTS], on the device.   drawn: int64 [R], on the device, the next token of each sequence.
    masks_of: what the masks there follow from, or None: whoever finds it unchanged need not write them again.
    holds: whose numbers are there, while they are right.
    """

    def __init__(self, rows: int, masks: int, ops: Ops) -> None:
        """`masks`: how many of them a step has for each sequence."""
        size = (8 * NUMBERS + 4 * DRAW + masks) * rows
        pinned = ops.device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8)
        device = torch.zeros(size, dtype=torch.uint8, device=ops.device) if ops.deferred else self._host
        sent = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) if ops.deferred else self._host
        self._there = sent, device
        self.host, self.device = _parts(self._host, rows), _parts(device, rows)
        self._written = self.host.numbers.numpy(), self.host.draws.numpy()
        self._rows: dict[int, tuple[Tensor, ...]] = {}
        self.masks_of: object = None
        self.holds: object = None
        results = torch.zeros(COUNTS + rows, dtype=torch.int64, device=ops.device)
        self._back = results, torch.zeros_like(results, device="cpu", pin_memory=pinned) if ops.deferred else results
        self.counts, self.drawn = results[:COUNTS], results[COUNTS:]
        self._under_way = False

    def rows(self, size: int) -> tuple[Tensor, ...]:
        """The device's numbers of `size` sequences, see NUMBERS: views, int64 [size] each, made once."""
        if size not in self._rows:
            self._rows[size] = self.device.numbers[:, :size].unbind()
        return self._rows[size]

    def set_rows(self, rows: Sequence[int], closed: Sequence[int], fill: Sequence[int], entry: Sequence[int]) -> None:
        """Say which sequences the next step is of; see NUMBERS."""
        self._written[0][:4, : len(rows)] = (rows, closed, fill, entry)

    def set_tokens(self, token_ids: Sequence[int], positions: Sequence[int]) -> None:
        """Say which token of each sequence the next step is fed, and where it stands."""
        self._written[0][4:, : len(token_ids)] = (token_ids, positions)

    def set_draws(self, draws: Sequence[tuple[float, ...]]) -> None:
        """Say how the next token of each sequence is drawn: DRAW numbers, as `engine.sampler` takes them."""
        self._written[1][:, : len(draws)] = tuple(zip(*draws, strict=True))

    def send(self) -> None:
        """Let the next `receive` find what the host has written. Waits for a step whose results nobody has read."""
        sent, device = self._there
        if sent is device:
            return
        if self._under_way:
            self._wait()
        sent.copy_(self._host)
        self._under_way = True

    def receive(self) -> None:
        """Queue the copy to the device of what was sent: a step's first work."""
        sent, device = self._there
        if sent is not device:
            device.copy_(sent, non_blocking=True)

    def tell(self) -> None:
        """Queue the copy to the host of the step's counts and tokens: its last work."""
        results, told = self._back
        if told is not results:
            told.copy_(results, non_blocking=True)

    def read(self) -> tuple[list[int], list[int]]:
        """The counts of the step, and the next tokens. Waits for the end of the step."""
        results, told = self._back
        if told is not results:
            self._wait()
        numbers: list[int] = told.tolist()
        return numbers[:COUNTS], numbers[COUNTS:]

    def _wait(self) -> None:
        if self.device.numbers.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._under_way = False


def _parts(memory: Tensor, rows: int) -> StepInputs:
    """Its parts, which lie one after the other."""
    first, second = 8 * NUMBERS * rows, (8 * NUMBERS + 4 * DRAW) * rows
    numbers, draws, masks = memory[:first], memory[first:second], memory[second:]
    return StepInputs(
        numbers.view(torch.int64).view(NUMBERS, rows),
        draws.view(torch.float32).view(DRAW, rows),
        masks.view(torch.bool).view(-1, rows),
    )
