"""How checkpoints in few bits keep a matrix: in which tensors, and what these stand for.

A matrix maps `columns` inputs to `rows` outputs, and `group` inputs in turn share a scale. An int32 word has 8 codes of
4 bits or 4 of 8, the lowest bits first. A function here takes a module's tensors and gives the matrix in blocks, or
its numbers where they are 8-bit floats. What the tensors mean is told by the projects that write them: GPTQModel
(nn_modules/qlinear) for GPTQ, AutoAWQ (awq/modules/linear/gemm.py) for AWQ, compressed-tensors (compressors/) for the
rest, and transformers (integrations/finegrained_fp8.py) for 8-bit floats in blocks.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ....errors import ModelFileError, UnsupportedModelError
from ....kernels.quantise import COLUMNS, MOST_SCALE, blocks_of_codes
from ....runtime.stored import StoredMatrix
from ...layers import Weight
from ..safetensors import FLOATS, Checkpoint
from .scheme import Layout, Scheme

MARKS: Mapping[Layout, tuple[str, tuple[str, ...]]] = {
    "gptq": ("qweight", ("I32",)),
    "awq": ("qweight", ("I32",)),
    "packed": ("weight_packed", ("I32",)),
    "int8": ("weight", ("I8",)),
    "float8": ("weight", ("F8_E4M3",)),
}
"""By which tensor of a module one sees that its matrix is quantised: its name, and its number formats."""
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ keeps the codes of eight outputs in a row, among the codes of a word."""
_POWERS = "F8_E8M0"
"""A number format of scales: powers of two."""


class Parts:
    """The tensors of one module.   taken: names of those that were read."""

    def __init__(self, checkpoint: Checkpoint, module: str, names: Collection[str]) -> None:
        self._checkpoint, self._module, self._names = checkpoint, module, names
        self.taken: set[str] = set()

    def __contains__(self, part: str) -> bool:
        return part in self._names

    def named(self, part: str) -> str:
        """What messages call a tensor."""
        return f"{self._checkpoint.path}: tensor {self._module}.{part}"

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of a tensor.   Raises ModelFileError where it is absent."""
        return self._checkpoint.shape(f"{self._module}.{part}")

    def take(self, part: str, shape: tuple[int, ...], *formats: str) -> Tensor:
        """A tensor.   Raises ModelFileError where it is absent or of another shape, or its format is another."""
        self.taken.add(part)
        return self._checkpoint.take(f"{self._module}.{part}", shape, formats)

    def words(self, part: str, shape: tuple[int, int], bits: int) -> Tensor:
        """A tensor of words, whose last axis has ceil(codes / codes of a word): uint8 [..., codes]."""
        rows, codes = shape
        words = self.take(part, (rows, -(-codes * bits // 32)), "I32").contiguous()
        return _codes(words, bits)[:, :codes]

    def scales(self, part: str, shape: tuple[int, ...], most: float = MOST_SCALE) -> Tensor:
        """Scales as float32.   Raises ModelFileError where one is not finite, or above what float16 holds."""
        scales = self.take(part, shape, *FLOATS, _POWERS).float()
        if not bool((scales.abs() <= most).all()):
            worst = float(scales[~(scales.abs() <= most)].flatten()[0])
            raise ModelFileError(f"{self.named(part)} has the scale {worst:g}, which is not a number up to {most:g}")
        return scales


class _Grid(NamedTuple):
    """Codes uint8 [rows, columns]; scales float32 and zeros int32 [rows, groups]."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def _gptq(parts: Parts, shape: tuple[int, int], scheme: Scheme) -> StoredMatrix:
    """GPTQ: qweight [columns / 8, rows], qzeros [groups, rows / 8], scales [groups, rows], perhaps g_idx [columns]."""
    rows, columns = shape
    groups = _groups(parts, "qweight", columns, scheme)
    per = 32 // scheme.bits
    words = parts.take("qweight", (-(-columns // per), rows), "I32").T.contiguous()
    codes = _codes(words, scheme.bits)[:, :columns]
    zeros = parts.words("qzeros", (groups, rows), scheme.bits).int() + scheme.added
    grid = _Grid(codes, parts.scales("scales", (groups, rows)).T, zeros.T)
    return _blocks(parts, grid, scheme, "g_idx")


def _awq(parts: Parts, shape: tuple[int, int], scheme: Scheme) -> StoredMatrix:
    """AWQ: qweight [columns, rows / 8], qzeros [groups, rows / 8], scales [groups, rows]."""
    rows, columns = shape
    groups = _groups(parts, "qweight", columns, scheme)
    if rows % len(_AWQ_PLACES):
        raise ModelFileError(f"{parts.named('qweight')} is of {rows} outputs, which is not a multiple of 8")

    def taken(part: str, lines: int) -> Tensor:
        codes = parts.words(part, (lines, rows), scheme.bits).view(lines, -1, len(_AWQ_PLACES))
        return codes[..., torch.tensor(_AWQ_PLACES)].flatten(1).T.contiguous()

    scales = parts.scales("scales", (groups, rows)).T
    return _blocks(parts, _Grid(taken("qweight", columns), scales, taken("qzeros", groups).int()), scheme)


def _packed(parts: Parts, shape: tuple[int, int], scheme: Scheme) -> StoredMatrix:
    """Packed: weight_packed [rows, columns / 8], weight_scale [rows, groups], weight_zero_point [rows / 8, groups]."""
    rows, columns = shape
    groups = _groups(parts, "weight_packed", columns, scheme)
    given = tuple(parts.take("weight_shape", (2,), "I64", "I32").tolist())
    if given != shape:
        raise ModelFileError(
            f"{parts.named('weight_shape')} says {list(given)}, where config.json implies {list(shape)}"
        )
    codes = parts.words("weight_packed", shape, scheme.bits)
    half = torch.full((rows, groups), 1 << scheme.bits - 1, dtype=torch.int32)
    if scheme.zeros:
        per = 32 // scheme.bits
        words = parts.take("weight_zero_point", (-(-rows // per), groups), "I32").T.contiguous()
        half = _codes(words, scheme.bits)[:, :rows].T.int()
    return _blocks(parts, _Grid(codes, _of_rows(parts, rows, groups), half), scheme, "weight_g_idx")


def _int8(parts: Parts, shape: tuple[int, int], scheme: Scheme) -> StoredMatrix:
    """Not packed: weight int8 [rows, columns], weight_scale [rows, groups]."""
    rows, columns = shape
    groups = _groups(parts, "weight", columns, scheme)
    codes = parts.take("weight", shape, "I8").contiguous().view(torch.uint8) ^ 128
    zeros = torch.full((rows, groups), 128, dtype=torch.int32)
    return _blocks(parts, _Grid(codes, _of_rows(parts, rows, groups), zeros), scheme)


def _float8(parts: Parts, shape: tuple[int, int], scheme: Scheme) -> Tensor:
    """Weight [rows, columns] in e4m3, with one scale, one of each row, or one of each block: float32 numbers."""
    part = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    numbers = parts.take("weight", shape, "F8_E4M3").float()
    most = torch.finfo(torch.float32).max
    if scheme.block is None:
        return numbers.mul_(_of_rows(parts, shape[0], 1, part, most))
    blocks = [-(-size // each) for size, each in zip(shape, scheme.block, strict=True)]
    scales = parts.scales(part, (blocks[0], blocks[1]), most)
    for row in range(blocks[0]):
        lines = numbers[row * scheme.block[0] : (row + 1) * scheme.block[0]]
        lines.mul_(scales[row].repeat_interleave(scheme.block[1])[: shape[1]])
    return numbers


READERS: Mapping[Layout, Callable[[Parts, tuple[int, int], Scheme], Weight]] = {
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed,
    "int8": _int8,
    "float8": _float8,
}
"""What reads a matrix [rows, columns] of a layout."""


def _codes(words: Tensor, bits: int) -> Tensor:
    """The codes of words int32 [..., n], contiguous: uint8 [..., n * 32 / bits]."""
    data = words.view(torch.uint8)
    return data if bits == 8 else torch.stack((data & 15, data >> 4), -1).flatten(-2)


def _groups(parts: Parts, part: str, columns: int, scheme: Scheme) -> int:
    """How many groups a row has."""
    if columns % COLUMNS:
        raise UnsupportedModelError(
            f"{parts.named(part)} is of {columns} inputs, and only multiples of {COLUMNS} are supported"
        )
    return -(-columns // scheme.group) if scheme.group else 1


def _of_rows(parts: Parts, rows: int, groups: int, part: str = "weight_scale", most: float = MOST_SCALE) -> Tensor:
    """Scales [rows, groups]; those of rows may be given as [rows], and one of the whole matrix as [1] or []."""
    shape = parts.shape(part)
    if groups > 1 or len(shape) == 2:
        return parts.scales(part, (rows, groups) if shape != (1, 1) else shape, most).expand(rows, groups)
    scales = parts.scales(part, shape if shape in ((), (1,)) else (rows,), most)
    return scales.reshape(-1, 1).expand(rows, 1)


def _order(parts: Parts, part: str, columns: int, size: int) -> Tensor | None:
    """The columns of one group after the other, where a tensor says which group each is in; None for those in a row."""
    if part not in parts:
        return None
    groups = parts.take(part, (columns,), "I32", "I64").long()
    expected = torch.arange(columns) // (size or columns)
    if torch.equal(groups, expected):
        return None
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order], expected):
        raise ModelFileError(
            f"{parts.named(part)} does not put {size or columns} columns into each group, but the last"
        )
    return order


def _blocks(parts: Parts, grid: _Grid, scheme: Scheme, order_part: str = "") -> StoredMatrix:
    """Blocks of a grid whose columns are in groups in a row, or as the tensor `order_part` says (act-order)."""
    columns = grid.codes.shape[1]
    order = _order(parts, order_part, columns, scheme.group)
    codes = grid.codes.contiguous() if order is None else grid.codes[:, order]
    blocks = torch.arange(0, columns, COLUMNS)
    group = blocks // scheme.group if scheme.group else torch.zeros_like(blocks)
    zeros = grid.zeros[:, group]
    if scheme.bits == 8 and not bool((zeros == 128).all()):
        raise UnsupportedModelError(
            f"{parts.named('qzeros')} has zero points in 8 bits other than 128, which are not supported: use a "
            "checkpoint that is quantised symmetrically"
        )
    return replace(blocks_of_codes(codes, grid.scales[:, group], zeros, scheme.bits), order=order)
