"""Compiles every device kernel for several GPUs, none of which has to be there.

`python -m scoutattention.bench.gpu_compile` prints what the compilers say: registers and spills of a thread, shared
memory of a program.
"""

from collections.abc import Iterator

import torch

from ..kernels.triton_base import Launch
from ..kernels.triton_compile import TARGETS, compile_launch
from ..kernels.triton_digest import weight_launches
from ..kernels.triton_flags import ask_launch, await_launch
from ..kernels.triton_merge import merge_launch
from ..kernels.triton_move import append_launch, copy_launch
from ..kernels.triton_partial import default_tile, partial_launches
from ..types import BlockList, Partial

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
    tile = default_tile(D, dtype, hip=hip)
    yield from partial_launches(q, (k, v), BlockList(index, length), 0.1, near, tile, PROCESSORS)
    pages = some(B, N, dtype=torch.int32)
    yield from weight_launches(q, some(S, H, 2 * D, dtype=dtype), pages, some(B, 1, N), 0.1, some(B, H, N))
    yield merge_launch(near, far, q, q, 0.1, q)
    yield append_launch(token, token, (k, v), places, places)
    yield copy_launch((k, v), (k, v), moves, moves, moves, programs=32)
    flags = some(2, dtype=torch.int32)
    yield ask_launch(flags, flags)
    yield await_launch(flags, flags, polls=1 << 20)


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
