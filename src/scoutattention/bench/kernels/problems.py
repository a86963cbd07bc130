"""Calls of the native CPU kernels on random pools, with the right answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ...cache.pool import TORCH_DTYPES
from ...kernels import reference
from ...kernels.native import NativeOps
from ...runtime.memory import empty
from ...runtime.packed import Blocks, Packed, empty_packed
from ...runtime.workers import Workers
from ...shape import PACKED_BITS
from ...types import BlockList

HEADS, BLOCK_SIZE = 8, 32
PARTIALS = ("partial", "partial with mean key")
SCORES = ("minmax scores", "2-bit key scores")
LAYOUTS = ("contiguous", "scattered")


@dataclass(frozen=True)
class Case:
    """One call to time: of one sequence with 8 KV heads and blocks of 32 tokens.

    dtype: of keys and values, "int8" and "int4" are packed; scores read digests, which are float32 and 2-bit codes
        whatever it says.
    layout: how the listed pages lie in the pool.   threads: that share the work.
    """

    kernel: str
    isa: str
    dtype: str
    head_dim: int
    group: int
    layout: str
    threads: int


@dataclass(frozen=True)
class Problem:
    """A case's data.

    run: the call.   wanted: the right results, in the same order.   moved: bytes that the call has to read.
    memory: the largest tensor that the call reads, contiguous.
    dense: PyTorch's attention over the same keys: with `enable_gqa`, then with a group's heads as rows of one head.
    """

    run: Callable[[Workers], tuple[Tensor, ...]]
    wanted: Callable[[], tuple[Tensor, ...]]
    moved: int
    memory: Tensor
    dense: tuple[Callable[[], Tensor], ...] = ()


def make_problem(case: Case, size: int, *, ragged: bool = False) -> Problem:
    """Random data of about `size` bytes; `ragged` blocks have 0 to 32 tokens."""
    torch.manual_seed(0)
    if case.kernel in PARTIALS:
        return _partial_problem(case, size, ragged=ragged)
    return _minmax_problem(case, size) if case.kernel == SCORES[0] else _codes_problem(case, size)


def small(case: Case) -> Problem:
    """The case on so little data that the answer can be computed in float64."""
    return make_problem(replace(case, layout="scattered"), 2 << 20, ragged=True)


@lru_cache(maxsize=2)
def _pool(dtype: str, head_dim: int, size: int) -> tuple[Tensor, Tensor]:
    kind = TORCH_DTYPES[dtype]
    blocks = size // (HEADS * BLOCK_SIZE * 2 * head_dim * kind.itemsize)
    k, v = (empty((blocks, HEADS, BLOCK_SIZE, head_dim), kind).normal_() for _ in range(2))
    return k, v


@lru_cache(maxsize=2)
def _packed_pool(dtype: str, head_dim: int, size: int) -> tuple[Packed, Packed]:
    """Any codes, with values between -2 and 2."""
    bits, block = PACKED_BITS[dtype], (BLOCK_SIZE, head_dim)
    pool = [empty_packed((1, *block), bits, by_token=by_token) for by_token in (False, True)]
    blocks = size // (HEADS * sum(one.nbytes for one in pool))
    k, v = (empty_packed((blocks, HEADS, *block), bits, by_token=by_token) for by_token in (False, True))
    for part in (k, v):
        part.words.random_(256)
        part.bounds[:, :, 0], part.bounds[:, :, 1] = -2, 4 / 2**bits
    return k, v


@lru_cache(maxsize=2)
def _dense(dtype: str, head_dim: int, size: int) -> tuple[Tensor, Tensor]:
    """The pool's blocks one after the other: [1, H, T, D] each."""
    k, v = (pool.transpose(0, 1).flatten(1, 2)[None].contiguous() for pool in _pool(dtype, head_dim, size))
    return k, v


def _pages(case: Case, blocks: int) -> Tensor:
    """int32 [1, blocks]."""
    order = torch.arange(blocks) if case.layout == "contiguous" else torch.randperm(blocks)
    return order.to(torch.int32)[None]


def _partial_problem(case: Case, size: int, *, ragged: bool) -> Problem:
    pool: Callable[[str, int, int], tuple[Blocks, Blocks]] = _packed_pool if case.dtype in PACKED_BITS else _pool
    k, v = pool(case.dtype, case.head_dim, size)
    shape = (1, HEADS, k.shape[0])
    length = torch.randint(BLOCK_SIZE + 1, shape) if ragged else torch.full(shape, BLOCK_SIZE)
    blocks = BlockList(_pages(case, k.shape[0])[:, None].expand(shape), length.int())
    q, scale = torch.randn(1, HEADS, case.group, case.head_dim), case.head_dim**-0.5
    mean_key = case.kernel == PARTIALS[1]

    def run(workers: Workers) -> tuple[Tensor, ...]:
        return _given(*workers.partial(q, k, v, blocks, scale, with_mean_key=mean_key))

    def wanted() -> tuple[Tensor, ...]:
        return _given(*reference.partial(q.double(), k, v, blocks, scale, with_mean_key=mean_key))

    def dense(*, rows: bool) -> Tensor:
        keys, values = _dense(case.dtype, case.head_dim, size)
        queries = (q if rows else q.flatten(1, 2)[:, :, None]).to(keys.dtype)
        return scaled_dot_product_attention(queries, keys, values, enable_gqa=not rows)

    if isinstance(k, Packed):
        return Problem(run, wanted, k.nbytes + v.nbytes, k.words.contiguous())
    return Problem(run, wanted, k.nbytes + v.nbytes, k, (partial(dense, rows=False), partial(dense, rows=True)))


def _given(*results: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(result for result in results if result is not None)


def _minmax_problem(case: Case, size: int) -> Problem:
    blocks = size // (HEADS * 2 * case.head_dim * 4)
    digests = empty((blocks, HEADS, 2 * case.head_dim), torch.float32).normal_()
    q, pages = torch.randn(1, HEADS, case.group, case.head_dim), _pages(case, blocks)[:, None].expand(1, HEADS, -1)
    closed = torch.tensor([blocks])
    return Problem(
        lambda workers: (NativeOps(workers).score_min_max(q, digests, pages, closed, 1.0),),
        lambda: (reference.score_min_max(q.double(), digests, pages),),
        digests.nbytes,
        digests,
    )


def _codes_problem(case: Case, size: int) -> Problem:
    words, D = -(-case.head_dim // 16), case.head_dim
    blocks = size // (HEADS * (words * BLOCK_SIZE * 4 + 2 * D * 2))
    codes = empty((blocks, HEADS, words, BLOCK_SIZE, 4), torch.uint8).random_()
    bounds = empty((blocks, HEADS, 2, D), torch.float16).normal_()
    bounds[:, :, 1].abs_()
    q, pages = torch.randn(1, HEADS, case.group, D) * D**-0.5, _pages(case, blocks)[:, None].expand(1, HEADS, -1)
    closed = torch.tensor([blocks])
    return Problem(
        lambda workers: (NativeOps(workers).score_key_codes(q, codes, bounds, pages, closed, 1.0),),
        lambda: (reference.score_key_codes(q, codes, bounds, pages),),
        codes.nbytes + bounds.nbytes,
        codes,
    )
