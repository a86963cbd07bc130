"""Every device kernel against float64: fresh random inputs, poisoned outputs, awkward shapes."""

from collections.abc import Callable, Iterator
from functools import partial as bind

import torch
from torch import Tensor

from ...kernels import reference, reference_pools
from ...kernels.triton import choice as triton_rank
from ...kernels.triton import merge as triton_merge
from ...kernels.triton import move_blocks as triton_move
from ...kernels.triton import partial as triton_partial
from ...kernels.triton import score_digests as triton_digest
from ...kernels.triton.partial import PartialTile
from ...types import BlockList, Lateness, Partial, Sifting
from ..common.measure import relative_error
from .timing import Row, attempt

DEVICE = "cuda"
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LSE_LIMIT = 1e-5  # products of the pool's dtype are exact, and their sums are float32
GARBAGE = 2**31 - 1
PARTIAL_SHAPES = [  # B, H, G, D, P, N
    (1, 1, 1, 64, 32, 1),
    (1, 8, 4, 128, 32, 300),
    (3, 2, 7, 128, 32, 40),
    (2, 3, 1, 64, 16, 77),
    (2, 2, 8, 80, 32, 33),
    (1, 2, 5, 24, 8, 50),
    (2, 2, 16, 64, 128, 9),
    (2, 2, 20, 64, 32, 9),
    (1, 2, 3, 64, 130, 6),
    (2, 2, 4, 256, 32, 20),
    (2, 2, 4, 64, 32, 0),
]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on the device."""
    return torch.randn(shape, device=DEVICE).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN on the device, to be overwritten."""
    return torch.full(shape, torch.nan, device=DEVICE, dtype=dtype)


def lists(B: int, H: int, N: int, P: int) -> tuple[BlockList, int]:
    """Scattered slots shared by all heads, random lengths, a third of them 0; and how many slots there are."""
    slots = B * N + 1
    index = torch.randperm(slots - 1, device=DEVICE).reshape(B, 1, N).to(torch.int32)
    length = torch.randint(0, P + 1, (B, H, N), dtype=torch.int32, device=DEVICE)
    length = length.masked_fill(torch.rand(B, 1, N, device=DEVICE) < 1 / 3, 0)
    index = index.masked_fill((length == 0).all(1, keepdim=True), GARBAGE)
    return BlockList(index.expand(B, H, N), length), slots


def exact(side: Partial) -> Partial:
    """A partial in float64."""
    mean_key = None if side.mean_key is None else side.mean_key.double()
    return Partial(side.out.double(), side.lse.double(), mean_key)


def judged(error: float, limit: float, others: dict[str, tuple[float, float]]) -> Row:
    """A row with an error, which is infinite where one of the others is above its own limit."""
    right = all(other <= most for other, most in others.values())
    return Row("", "", error if right else torch.inf, limit, more={name: other for name, (other, _) in others.items()})


def check_partial(shape: tuple[int, ...], dtype: torch.dtype, tile: PartialTile | None) -> Row:
    """Out and lse, into poisoned buffers; the error is out's, unless lse is off by more than its own limit."""
    B, H, G, D, P, N = shape
    blocks, slots = lists(B, H, N, P)
    q, k, v = random(B, H, G, D, dtype=dtype), random(slots, H, P, D, dtype=dtype), random(slots, H, P, D, dtype=dtype)
    out = Partial(poisoned(B, H, G, D), poisoned(B, H, G))
    triton_partial.partial(q, k, v, blocks, D**-0.5, out=out, tile=tile)
    want = reference.partial(q.double(), k.double(), v.double(), blocks, D**-0.5)
    lse_error = relative_error(out.lse, want.lse)
    error = relative_error(out.out, want.out)
    return judged(error, LIMITS[dtype], {"lse error": (lse_error, LSE_LIMIT)})


def check_merge(dtype: torch.dtype) -> Row:
    """Some sides without keys, some both; the far one corrected first."""
    B, H, G, D = 5, 3, 7, 96
    near = Partial(random(B, H, G, D), 5 * random(B, H, G))
    far = Partial(random(B, H, G, D), 5 * random(B, H, G), random(B, H, G, D))
    for side, empty in ((near, slice(0, 2)), (far, slice(1, 3))):
        side.lse[empty] = -torch.inf
        for tensor in (side.out, *side[2:]):
            if tensor is not None:
                tensor[empty] = 0
    q = random(B, H, G, D, dtype=dtype)
    q_hat = (q.float() + 0.1 * random(B, H, G, D)).to(dtype)
    got = triton_merge.merge(near, triton_merge.corrected(far, q, q_hat, 0.1))
    want = reference.merge(exact(near), reference.corrected(exact(far), q.double(), q_hat.double(), 0.1))
    doubts = triton_merge.doubt(far, near, q, q_hat)[3:], reference.doubt(far, near, q, q_hat)[3:]
    return judged(relative_error(got.out, want.out), 1e-5, {"doubt error": (relative_error(*doubts), 1e-4)})


def check_choice(dtype: torch.dtype, G: int, N: int) -> Row:
    """Scores of bounds and of keys in 2 bits, and the wishes that follow from the latter; pages out of order."""
    B, H, D, S = 3, 4, 128, N + 5
    q, k = random(B, H, G, D, dtype=dtype), random(S, H, 32, D)
    pages = torch.stack([torch.randperm(S, device=DEVICE)[:N] for _ in range(B)]).to(torch.int32)
    bounds = reference.min_max(k).to(dtype)
    rough = triton_digest.score_digests(q, bounds, pages), reference.score_digests(q.double(), bounds.double(), pages)
    scaled, codes = q.float() * D**-0.5, reference.key_codes(k)
    scores = triton_digest.score_key_codes(scaled, *codes, pages)
    want = reference.score_key_codes(scaled.double(), *codes, pages)
    closed = torch.tensor([N, N // 2, 1], device=DEVICE)
    wishes = triton_rank.rank_blocks(want.float(), closed, min(N, 63), (1, 1), largest=False)[1]
    expected = reference.rank_blocks(want.float(), closed, min(N, 63), (1, 1), largest=False)[1]
    others = {"bounds error": (relative_error(*rough), 1e-3), "wishes error": (relative_error(wishes, expected), 1e-4)}
    return judged(relative_error(scores, want), 1e-3, others)


def check_passes(N: int) -> Row:
    """What is sifted, blended and late, beside the plain twins: results that differ, in a choice of N of 2 N blocks."""
    B, H, NB = 5, 4, 2 * N
    mine, theirs = (torch.rand(B, H, NB, device=DEVICE).argsort(-1)[..., :N].contiguous() for _ in range(2))
    wishes, absent = torch.rand(B, H, NB, device=DEVICE), torch.rand(2, B, H, N, device=DEVICE) < 0.6
    asked, whole = torch.rand(2, B, device=DEVICE) < 0.7
    slots, least = torch.randint(0, 4, (B, H, NB), device=DEVICE), torch.rand(B, device=DEVICE)
    closed, doubts = torch.randint(0, NB + 1, (B,), device=DEVICE), torch.rand(B, H, device=DEVICE)
    sifting = Sifting(mine, wishes, closed, (slots, 3), (asked, whole, least), always=1)
    sifted = [each.sift(sifting)[:2] for each in (triton_rank, reference)]
    means = [slots.float(), slots.float()]
    for each, mean in zip((triton_rank, reference), means, strict=True):
        each.blend(mean, wishes, asked, 0.8)
    lateness = Lateness((mine, absent[0], wishes), (theirs, absent[1]), doubts, asked, limit=0.6)
    late = [each.find_late(lateness)[:2] for each in (triton_rank, reference)]
    differ = sum(int((got != want).sum()) for pair in (sifted, late) for got, want in zip(*pair, strict=True))
    return judged(float(differ), 0.0, {"blend error": (relative_error(*means), 1e-6)})


def check_moves(dtype: torch.dtype, *, pinned: bool) -> Row:
    """Append and recall, bit for bit."""
    B, H, P, D, S, M = 6, 4, 32, 80, 40, 70
    pools, twins = ((random(S, H, P, D, dtype=dtype), random(S, H, P, D, dtype=dtype)) for _ in range(2))
    for pool, twin in zip(pools, twins, strict=True):
        twin.copy_(pool)
    token = random(B, H, 2 * D, dtype=dtype)
    entry, fill = torch.randperm(S, device=DEVICE)[:B], torch.randint(0, P, (B,), device=DEVICE)
    host = (random(50, H, P, D, dtype=dtype), random(50, H, P, D, dtype=dtype))
    page, place = torch.randint(0, 50, (M,), device=DEVICE), torch.randperm(S * H, device=DEVICE)[:M]
    reference_pools.append(token[..., :D], token[..., D:], twins, entry, fill)
    reference_pools.copy_blocks(host, twins, page, place // H, place % H)
    source = (host[0].cpu().pin_memory(), host[1].cpu().pin_memory()) if pinned else host
    triton_move.append(token[..., :D], token[..., D:], pools, entry, fill)
    triton_move.copy_blocks(source, pools, page, place // H, place % H)
    torch.cuda.synchronize()
    differ = sum(int((pool != twin).sum()) for pool, twin in zip(pools, twins, strict=True))
    return Row("", "", float(differ), 0.0)


def checks() -> Iterator[Row]:
    """A row for every kernel, shape and dtype."""
    torch.manual_seed(torch.seed() % 2**31)
    for dtype in LIMITS:
        name = str(dtype).removeprefix("torch.")
        cases: list[tuple[str, str, Callable[[], Row]]] = []
        for shape in PARTIAL_SHAPES:
            text = "B {} H {} G {} D {} P {} N {}".format(*shape)
            cases.append(("partial", f"{name} {text}", bind(check_partial, shape, dtype, None)))
        split = PartialTile(tokens=16, warps=4, stages=2, waves=10_000, least=1)
        cases.append(("partial", f"{name} split everywhere", bind(check_partial, (2, 2, 4, 64, 32, 70), dtype, split)))
        cases.append(("corrected, merge", name, bind(check_merge, dtype)))
        for G, N in ((1, 1), (4, 65), (7, 1500)):
            cases.append(("scores, rank_blocks", f"{name} G {G} N {N}", bind(check_choice, dtype, G, N)))
        for pinned in (False, True):
            text = f"{name} from {'pinned host memory' if pinned else 'the device'}"
            cases.append(("append, copy_blocks", text, bind(check_moves, dtype, pinned=pinned)))
        if dtype == torch.float32:  # they have no other
            for N in (1, 31, 255):
                cases.append(("sift, blend, find_late", f"N {N}", bind(check_passes, N)))
        yield from (attempt(kernel, case, measure) for kernel, case, measure in cases)
