"""Awkward sizes of the calls in the table of operations, and random arguments for them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoutattention.kernels.requests import JoinRequest, LayerGuard
from scoutattention.types import BlockList, PageSelection, Partial, SplitRequest

GARBAGE = 2**31 - 1


@dataclass(frozen=True)
class Sizes:
    """N blocks of a choice among NB; P positions of a block; S pages. The other axes are those of `types`."""

    B: int = 2
    H: int = 2
    G: int = 3
    D: int = 64
    N: int = 5
    NB: int = 9
    S: int = 20
    P: int = 8


SIZES = [
    Sizes(),
    Sizes(B=3, H=1, G=1, D=16, N=1, NB=1, P=16),
    Sizes(B=1, H=3, G=7, D=80, N=17, NB=300, S=310, P=5),
    Sizes(B=1, G=8, D=128, N=33, NB=40, S=41, P=32),
]
CHOICES = [*SIZES, *(Sizes(B=5, H=4, N=count, NB=2 * count) for count in (1, 31, 255))]
SCORES = [*SIZES, *(Sizes(B=3, H=4, G=g, D=128, NB=n, S=n + 5, P=32) for g, n in ((1, 1), (4, 65), (7, 1500)))]
MERGES = [*SIZES, Sizes(B=5, H=3, G=7, D=96)]
LISTS = [
    Sizes(B=b, H=h, G=g, D=d, P=p, N=n)
    for b, h, g, d, p, n in (
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
    )
]


def queries(s: Sizes, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, H, G, D]."""
    return torch.randn(s.B, s.H, s.G, s.D).to(dtype)


def masks(*shape: int) -> Tensor:
    """Each true in three of five places."""
    return torch.rand(shape) < 0.6


def chosen(s: Sizes) -> Tensor:
    """A choice of N different blocks, int64 [B, H, N]."""
    return torch.rand(s.B, s.H, s.NB).argsort(-1)[..., : s.N].contiguous()


def pages_of(s: Sizes) -> Tensor:
    """Pages of NB blocks out of order, of each KV head its own: int32 [B, H, NB]."""
    return torch.rand(s.B, s.H, s.S).argsort(-1)[..., : s.NB].int()


def some_closed(s: Sizes) -> Tensor:
    """Blocks that sequences have, int64 [B], the first of them all NB."""
    closed = torch.randint(0, s.NB + 1, (s.B,))
    closed[0] = s.NB
    return closed


def split_request(s: Sizes, picks: Tensor | None = None) -> SplitRequest:
    """A choice among NB candidates, for some sequences; of some blocks there are fewer."""
    candidates, closed = torch.rand(s.B, s.H, s.NB).argsort(-1), torch.randint(0, s.NB + 1, (s.B,))
    slots = torch.randint(0, 4, (2, s.B, s.H, s.NB + 3))[0], 3
    wishes = torch.rand(s.B, s.H, s.NB)[..., : s.N]
    rows = (masks(s.B), masks(s.B), torch.rand(s.B))
    return SplitRequest(candidates, picks, wishes, closed, slots, rows, 1, torch.full((2, s.B, s.H), 7))


def selection(s: Sizes) -> PageSelection:
    """A choice that is partly wanted, of a table whose rows are further apart than they are long."""
    table = torch.randint(0, s.S, (s.B, 2 * s.NB)).int()[:, : s.NB]
    return PageSelection(table, chosen(s), masks(s.B, s.H, s.N), s.P)


def scattered(s: Sizes) -> tuple[BlockList, int]:
    """Slots that all heads share, a third of them skipped and then garbage; and how many slots there are.

    Lengths are those of each head.
    """
    slots = s.B * s.N + 1
    index = torch.randperm(slots - 1).reshape(s.B, 1, s.N).int()
    length = torch.randint(0, s.P + 1, (s.B, s.H, s.N)).int()
    length = length.masked_fill(torch.rand(s.B, 1, s.N) < 1 / 3, 0)
    index = index.masked_fill((length == 0).all(1, keepdim=True), GARBAGE)
    return BlockList(index.expand(s.B, s.H, s.N), length), slots


def positive_matrices(n: int, m: int, orders: float) -> torch.Tensor:
    """Random float64 [n, m, m] whose eigenvalues fall by so many orders of magnitude."""
    turn = torch.linalg.qr(torch.randn(n, m, m, dtype=torch.float64)).Q
    matrices = turn * torch.logspace(0, -orders, m, dtype=torch.float64) @ turn.mT
    return (matrices + matrices.mT) / 2


def prompt_keys(s: Sizes, dtype: torch.dtype) -> Tensor:
    """Keys [N, H, P, D] as a prompt's are cut into blocks: not contiguous."""
    return torch.randn(s.N, s.P, s.H, s.D).to(dtype).transpose(1, 2)


def partials(s: Sizes) -> tuple[Partial, Partial]:
    """Two partials with mean keys: of the first heads both are without keys, of the next ones one of them is."""
    made = [Partial(queries(s), 5 * torch.randn(s.B, s.H, s.G), queries(s)) for _ in range(2)]
    for side, empty in zip(made, (slice(0, 2), slice(1, 3)), strict=True):
        for tensor in (side.out, side.mean_key):
            tensor.view(-1, s.G, s.D)[:, 0][empty] = 0
            tensor.view(s.B, -1)[empty] = 0
        side.lse.view(-1, s.G)[:, 0][empty] = -torch.inf
        side.lse.view(s.B, -1)[empty] = -torch.inf
    return made[0], made[1]


def join_request(s: Sizes, dtype: torch.dtype, limit: float) -> JoinRequest:
    """Parts of a layer: the scout of every third KV head is far off; the first sequence has none."""
    (near, far), q = partials(s), queries(s, dtype)
    near, far = (side._replace(lse=side.lse / 5) for side in (near, far))
    off = torch.where(torch.arange(s.B * s.H).view(s.B, s.H, 1, 1) % 3 == 0, 2.0, 0.02)
    scout = (q.float() + off * queries(s)).to(dtype)
    pool = tuple(torch.randn(s.S, s.H, s.P, s.D).to(dtype) for _ in range(2))
    rows = torch.arange(s.B) > min(0, s.B - 2)
    wanted, scouted = (chosen(s), masks(s.B, s.H, s.N), torch.rand(s.B, s.H, s.N)), (chosen(s), masks(s.B, s.H, s.N))
    guard = LayerGuard(wanted, scouted, rows, limit, torch.full((2, s.B, s.H), 7), pages_of(s)[:, 0].contiguous(), pool)
    return JoinRequest(q, near, far, scout, s.D**-0.5, guard)
