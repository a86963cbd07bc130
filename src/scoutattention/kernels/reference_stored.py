"""What a file's blocks stand for, in plain PyTorch: how GGUF defines each kind, in float32.

A function of a kind takes blocks, uint8 [n, bytes of a block], and returns their numbers, float32 [n, numbers].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import KernelError
from ..runtime.stored import StoredKind, StoredMatrix, StoredRows

TILE = 1 << 20
"""Numbers that are expanded or looked at in one go, about: bounds the temporaries."""
_NL4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


Fill = Callable[[Tensor, StoredRows], None]
"""Writes the numbers of rows to a tensor [rows, columns]."""


def expand(weight: StoredMatrix, rows: slice | Tensor, dtype: torch.dtype, fill: Fill | None = None) -> Tensor:
    """Rows of a stored matrix as numbers, computed in float32 and rounded to `dtype`: [n, columns].

    rows: a slice with a step of 1, or int64 [n].   fill: what expands rows; None is plain PyTorch.
    Raises KernelError where `rows` leaves the matrix; a GPU is not waited for to see whether int64 rows do.
    """
    fill = fill or fill_plainly
    chosen = weight[rows] if isinstance(rows, slice) else weight
    count = chosen.shape[0] if isinstance(rows, slice) else len(rows)
    out = torch.empty((count, weight.columns), dtype=dtype, device=weight.device)
    if isinstance(rows, slice):
        first = 0
        for part in chosen.parts:
            fill(out[first : first + len(part.data)], part)
            first += len(part.data)
        return _in_places(out, weight)
    if rows.device.type == "cpu":
        _check_rows(rows, weight)
    if len(weight.parts) == 1:
        (part,) = weight.parts
        fill(out, StoredRows(part.data[rows], part.kind))
        return _in_places(out, weight)
    first = 0
    for part in weight.parts:
        there = (rows >= first) & (rows < first + len(part.data))
        numbers = torch.empty_like(out[there])
        fill(numbers, StoredRows(part.data[rows[there] - first], part.kind))
        out[there] = numbers
        first += len(part.data)
    return _in_places(out, weight)


def _in_places(out: Tensor, weight: StoredMatrix) -> Tensor:
    """Rows as the blocks have them, with each column in its place."""
    return out if weight.order is None else torch.empty_like(out).index_copy_(1, weight.order, out)


def finite(weight: StoredMatrix) -> bool:
    """Whether a stored matrix stands for finite numbers alone. Of quantised blocks, only scales are looked at."""
    return all(_finite(tile, part.kind) for part in weight.parts for tile in _tiles(part))


def _check_rows(rows: Tensor, weight: StoredMatrix) -> None:
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < weight.shape[0]:
        raise KernelError(f"rows {int(rows.min())} to {int(rows.max())} leave a matrix of {weight.shape[0]} rows")


def _tiles(part: StoredRows) -> tuple[Tensor, ...]:
    return torch.split(part.data, max(1, TILE // max(part.columns, 1)))


def fill_plainly(out: Tensor, part: StoredRows) -> None:
    """Write the numbers of rows to a tensor [rows, columns], some rows at a time."""
    kind, first = part.kind, 0
    for tile in _tiles(part):
        there = out[first : first + len(tile)]
        if kind.dtype is None:
            there.copy_(_READERS[kind](tile.reshape(-1, kind.size)).view(there.shape))
        else:
            there.copy_(tile.contiguous().view(kind.dtype))
        first += len(tile)


def _finite(tile: Tensor, kind: StoredKind) -> bool:
    if kind.dtype is not None:
        return bool(tile.contiguous().view(kind.dtype).isfinite().all())
    blocks = tile.reshape(-1, kind.size)
    return all(bool(((blocks[:, at + 1] & 0x7C) != 0x7C).all()) for at in kind.scales)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at a byte of each block: float32 [n, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(data: Tensor, bits: int) -> Tensor:
    """The fields of `bits` bits of bytes [..., c], the lowest of all bytes first: [..., 8 / bits, c]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)
    fields: Tensor = (data.unsqueeze(-2) >> shifts[:, None]) & (2**bits - 1)
    return fields


def _nibbles(data: Tensor) -> Tensor:
    return _fields(data, 4).flatten(1)


def _fifth(data: Tensor) -> Tensor:
    """The fifth bit of 32 codes: byte i has those of codes 8 i and later."""
    return _fields(data, 1).mT.flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth(blocks[:, 2:6])).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth(blocks[:, 4:8])) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _q2_k(blocks: Tensor) -> Tensor:
    scale, least = (part.float() for part in _fields(blocks[:, :16], 4).unbind(1))  # [n, 16]
    codes = _fields(blocks[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    numbers = (_half(blocks, 80) * scale)[..., None] * codes - (_half(blocks, 82) * least)[..., None]
    return numbers.flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 96:104], 4).flatten(1)
    high = _fields(blocks[:, 104:108], 2).flatten(1)
    scale = _half(blocks, 108) * ((low | high << 4).float() - 32)
    codes = _fields(blocks[:, 32:96].reshape(-1, 2, 32), 2).flatten(1) | _fields(blocks[:, :32], 1).flatten(1) << 2
    return (scale[..., None] * (codes.reshape(-1, 16, 16).float() - 4)).flatten(1)


def _six_bits(data: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and the eight least values, 6 bits each, of bytes [n, 12]."""
    a, b, c = data.reshape(-1, 3, 4).unbind(1)
    scales = torch.cat([a & 63, (c & 15) | (a >> 2 & 48)], 1)
    return scales, torch.cat([b & 63, (c >> 4) | (b >> 2 & 48)], 1)


def _from_six_bits(blocks: Tensor, codes: Tensor) -> Tensor:
    """Numbers of codes [n, 8, 32], whose scales are six bits each."""
    scales, least = _six_bits(blocks[:, 4:16])
    numbers = (_half(blocks, 0) * scales)[..., None] * codes - (_half(blocks, 2) * least)[..., None]
    return numbers.flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _from_six_bits(blocks, _fields(blocks[:, 16:].reshape(-1, 4, 32), 4).flatten(1, 2))


def _q5_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 48:].reshape(-1, 4, 32), 4).flatten(1, 2)
    return _from_six_bits(blocks, low | _fields(blocks[:, 16:48], 1) << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, :128].reshape(-1, 2, 64), 4).flatten(1)
    codes = low | _fields(blocks[:, 128:192].reshape(-1, 2, 32), 2).flatten(1) << 4
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return (scale[..., None] * (codes.reshape(-1, 16, 16).float() - 32)).flatten(1)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _looked_up(_nibbles(blocks[:, 2:]))


def _iq4_xs(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, 4:8], 4).mT.flatten(1)
    high = _fields(blocks[:, 2:4], 2).mT.flatten(1)
    scale = _half(blocks, 0) * ((low | high << 4).float() - 32)
    codes = _fields(blocks[:, 8:].reshape(-1, 8, 16), 4).flatten(2)
    return (scale[..., None] * _looked_up(codes)).flatten(1)


def _looked_up(codes: Tensor) -> Tensor:
    return torch.tensor(_NL4, dtype=torch.float32, device=codes.device)[codes.int()]


_READERS: dict[StoredKind, Callable[[Tensor], Tensor]] = {
    StoredKind.Q4_0: _q4_0,
    StoredKind.Q4_1: _q4_1,
    StoredKind.Q5_0: _q5_0,
    StoredKind.Q5_1: _q5_1,
    StoredKind.Q8_0: _q8_0,
    StoredKind.Q2_K: _q2_k,
    StoredKind.Q3_K: _q3_k,
    StoredKind.Q4_K: _q4_k,
    StoredKind.Q5_K: _q5_k,
    StoredKind.Q6_K: _q6_k,
    StoredKind.IQ4_NL: _iq4_nl,
    StoredKind.IQ4_XS: _iq4_xs,
}
