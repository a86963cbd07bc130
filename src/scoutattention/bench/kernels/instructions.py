"""How many instructions the GPU's scores take, counted in the machine code of what is compiled for it.

`python -m scoutattention.bench.kernels.instructions [--arch sm_90]` needs no GPU. It prints the instructions that a
warp issues for a page of 32 keys and a KV head with 4 query heads: those of the loop over pages, divided by its pages.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch

from ...errors import KernelError
from ...kernels.cuda.scores import BATCH, score_launch
from ...kernels.triton.base import ceil_div, triton
from .compile import some

SEQUENCES, HEADS, GROUP, PAGE = 8, 8, 4, 32
CHANNELS = (16, 32, 64, 80, 128)


def page_instructions(channels: int, architecture: str = "sm_90") -> float:
    """Warp instructions for each page of keys with so many channels in 2 bits."""
    N, pages = 1024, 4096
    q = some(SEQUENCES, HEADS, GROUP, channels, dtype=torch.bfloat16)
    codes = some(pages, HEADS, ceil_div(channels, 16), PAGE, 4, dtype=torch.uint8)
    bounds = some(pages, HEADS, 2, channels, dtype=torch.float16)
    listed, closed = some(SEQUENCES, HEADS, N, dtype=torch.int32), some(SEQUENCES, dtype=torch.int64)
    launch = score_launch(q, (codes, bounds), listed, closed, some(SEQUENCES, HEADS, GROUP, N), 0.1)
    return longest_loop(disassembled(launch.compile(architecture))) / BATCH


def disassembled(binary: bytes) -> str:
    """Machine code as text, with labels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(path)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def longest_loop(code: str) -> int:
    """Instructions from the label that the furthest backward branch goes to, to the branch.

    Raises KernelError where there is no loop.
    """
    labels: dict[str, int] = {}
    instructions, longest = 0, 0
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = instructions
        if re.search(r"/\*[0-9a-f]{4,}\*/", line):
            instructions += 1
            branch = re.search(r"BRA.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in labels:
                longest = max(longest, instructions - labels[branch[1]])
    if not longest:
        raise KernelError("the machine code has no loop: it cannot be the kernel that scores pages")
    return longest


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each number of channels."""
    parser = argparse.ArgumentParser(prog="python -m scoutattention.bench.kernels.instructions", description=__doc__)
    parser.add_argument("--arch", default="sm_90", help="the architecture to compile for")
    architecture = parser.parse_args(arguments).arch
    print(f"warp instructions for a page of {PAGE} keys, {GROUP} query heads, {architecture}")
    for channels in CHANNELS:
        print(f"{channels:>5} channels  {page_instructions(channels, architecture):6.1f}")


if __name__ == "__main__":
    main()
