"""Compiles every device kernel for several GPUs, none of which has to be there.

`python -m scoutattention.bench.kernels.compile` prints what the compilers say: registers and spills of a thread, shared
memory of a program.
"""

from collections.abc import Iterator

import torch

from ...kernels.reference_rows import HeadPlacing, RowCorrection
from ...kernels.requests import CallRequest, InterestRequest, JoinRequest, LayerGuard, PartialRequest, TakeRequest
from ...kernels.triton.base import Launch, ceil_div
from ...kernels.triton.calls import Taking, take_launch
from ...kernels.triton.choices.choose import late_launch, wish_launch
from ...kernels.triton.choices.split import Calling, interest_launch, split_launch
from ...kernels.triton.corrections import correction_launches
from ...kernels.triton.digests.main_dims import MOST_CHANNELS, orthogonal_launch
from ...kernels.triton.digests.score import bound_launch, code_launch
from ...kernels.triton.digests.write import bounding_launch, coding_launch
from ...kernels.triton.join import join_launch
from ...kernels.triton.matrix import ProductTile, default_product_tile, product_launch
from ...kernels.triton.merge import correct_launch, merge_launch, scout_error_launch
from ...kernels.triton.move_blocks import append_launch, close_launch, copy_launch
from ...kernels.triton.packed_pages.blocks import unpack_launch
from ...kernels.triton.packed_pages.partial import packed_launches
from ...kernels.triton.packed_pages.write import pack_launch
from ...kernels.triton.page_lists import list_launch, stage_launch
from ...kernels.triton.partial import partial_launches
from ...kernels.triton.partial_size import default_tile
from ...kernels.triton.precompile import TARGETS, compile_launch
from ...kernels.triton.recall import recall_launch, wanted_launch
from ...kernels.triton.rows import norm_launch, place_launch, swiglu_launch
from ...kernels.triton.shares import count_launch, follow_launch
from ...kernels.triton.stored_blocks.matrix import product_launch as stored_launch
from ...kernels.triton.stored_blocks.numbers import GROUPINGS, expand_launch
from ...runtime.packed import Packed
from ...runtime.stored import StoredRows
from ...types import (
    BlockList,
    CallFlags,
    CloseRequest,
    Copies,
    GuardFinding,
    GuardRequest,
    PageSelection,
    Partial,
    RecallRequest,
    Rope,
    ShareCounts,
    SharePolicy,
    ShareRequest,
    SlotTables,
    SplitChoice,
    SplitRequest,
    StepRows,
    WantedRequest,
)

PROCESSORS = 132


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor without memory: a compiler asks for its dtype and strides alone."""
    return torch.empty(shape, dtype=dtype, device="meta")


def launches(dtype: torch.dtype, head_dim: int, *, hip: bool) -> Iterator[Launch]:
    """Every kernel as a decode step of 8 sequences launches it, 8 KV heads with 4 query heads each."""
    B, H, G, D, N, S, P = 8, 8, 4, head_dim, 256, 2048, 32
    q, k, v = some(B, H, G, D, dtype=dtype), some(S, H, P, D, dtype=dtype), some(S, H, P, D, dtype=dtype)
    index, length = some(B, 1, N, dtype=torch.int32).expand(B, H, N), some(B, H, N, dtype=torch.int32)
    near, far = (Partial(some(B, H, G, D), some(B, H, G), some(B, H, G, D)) for _ in range(2))
    moves = some(64, dtype=torch.int64)
    token = some(B, H, D, dtype=dtype)
    places = some(B, dtype=torch.int64)
    tile = default_tile(D, dtype, N * P, hip=hip)
    for taking in (None, Taking(TakeRequest(some(2 * q.numel()), some_flags(), B * H * G, 10.0), some(2 * q.numel()))):
        what = PartialRequest(q, k, v, BlockList(index, length), 0.1)
        yield from partial_launches(what, near, tile, PROCESSORS, taking, ptx=not hip)
    table, scores = some(B, N, dtype=torch.int32), some(B, H, G, N)
    pages = table[:, None].expand(B, H, N)
    yield bound_launch(q, some(S, H, 2 * D, dtype=dtype), pages, places, scores)
    words, bounds = some(S, H, ceil_div(D, 16), P, 4, dtype=torch.uint8), some(S, H, 2, D, dtype=torch.float16)
    yield code_launch(q, (words, bounds), pages, places, scores)
    yield from choice_launches(scores)
    yield merge_launch(near, far, far)
    yield correct_launch(far, q, q, 0.1, far.lse)
    yield scout_error_launch(far, near, q, q, some(B, H))
    masks, lists = some(B, H, 63, dtype=torch.bool), some(B, H, 63, dtype=torch.int64)
    counts, some_rows = some(2, B, H, dtype=torch.int64), some(B, dtype=torch.bool)
    guard = LayerGuard((lists, masks, some(B, H, 63)), (lists, masks), some_rows, 0.02, counts, table, (k, v))
    joined = JoinRequest(q, near, far, q, 0.1, guard)
    yield join_launch(joined, Partial(q, some(B, H, G)), some(B, H, 63, dtype=torch.int32))
    closed, digests = some(64, H, P, D, dtype=dtype), some(S, H, 2 * D)
    yield bounding_launch(closed, digests, moves)
    yield coding_launch(closed, words, bounds, moves)
    if dtype == torch.float32 and D <= MOST_CHANNELS:
        yield orthogonal_launch(some(H, D, D), some(H, D, D), some(H, D))
    listing = PageSelection(table, some(B, H, 63, dtype=torch.int64), some(B, H, 63, dtype=torch.bool), P)
    yield from call_launches(q, listing, ptx=not hip)
    yield from row_launches(H * G, D, dtype, default_product_tile(hip=hip))
    yield append_launch(token, token, (k, v), places, places)
    layers = (some(36, S, H, P, D, dtype=dtype), some(36, S, H, P, D, dtype=dtype))
    yield copy_launch(layers, layers, Copies(moves, moves, moves, moves), programs=32)
    yield close_launch(layers, layers, CloseRequest(StepRows(places, places, places), places, table))
    yield from end_launches(36, B, H, N)
    for bits in (8, 4):
        pools = some_packed(k.shape, bits)
        yield pack_launch(closed, closed, pools, moves)
        yield unpack_launch(pools, (k, v), moves, moves, moves, programs=32)
        yield from packed_launches(q, pools, BlockList(index, length), 0.1, near, PROCESSORS)


def some_packed(shape: torch.Size, bits: int) -> tuple[Packed, Packed]:
    """Keys and values [S, H, P, D] in codes."""
    S, H, P, D = shape
    bounds = some(S, H, 2, D, dtype=torch.bfloat16)
    keys, values = (
        some(S, H, ceil_div(along * bits, 32), across, 4, dtype=torch.uint8) for along, across in ((D, P), (P, D))
    )
    return Packed(keys, bounds, bits, P, by_token=False), Packed(values, bounds, bits, P, by_token=True)


def call_launches(q: torch.Tensor, listing: PageSelection, *, ptx: bool) -> Iterator[Launch]:
    """A call to the CPU with queries q, and what takes its result."""
    shape = listing.blocks.shape
    listed = BlockList(some(*shape, dtype=torch.int32), some(*shape, dtype=torch.int32))
    yield list_launch(listing, listed)
    to, flags, B = (some(*q.shape), listed), some_flags(), shape[0]
    yield stage_launch(q, listing, to, flags, ptx=ptx)
    counts, rows, pages = some(2, *shape[:2], dtype=torch.int64), some(B, dtype=torch.bool), listed.index
    places, slots = some(B, dtype=torch.int64), some(B, shape[1], 256, dtype=torch.int64)
    what = SplitRequest(listing.blocks, None, some(*shape), places, (slots, 128), (rows, rows, some(B)), 2, counts)
    choice = SplitChoice(listing.blocks, listing.wanted, listing.wanted)
    calling = Calling(CallRequest(q, listing.table, listing.size), to, flags, pages)
    yield split_launch(what, choice, calling, ptx=ptx)
    results = q[..., 0].numel()
    yield take_launch(some(2 * q.numel() + results), flags, results, 10.0, ptx=ptx)


def some_flags() -> CallFlags:
    """The flags of a call."""
    word = some(1, dtype=torch.int32)
    return CallFlags(word, word, some(1, dtype=torch.int64), some(4, dtype=torch.int32), word, word, 1)


def end_launches(L: int, B: int, H: int, N: int) -> Iterator[Launch]:
    """What the end of a step decides, with slots for half of the blocks."""
    number, places, mask = some(dtype=torch.int64), some(B, dtype=torch.int64), some(L, B, dtype=torch.bool)
    counts, shares = some(3, L, 2, B, H, dtype=torch.int64), some(2, L + 1, B, dtype=torch.int64)
    yield count_launch(ShareCounts(counts, mask, mask[:1], guarded=True, totals=some(3, dtype=torch.int64)), shares)
    policy = SharePolicy(0.05, 8, 0.085, 1e-4, 0.03)
    yield follow_launch(ShareRequest(shares, places, some(L, B), some(B), policy, number), mask)
    content, slot_of = some(L, B, H, N // 2, dtype=torch.int64), some(L, B, H, N, dtype=torch.int64)
    length, index = some(L, B, H, 1 + N // 2, dtype=torch.int32), some(B, 1 + N // 2, dtype=torch.int32)
    tables = SlotTables(content, slot_of, some(L, B, H, N), length, index, places)
    copies = (some(L, B, H, 8, dtype=torch.int64), some(L, B, H, 8, dtype=torch.int64))
    rows, table = StepRows(places, places, places), some(B, N, dtype=torch.int32)
    yield recall_launch(RecallRequest(tables, rows, mask, (1, 1), table, copies, number, 32))
    blocks, absent = some(B, H, 31, dtype=torch.int64), some(B, H, 31, dtype=torch.bool)
    what = WantedRequest(tables, 3, rows, blocks, absent, (1, 1), table, number, 32)
    yield wanted_launch(what, some(4, B, H, 31, dtype=torch.int64))


def choice_launches(scores: torch.Tensor) -> Iterator[Launch]:
    """What is made of scores [B, H, G, N]: 63 blocks of a KV head."""
    B, H, _, N = scores.shape
    blocks, mask, wishes = some(B, H, 63, dtype=torch.int64), some(B, H, 63, dtype=torch.bool), some(B, H, N)
    closed, rows, counts = some(B, dtype=torch.int64), some(B, dtype=torch.bool), some(2, B, H, dtype=torch.int64)
    yield wish_launch(scores, closed, wishes, wishes, (1, 1), largest=False)
    slots = some(B, H, N, dtype=torch.int64)
    wished = some(B, H, 63)
    split = SplitRequest(blocks, blocks, wished, closed, (slots, 128), (rows, rows, some(B)), 2, counts)
    noting = InterestRequest(some(B, H, N), wished, rows, 0.85)
    yield split_launch(split, SplitChoice(blocks, mask, mask), noting=noting)
    yield interest_launch(some(B, H, N), blocks, wished, rows, 0.85)
    guard = GuardRequest((blocks, mask, wished), (blocks, mask), some(B, H), rows, 0.02, counts)
    yield late_launch(guard, GuardFinding(some(B, H, dtype=torch.bool), mask))


def row_launches(heads: int, head_dim: int, dtype: torch.dtype, tile: ProductTile) -> Iterator[Launch]:
    """What a layer computes of 8 rows: norms of rows and of heads, rotary embedding, products, gated unit."""
    x, width = some(8, heads, head_dim, dtype=dtype), heads * head_dim
    row = some(8, width, dtype=dtype)
    yield norm_launch(row, None, some(width), 1e-5, (row, row))
    yield norm_launch(row, row, some(width), 1e-5, (row, row))
    how = HeadPlacing(heads // 2, some(width), some(heads, head_dim), 1e-5, Rope(some(8, head_dim), some(8, head_dim)))
    yield place_launch(x, how, (x, x, x))
    correction = RowCorrection(some(8, 64, width, dtype=dtype), some(8, width, 64, dtype=dtype))
    yield from correction_launches(row, some(width), 1e-5, (correction, correction), some(8, width // 128, 129), row)
    if dtype.itemsize == 2:  # float32 is a library's
        yield product_launch(row, some(width, width, dtype=dtype), row, tile)
    for kind in GROUPINGS:
        part = StoredRows(some(width, width // kind.length * kind.size, dtype=torch.uint8), kind)
        yield stored_launch(row, part, row)
        yield expand_launch(some(width, width, dtype=dtype), part)
    yield swiglu_launch(some(8, 8 * width, dtype=dtype), some(8, 4 * width, dtype=dtype))


def main() -> None:
    """Print a line for each kernel, dtype, head dim and target."""
    print(f"{'dtype':<10}{'D':>4}  {'target':<8}{'kernel':<18}{'registers':>10}{'spills':>8}{'shared':>8}")
    for dtype, head_dim in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 128), (torch.float32, 80)):
        for target, (backend, _, _) in TARGETS.items():
            for launch in launches(dtype, head_dim, hip=backend == "hip"):
                it = compile_launch(launch, target)
                usage = f"{it.registers:>10}{it.spills:>8}{it.shared:>8}"
                print(f"{str(dtype)[6:]:<10}{head_dim:>4}  {target:<8}{it.kernel:<18}{usage}")


if __name__ == "__main__":
    main()
