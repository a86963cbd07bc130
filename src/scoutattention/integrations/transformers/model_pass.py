"""One forward pass of the model, as attention sees it: a batch of prompts, or a decode step."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from ...attention.step import Attend, StepStats
from ...errors import PromptError
from ...types import Rope
from .memory import BatchMemory
from .refusals import refuse_empty

Heads = tuple[Tensor, Tensor, Tensor]
"""A layer's queries [B, Q, T, D], keys and values [B, H, T, D], normalised and rotated."""


class Pass(Protocol):
    """What the served layers call, one after the other."""

    def begin(self, rope: Rope) -> None:
        """Start, before the first served layer; cos and sin: [B or 1, T, D]."""
        ...

    def attend(self, layer: int, heads: Heads, x: Tensor) -> Tensor:
        """Attention in one layer, whose input is x [B, T, E]: [B, T, Q, D]."""
        ...

    def finish(self) -> StepStats:
        """End, after the last layer."""
        ...


class PromptPass(Pass):
    """Prompts, each of which begins at its own position of the batch.

    starts: padding before each prompt.   count: positions of the batch.
    """

    def __init__(self, memory: BatchMemory, starts: Sequence[int], count: int) -> None:
        self._memory = memory
        self._starts = starts
        self._count = count
        self._attends: list[Attend] = []

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts."""
        return len(self._starts) * self._count - sum(self._starts)

    @override
    def begin(self, rope: Rope) -> None:
        for row, start in enumerate(self._starts):
            own = Rope(*(table[min(row, len(table) - 1), start:] for table in rope))
            self._attends.append(self._memory.built.prompt.begin(row, own))

    @override
    def attend(self, layer: int, heads: Heads, x: Tensor) -> Tensor:
        groups = heads[1].shape[1]
        q, k, v = (each.transpose(1, 2) for each in heads)
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for row, start in enumerate(self._starts):
            own_q = _grouped(q[row, start:], groups)
            own_k, own_v = k[row, start:].contiguous(), v[row, start:].contiguous()
            out[row, start:] = self._attends[row](layer, own_q, own_k, own_v, x[row, start:].contiguous()).flatten(1, 2)
        return out

    @override
    def finish(self) -> StepStats:
        for row, start in enumerate(self._starts):
            self._memory.built.prompt.finish(row, self._count - start)
        return StepStats()


class StepPass(Pass):
    """A decode step of a batch: one token of each sequence, in rows 0, 1, ... of the memory."""

    def __init__(self, memory: BatchMemory, batch: int) -> None:
        self._attention = memory.built.attention
        self._step = self._attention.prepare(range(batch))
        self._attention.start(self._step)  # type: ignore[arg-type]  # its own step
        self._attention.exchange.receive()
        self._attend: list[Attend] = []

    @override
    def begin(self, rope: Rope) -> None:
        own = Rope(*(table[:, -1].expand(self._step.batch.size, -1) for table in rope))
        self._attend.append(self._attention.begin(self._step, own))  # type: ignore[arg-type]  # its own step

    @override
    def attend(self, layer: int, heads: Heads, x: Tensor) -> Tensor:
        q, k, v = (each[:, :, 0].contiguous() for each in heads)
        (attend,) = self._attend
        out = attend(layer, _grouped(q, k.shape[1]), k, v, x[:, 0].contiguous())
        return out.flatten(1, 2)[:, None]

    @override
    def finish(self) -> StepStats:
        self._attention.finish(self._step)  # type: ignore[arg-type]
        self._attention.count(self._step)  # type: ignore[arg-type]
        self._attention.exchange.tell()
        counts, _ = self._attention.exchange.read()
        return self._attention.end(self._step, counts)  # type: ignore[arg-type]


def _grouped(q: Tensor, groups: int) -> Tensor:
    """Query heads [n, Q, D] by the KV heads that they share, contiguous: [n, H, G, D]."""
    return q.reshape(q.shape[0], groups, -1, q.shape[-1]).contiguous()


def starts_of(mask: Tensor | None, batch: int, count: int) -> list[int]:
    """Where each prompt of a batch begins.   mask: [B, T], 0 for padding, or None.

    Raises PromptError where a prompt is empty, or padding stands anywhere but before it.
    """
    refuse_empty(batch, count)
    if mask is None:
        return [0] * batch
    if tuple(mask.shape) != (batch, count):
        raise PromptError(
            f"an attention mask of {tuple(mask.shape)} is not one of ({batch}, {count}), as scout needs it"
        )
    kept = mask != 0
    starts: list[int] = (~kept).sum(1).tolist()
    for row, start in enumerate(starts):
        if start == count:
            raise PromptError(f"prompt {row + 1} of the batch is empty: its attention mask has {count} zeros")
        if not kept[row, start:].all():
            raise PromptError(
                f"prompt {row + 1} of the batch has padding behind or between its tokens: pad on the left "
                "(tokenizer.padding_side = 'left')"
            )
    return starts
