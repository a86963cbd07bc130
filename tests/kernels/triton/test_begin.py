"""Every device kernel waits for the kernel before it, where a GPU starts kernels early."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from scoutattention.bench.kernels.compile import launches
from scoutattention.kernels.cuda.base import SOURCES
from scoutattention.kernels.triton import base

ROOT = Path(base.__file__).parent


def kernels() -> Iterator[ast.FunctionDef]:
    """The functions that are launched."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") and node.decorator_list:
                yield node


def test_no_triton_kernel_reads_or_writes_before_the_wait():
    assert sum(1 for _ in kernels()) > 30
    for kernel in kernels():
        statements = [ast.unparse(statement) for statement in kernel.body]
        assert "begin()" in statements, kernel.name
        for statement in statements[1 : statements.index("begin()")]:
            assert not re.search(r"load|store|atomic|if |for ", statement), kernel.name


def test_every_launched_kernel_was_looked_at():
    names = {kernel.name for kernel in kernels()}
    for launch in launches(torch.bfloat16, 128, hip=False):
        assert launch.kernel.__name__ in names


def test_every_cuda_kernel_begins_with_the_wait():
    for path in SOURCES.glob("*.cu"):
        text = path.read_text()
        bodies = re.findall(r"__global__[^{]*\{\s*([^\n]*)\n", text)
        assert bodies == ["begin();"] * text.count("__global__"), path.name


COMPILE = """
import torch
from scoutattention.bench.kernels.compile import launches
from scoutattention.kernels.triton.precompile import compile_launch
for target in ("sm_80", "sm_90", "gfx942"):
    launch = next(iter(launches(torch.bfloat16, 128, hip=target.startswith("gfx"))))
    print(target, "griddepcontrol.wait" in compile_launch(launch, target).text)
"""


def test_gpus_that_start_kernels_early_wait(tmp_path):
    """In a process of its own: a process that interprets kernels cannot compile them."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["sm_80 False", "sm_90 True", "gfx942 False"], done.stderr
