"""Keys and values in a few bits a channel, each block and channel on a scale of its own."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from .memory import CPU, empty

Index = int | slice | Tensor | tuple[int | slice | Tensor, ...]


def page_bounds(x: Tensor, bits: int) -> Tensor:
    """The bounds of blocks of rows that are kept in `bits` bits a channel: their channels' least values and steps.

    x: [..., P, D].   Returns bfloat16 [..., 2, D], which reaches as far as float32. Least values are rounded down, and
    steps up, so that least + (2^bits - 1) * step is at least the channel's most. What is not finite is not finite here.
    """
    low, high = x.float().amin(-2), x.float().amax(-2)
    least = _rounded_down(low)
    step = -_rounded_down((least / 2 - high / 2) / (2**bits - 1) * 2)  # halves, since the difference may overflow
    return torch.stack([least, step], dim=-2).to(torch.bfloat16)


def _rounded_down(x: Tensor) -> Tensor:
    """The next number of bfloat16 that is not above x, as float32."""
    bits = x.view(torch.int32)
    towards_zero = bits & -65536
    below = torch.where((bits != towards_zero) & (bits < 0), towards_zero + 65536, towards_zero)
    return below.view(torch.float32).where(x.isfinite(), x)


def to_codes(x: Tensor, bounds: Tensor, bits: int) -> Tensor:
    """Blocks of rows in `bits` bits a channel: channel d of a row is about bounds[0, d] + code * bounds[1, d].

    x: [..., P, D].   bounds: [..., 2, D].   Returns codes uint8 [..., P, D], which are 0 where x or the step is not
    finite.
    """
    half_least, half_step = (bounds.float() / 2).unsqueeze(-3).unbind(-2)  # [..., 1, D]; differences may overflow
    half_step = half_step.where(half_step > 0, 1)
    codes = ((x.float() / 2 - half_least) / half_step).round().clamp(0, 2**bits - 1)
    return codes.nan_to_num(0).to(torch.uint8)


def from_codes(codes: Tensor, bounds: Tensor) -> Tensor:
    """What `to_codes` kept of the rows, as float32 [..., P, D]."""
    half_least, half_step = (bounds.float() / 2).unsqueeze(-3).unbind(-2)  # products of codes and steps may overflow
    rows: Tensor = 2 * (half_least + codes * half_step)
    return rows


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., R, C] in words of n = 32 / bits along the last axis: uint8 [..., W, R, 4], W = ceil(C / n).

    Code n w + 4 j + i of row r is in `bits` bits from bit `bits * j` of [..., w, r, i].
    """
    parts = 8 // bits
    whole = pad(codes, (0, -codes.shape[-1] % (4 * parts)))
    whole = whole.reshape(*codes.shape[:-1], whole.shape[-1] // (4 * parts), parts, 4)  # [..., R, W, parts, 4]
    words = whole[..., 0, :]
    for part in range(1, parts):
        words = words | whole[..., part, :] << bits * part
    return words.transpose(-2, -3).contiguous()


def from_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The codes that `to_words` put into words, the first `count` of each row: uint8 [..., R, count]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=words.device)[:, None]
    wide = (words.transpose(-2, -3).unsqueeze(-2) >> shifts) & (2**bits - 1)  # [..., R, W, parts, 4]
    codes: Tensor = wide.flatten(-3)[..., :count]
    return codes


@dataclass(frozen=True)
class Packed:
    """Blocks in codes, to be read where a tensor [..., P, D] can: indexed over all but the last two axes, converted.

    words: see `to_words`: along the channels, [..., W, P, 4], or, `by_token`, along the block's rows, [..., W, D, 4].
    bounds: bfloat16 [..., 2, D], see `page_bounds`.   bits: of a code, 4 or 8.
    """

    words: Tensor
    bounds: Tensor
    bits: int
    rows: int
    by_token: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the blocks: [..., P, D]."""
        return (*self.bounds.shape[:-2], self.rows, self.bounds.shape[-1])

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.words.device

    @property
    def nbytes(self) -> int:
        """Bytes of words and bounds."""
        return self.words.nbytes + self.bounds.nbytes

    @property
    def memory(self) -> Tensor:
        """All bytes that `empty_packed` took for the blocks, one after the other."""
        return self.words.as_strided((self.words.untyped_storage().nbytes(),), (1,), 0)

    def __getitem__(self, index: Index) -> "Packed":
        return replace(self, words=self.words[index], bounds=self.bounds[index])

    def __setitem__(self, index: Index, blocks: Tensor) -> None:
        packed = pack(blocks, self.bits, by_token=self.by_token)
        self.words[index], self.bounds[index] = packed.words, packed.bounds

    def flatten(self, first: int, last: int) -> "Packed":
        """The same memory with axes `first` to `last`, none of the last two, as one."""
        return replace(self, words=self.words.flatten(first, last), bounds=self.bounds.flatten(first, last))

    def to(self, dtype: torch.dtype) -> Tensor:
        """The blocks as a tensor [..., P, D]. Codes of what is finite stand for no more than the dtype holds."""
        codes = from_words(self.words, self.bits, self.rows if self.by_token else self.bounds.shape[-1])
        rows = from_codes(codes.transpose(-1, -2) if self.by_token else codes, self.bounds)
        most = min(torch.finfo(dtype).max, torch.finfo(rows.dtype).max)
        return rows.clamp(-most, most).to(dtype)

    def float(self) -> Tensor:
        """The blocks as float32."""
        return self.to(torch.float32)


Blocks = Tensor | Packed
"""Keys or values of blocks: [..., P, D]."""


def pack(blocks: Tensor, bits: int, *, by_token: bool) -> Packed:
    """Blocks [..., P, D] in codes; `by_token` is how the kernels want values, and not keys."""
    bounds = page_bounds(blocks, bits)
    codes = to_codes(blocks, bounds, bits)
    return Packed(to_words(codes.mT if by_token else codes, bits), bounds, bits, blocks.shape[-2], by_token)


@cache
def _empty_block(rows: int, channels: int, bits: int, by_token: bool) -> Packed:
    return pack(torch.zeros(rows, channels), bits, by_token=by_token)


def empty_packed(shape: tuple[int, ...], bits: int, *, by_token: bool, device: torch.device = CPU) -> Packed:
    """Memory for blocks [..., P, D] in codes, a block's bounds right behind its words."""
    one, lead = _empty_block(*shape[-2:], bits, by_token), shape[:-2]
    memory = empty((*lead, one.nbytes), torch.uint8, device)
    words, bounds = memory[..., : one.words.nbytes], memory[..., one.words.nbytes :].view(torch.bfloat16)
    return replace(one, words=words.view(*lead, *one.words.shape), bounds=bounds.view(*lead, *one.bounds.shape))
