"""Takes a checkpoint's tensors into memory: of what ranks share, a rank's part."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import ConfigError, KernelError, ModelError, ModelFileError, UnsupportedModelError
from ...kernels.quantise import COLUMNS, MOST_SCALE, quantised
from ...kernels.reference_stored import expand
from ...runtime.memory import Arena
from ...runtime.ranks import Ranks
from ...runtime.stored import GPU_KINDS, StoredKind, StoredMatrix, columns_of, joined, stacked, stored
from ..fingerprint import Fingerprint
from ..layers import Weight
from .safetensors import Tensors

_CHECKED_AT_ONCE = 1 << 20  # numbers that are copied and then looked at


class Reader(NamedTuple):
    """Reads the tensors of a checkpoint.

    dtype: of numbers, but those of norms.   fingerprint: of all that was read.   arena: where the weights go.
    in_place: whether matrices in blocks stay so.   kind: of blocks that numbers are rounded to; None for none.
    """

    checkpoint: Tensors
    dtype: torch.dtype
    ranks: Ranks
    fingerprint: Fingerprint
    arena: Arena
    in_place: bool
    kind: StoredKind | None = None

    def matrix(self, name: str, *shape: int) -> Weight:
        """A whole matrix."""
        return self._taken(name, self._kept(name, self._read(name, shape)))

    def columns(self, name: str, *shape: int) -> Weight:
        """Of a matrix, the columns of this rank."""
        weight = self._read(name, shape)
        if isinstance(weight, Tensor):
            return self._taken(name, self._kept(name, weight.chunk(self.ranks.size, 1)[self.ranks.index]))
        if self.ranks.size == 1:
            return self._taken(name, self._kept(name, weight))
        each = weight.columns // self.ranks.size
        try:
            mine = columns_of(weight, self.ranks.index * each, (self.ranks.index + 1) * each)
        except KernelError as error:
            raise ConfigError(
                f"{self.ranks.size} ranks cannot share the tensor {name} of {self.checkpoint.path}: {error}: set "
                "tensor_parallel_size to less"
            ) from error
        return self._taken(name, self._kept(name, mine))

    def stacked(self, parts: Iterable[tuple[str, int]], width: int) -> Weight:
        """One matrix of several, given as name and rows, that lie below each other: this rank's rows of each."""
        mine = {name: self._kept(name, self._rows(self._read(name, (rows, width)))) for name, rows in parts}
        if self.in_place and all(isinstance(part, StoredMatrix) for part in mine.values()):
            return self._stacked(mine)
        return self._joined(mine, (width,))

    def norm(self, name: str, width: int) -> Tensor:
        """The weight of a norm, in float32."""
        return self._filled(name, self._read(name, (width,)), torch.float32)

    def bias(self, *parts: tuple[str, int]) -> Tensor:
        """One bias of several, given as name and length: this rank's part of each."""
        return self._joined({name: self._rows(self._read(name, (length,))) for name, length in parts}, ())

    def whole_bias(self, name: str, length: int) -> Tensor:
        """A bias that every rank has."""
        return self._filled(name, self._read(name, (length,)), self.dtype)

    def _joined(self, parts: Mapping[str, Weight], inner: tuple[int, ...]) -> Tensor:
        lengths = [part.shape[0] for part in parts.values()]
        result = self.arena.take((sum(lengths), *inner), self.dtype)
        for (name, part), target in zip(parts.items(), torch.split(result, lengths), strict=True):
            self._fill(name, target, part)
        return result

    def _stacked(self, parts: Mapping[str, Weight]) -> StoredMatrix:
        try:
            weight = stacked(tuple(part for part in parts.values() if isinstance(part, StoredMatrix)))
        except KernelError as error:
            raise UnsupportedModelError(f"{self.checkpoint.path}: of {', '.join(parts)}, {error}") from error
        return joined(weight) if self.arena.on_gpu else weight

    def _kept(self, name: str, weight: Weight) -> Weight:
        """A part of a matrix as it stays, where it stays in blocks.

        Numbers are rounded to blocks where there is a `kind`. Blocks that are in no file get their place in the arena;
        so do all blocks on a GPU, but those that its kernels do not read are expanded.
        """
        if not self.in_place:
            return weight
        if self.kind is not None:
            return self._quantised(name, weight, self.kind)
        if isinstance(weight, Tensor) or (self.checkpoint.files and not self.arena.on_gpu):
            return weight
        if self.arena.on_gpu and any(part.kind not in GPU_KINDS for part in weight.parts):
            return self._filled(name, weight, self.dtype)
        order = None if weight.order is None else self._copied(weight.order)
        parts = tuple(replace(part, data=self._copied(part.data)) for part in weight.parts)
        return replace(weight, parts=parts, order=order)

    def _quantised(self, name: str, weight: Weight, kind: StoredKind) -> StoredMatrix:
        rows, columns = weight.shape
        if columns % COLUMNS:
            mine, other = ("", "") if self.ranks.size == 1 else (" on each rank", ", or tensor_parallel_size to less")
            raise UnsupportedModelError(
                f"{self.checkpoint.path}: tensor {name} has {columns} columns{mine}, which blocks of {COLUMNS} do "
                f"not fill: set weights (--weights) to 'auto'{other}"
            )
        data = self.arena.take((rows, columns // kind.length * kind.size), torch.uint8)
        for start, piece in _pieces(weight, 1, whole=False):
            if not piece.isfinite().all() or piece.abs().max() > MOST_SCALE:
                raise _not_finite(self.checkpoint.path, name, piece, torch.float16)
            (part,) = quantised(piece, kind).parts
            data[start : start + len(piece)] = part.data
        return stored(data, kind, columns)

    def _copied(self, data: Tensor) -> Tensor:
        return self.arena.take(tuple(data.shape), data.dtype).copy_(data)

    def _taken(self, name: str, weight: Weight) -> Weight:
        kept = self.in_place and isinstance(weight, StoredMatrix)
        return weight if kept else self._filled(name, weight, self.dtype)

    def _filled(self, name: str, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The numbers in memory of their own: what the file's pages hold can go when all of it is read."""
        return self._fill(name, self.arena.take(tuple(weight.shape), dtype), weight)

    def _fill(self, name: str, target: Tensor, weight: Weight) -> Tensor:
        """Copy, and refuse numbers that are not finite then. A sum tells while the copy is in the processor's cache."""
        paired = 0 if self.in_place else self.checkpoint.paired(name)
        for start, piece in _pieces(weight, paired or 1, whole=target.is_cuda):
            part = target[start : start + len(piece)].copy_(_halves(piece, paired) if paired else piece)
            if not math.isfinite(part.sum()) and not part.isfinite().all():
                raise _not_finite(self.checkpoint.path, name, piece, target.dtype)
        return target

    def _rows(self, weight: Weight) -> Weight:
        each = weight.shape[0] // self.ranks.size
        return weight[self.ranks.index * each : (self.ranks.index + 1) * each]

    def _read(self, name: str, shape: tuple[int, ...]) -> Weight:
        """A whole tensor: a view of the file, of which memory has only what is then used."""
        weight = self.checkpoint.read(name, shape)
        self.fingerprint.see(weight, self.checkpoint.paired(name))
        return weight


def _pieces(weight: Weight, step: int, *, whole: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of a weight in turn, with the number of their first; a multiple of `step` rows at once.

    whole: a tensor comes as one piece.
    """
    rows, each = weight.shape[0], math.prod(weight.shape[1:])
    if isinstance(weight, Tensor) and whole:
        yield 0, weight
        return
    count = max(1, _CHECKED_AT_ONCE // each // step) * step
    for start in range(0, rows, count):
        chosen = slice(start, start + count)
        yield start, weight[chosen] if isinstance(weight, Tensor) else expand(weight, chosen, torch.float32)


def _halves(rows: Tensor, paired: int) -> Tensor:
    """Rows of heads of `paired` channels in pairs, as two halves each."""
    return rows.view(-1, paired // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _not_finite(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> ModelError:
    if not tensor.isfinite().all():
        return ModelFileError(
            f"{path}: tensor {name} has numbers that are not finite, so the file is damaged: get it again"
        )
    word = str(dtype).removeprefix("torch.")
    wider = "'float32' or 'bfloat16'" if dtype == torch.float16 else "'float32'"
    return UnsupportedModelError(
        f"{path}: tensor {name} has the number {float(tensor.abs().max()):g}, and {word} ends at "
        f"{torch.finfo(dtype).max:g}: set dtype (--dtype) to {wider}"
    )
