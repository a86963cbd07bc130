"""Far attention handed over as a stream does it, beside `submit` and `wait` from Python: interleaved medians."""

import time

import torch

from scoutattention.bench.common.measure import interleaved
from scoutattention.runtime.handover import Handover, PartialCall
from scoutattention.runtime.host_functions import InlineStream
from scoutattention.runtime.workers import Workers
from scoutattention.types import BlockList, Partial

SHAPES = ((1, 3, 3, 64), (8, 8, 5, 128), (32, 8, 5, 128))
PAGES, BLOCK_SIZE, LISTED, FAR, ROUNDS = 400, 32, 64, 5, 201
"""B, H, G, D; pages of the pool, tokens of each, blocks of a list, those with keys, calls of each."""


def make_call(B: int, H: int, G: int, D: int) -> PartialCall:
    """Scattered bfloat16 pages."""
    k, v = (torch.randn(PAGES, H, BLOCK_SIZE, D).to(torch.bfloat16) for _ in range(2))
    index = torch.randint(PAGES, (B, H, LISTED)).int()
    length = torch.zeros_like(index)
    length[..., :FAR] = BLOCK_SIZE
    return PartialCall(torch.randn(B, H, G, D), k, v, BlockList(index, length), D**-0.5)


def seconds_of_start(handover: Handover) -> float:
    """Median of what a start alone takes."""
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        handover.start()
        taken.append(time.perf_counter() - begin)
        handover.wait()
    return sorted(taken)[ROUNDS // 2]


def main() -> None:
    """Print a line for each shape."""
    torch.manual_seed(0)
    print("B   H  G  D    submit and wait  handover  its start  handover without keys   (microseconds)")
    with Workers() as workers:
        for shape in SHAPES:
            call = make_call(*shape)
            result = Partial(torch.empty_like(call.q), torch.empty(shape[:3]), torch.empty_like(call.q))
            handover = Handover(workers, call, result, functions=InlineStream())

            def hand_over(handover: Handover = handover) -> None:
                handover.start()
                handover.wait()

            def submit(call: PartialCall = call) -> None:
                workers.submit(*call, with_mean_key=True).wait()

            submitted, handed = interleaved([submit, hand_over], ROUNDS)
            start = seconds_of_start(handover)
            call.blocks.length.zero_()
            (empty,) = interleaved([hand_over], ROUNDS)
            handover.check()
            B, H, G, D = shape
            times = f"{submitted * 1e6:15.0f}  {handed * 1e6:8.0f}  {start * 1e6:9.0f}  {empty * 1e6:21.1f}"
            print(f"{B:<3} {H:<2} {G:<2} {D:<4} {times}")


if __name__ == "__main__":
    main()
