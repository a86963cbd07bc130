"""Rotary positions: how fast each pair of channels turns.

All kinds are those of transformers, in the same order of operations: far from the start of a sequence an angle is a
frequency times a large number, so that every rounding counts.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions: base `theta`, and how the frequencies are stretched for contexts longer than trained on.

    linear: every frequency is divided by `factor`.
    dynamic: the base grows with a sequence that is longer than `original_max_positions`.
    yarn: frequencies that turn fewer than `beta_slow` times in `original_max_positions` are divided by `factor`, those
        that turn more than `beta_fast` times are kept, and those in the middle lie between, by the number of their
        channel; `truncate` rounds the two ends of that band to whole channels.
    longrope: each frequency has a divisor of its own: `short_factors`, and `long_factors` where the sequence is longer
        than `original_max_positions`.
    llama3: frequencies that turn fewer than `low_freq_factor` times in `original_max_positions` are divided by
        `factor`, those that turn more than `high_freq_factor` times are kept, and those in the middle lie between.
    proportional: the first `rotated` (a share) of the pairs turn, the others stay; frequencies are divided by `factor`.
    attention_factor: what cosines and sines are multiplied with.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    rotated: float = 1.0


def inverse_frequencies(rope: RopeConfig, head_dim: int, *, beyond: bool = False) -> Tensor:
    """Radians per position of each rotated pair, float32 [D / 2].

    beyond: of sequences longer than `original_max_positions`, where longrope has others.
    """
    steps = rope_steps(head_dim)
    inverse = 1.0 / rope.theta**steps
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "proportional":
        inverse[int(rope.rotated * head_dim // 2) :] = 0.0
        return inverse / rope.factor
    if rope.kind == "longrope":
        divisors = torch.tensor(rope.long_factors if beyond else rope.short_factors, dtype=torch.float32)
        return 1.0 / (divisors * rope.theta**steps)
    if rope.kind == "llama3":
        return _llama3(rope, inverse)
    return _yarn(rope, head_dim) if rope.kind == "yarn" else inverse


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What cosines and sines are multiplied with, so that attention over more keys stays as sharp."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    """As `yarn_attention_factor`, for longrope."""
    return math.sqrt(1 + math.log(factor) / math.log(original_max_positions)) if factor > 1 else 1.0


def rope_steps(head_dim: int) -> Tensor:
    """The power of the base that each pair turns with: from 0 to 1, float32 [D / 2]."""
    return torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim


def _llama3(rope: RopeConfig, inverse: Tensor) -> Tensor:
    length, low, high = rope.original_max_positions, rope.low_freq_factor, rope.high_freq_factor
    wavelength = 2 * math.pi / inverse
    scaled = torch.where(wavelength > length / low, inverse / rope.factor, inverse)
    kept = (length / wavelength - low) / (high - low)
    between = (1 - kept) * scaled / rope.factor + kept * scaled
    medium = ~(wavelength < length / high) * ~(wavelength > length / low)
    return torch.where(medium, between, scaled)


def _yarn(rope: RopeConfig, head_dim: int) -> Tensor:
    def channel(turns: float) -> float:
        """The channel that turns so often in the original length."""
        ratio = rope.original_max_positions / (turns * 2 * math.pi)
        return (head_dim * math.log(ratio)) / (2 * math.log(rope.theta))

    first, last = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # a band of no width
    interpolated = ((torch.arange(head_dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept = 1 - interpolated
    powers = rope.theta ** rope_steps(head_dim)
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept
