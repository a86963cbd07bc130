"""Every device kernel against float64: fresh random inputs, poisoned outputs, awkward shapes."""

from collections.abc import Callable, Iterator
from functools import partial as bind

import torch
from torch import Tensor

from ..kernels import reference, reference_device, triton_digest, triton_merge, triton_move, triton_partial
from ..kernels.triton_partial import PartialTile
from ..types import BlockList, Partial
from .gpu_timing import Row, attempt
from .measure import relative_error

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
    return torch.randn(shape, device="cuda").to(dtype)


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """NaN on the device, to be overwritten."""
    return torch.full(shape, torch.nan, device="cuda", dtype=dtype)


def lists(B: int, H: int, N: int, P: int) -> tuple[BlockList, int]:
    """Scattered slots shared by all heads, random lengths, a third of them 0; and how many slots there are."""
    slots = B * N + 1
    index = torch.randperm(slots - 1, device="cuda").reshape(B, 1, N).to(torch.int32)
    length = torch.randint(0, P + 1, (B, H, N), dtype=torch.int32, device="cuda")
    length = length.masked_fill(torch.rand(B, 1, N, device="cuda") < 1 / 3, 0)
    index = index.masked_fill((length == 0).all(1, keepdim=True), GARBAGE)
    return BlockList(index.expand(B, H, N), length), slots


def exact(side: Partial) -> Partial:
    """A partial in float64."""
    mean_key = None if side.mean_key is None else side.mean_key.double()
    return Partial(side.out.double(), side.lse.double(), mean_key)


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
    return Row("", "", error if lse_error <= LSE_LIMIT else torch.inf, LIMITS[dtype], more={"lse error": lse_error})


def check_merge(dtype: torch.dtype) -> Row:
    """Some sides without keys, some both."""
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
    out = poisoned(B, H, G, D, dtype=dtype)
    triton_merge.merge_corrected(near, far, q, q_hat, 0.1, out=out)
    want = reference_device.merge_corrected(exact(near), exact(far), q.double(), q_hat.double(), 0.1)
    return Row("", "", relative_error(out, want), LIMITS[dtype])


def check_weights(dtype: torch.dtype, G: int, N: int) -> Row:
    """Pages out of order, garbage where there is no block; the bonus is taken off, or it would hide an error."""
    B, H, D, S = 3, 4, 128, N + 5
    q = random(B, H, G, D, dtype=dtype)
    digests = reference.min_max(random(S, H, 32, D)).to(dtype)
    pages = torch.stack([torch.randperm(S, device="cuda")[:N] for _ in range(B)]).to(torch.int32)
    bonus = torch.zeros(B, 1, N, device="cuda")
    bonus[:, :, :1], bonus[0, :, N // 2 :] = 2.0, -torch.inf
    want = reference_device.block_weights(q, digests, pages, bonus, D**-0.5)
    out = poisoned(B, H, N)
    unused = pages.masked_fill(bonus[:, 0] == -torch.inf, GARBAGE)
    triton_digest.block_weights(q, digests, unused, bonus, D**-0.5, out=out)
    plain = torch.where(bonus > 0, bonus, 0.0)
    return Row("", "", relative_error(out - plain, want - plain), 1e-4)


def check_moves(dtype: torch.dtype, *, pinned: bool) -> Row:
    """Append and recall, bit for bit."""
    B, H, P, D, S, M = 6, 4, 32, 80, 40, 70
    pools, twins = ((random(S, H, P, D, dtype=dtype), random(S, H, P, D, dtype=dtype)) for _ in range(2))
    for pool, twin in zip(pools, twins, strict=True):
        twin.copy_(pool)
    token = random(B, H, 2 * D, dtype=dtype)
    entry, fill = torch.randperm(S, device="cuda")[:B], torch.randint(0, P, (B,), device="cuda")
    host = (random(50, H, P, D, dtype=dtype), random(50, H, P, D, dtype=dtype))
    page, place = torch.randint(0, 50, (M,), device="cuda"), torch.randperm(S * H, device="cuda")[:M]
    reference_device.append(token[..., :D], token[..., D:], twins, entry, fill)
    reference_device.copy_blocks(host, twins, page, place // H, place % H)
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
        cases.append(("merge_corrected", name, bind(check_merge, dtype)))
        for G, N in ((1, 1), (4, 65), (7, 1500)):
            cases.append(("block_weights", f"{name} G {G} N {N}", bind(check_weights, dtype, G, N)))
        for pinned in (False, True):
            text = f"{name} from {'pinned host memory' if pinned else 'the device'}"
            cases.append(("append, copy_blocks", text, bind(check_moves, dtype, pinned=pinned)))
        yield from (attempt(kernel, case, measure) for kernel, case, measure in cases)
