"""Times the matrix products of a decode step of SmolLM2-135M: PyTorch's against the native ones for a few rows.

Random weights of the model's shapes, one set for each of its 30 layers, so that no cache holds them; interleaved,
medians of 9.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scoutattention.hardware.host import usable_cores
from scoutattention.kernels.native.rows import RowKernels
from scoutattention.runtime.workers import Workers

LAYER = ((960, 576), (576, 576), (3072, 576), (576, 1536))
HEAD = (49152, 576)
LAYERS = 30


def seconds(linear: Callable[[Tensor, Tensor], Tensor], rows: int, weights: list[Tensor]) -> float:
    """Time for one pass over all weights."""
    inputs = {width: torch.randn(rows, width, dtype=weights[0].dtype) for width in (576, 1536)}
    started = time.perf_counter()
    for weight in weights:
        linear(inputs[weight.shape[1]], weight)
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    """Print milliseconds and bytes per second for every dtype and number of rows."""
    torch.set_num_threads(usable_cores())
    with Workers() as workers:
        bodies = {"PyTorch": F.linear, "native": RowKernels(workers).linear}
        for dtype in (torch.float32, torch.bfloat16):
            weights = [torch.randn(shape).to(dtype) for shape in (*LAYER * LAYERS, HEAD)]
            size = sum(weight.nbytes for weight in weights)
            for rows in (1, 2, 4, 8, 16, 32):
                times: dict[str, list[float]] = {name: [] for name in bodies}
                for _ in range(9):
                    for name, body in bodies.items():
                        times[name].append(seconds(body, rows, weights))
                medians = {name: statistics.median(values) for name, values in times.items()}
                told = "   ".join(f"{name} {t * 1e3:6.1f} ms {size / t / 1e9:5.1f} GB/s" for name, t in medians.items())
                print(f"{str(dtype).removeprefix('torch.'):8}  {rows:2} rows   {told}", flush=True)


if __name__ == "__main__":
    main()
