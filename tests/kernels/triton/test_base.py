"""The door to Triton: what happens without it, and that every kernel compiles for every GPU."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scoutattention.errors import KernelError
from scoutattention.kernels.triton import base as triton_base
from scoutattention.kernels.triton import precompile as triton_compile

FOLDER = Path(triton_base.__file__).parent
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10, "gfx942": 64 << 10}


def test_the_kernels_are_interpreted_here():
    assert triton_base.INTERPRETED


def test_without_triton_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, triton_base.__name__)
    with pytest.raises(KernelError, match=r"pip install 'scout-attention\[triton\]'"):
        __import__(triton_base.__name__)


def test_the_interpreter_cannot_compile():
    with pytest.raises(KernelError, match="TRITON_INTERPRET"):
        triton_compile.compile_launch(triton_base.Launch(None, (1,), ()), "sm_90")


def test_tiles_are_powers_of_two():
    assert [triton_base.padded(size) for size in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    assert triton_base.padded(3, 16) == 16


def kernels() -> set[str]:
    """Every kernel that is launched, by its decorator and name: the others are parts of them."""
    trees = [ast.parse(path.read_text()) for path in FOLDER.glob("*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    jitted = {node.name for node in functions if any("jit" in ast.unparse(mark) for mark in node.decorator_list)}
    return {name for name in jitted if name.endswith("_kernel")}


@pytest.mark.slow
def test_every_kernel_compiles_for_every_gpu(tmp_path):
    """In a process of its own: a process that interprets kernels cannot compile them."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "scoutattention.bench.gpu.compile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {row[3] for row in rows} == kernels()
    assert {row[2] for row in rows} == set(SHARED_LIMIT)
    for dtype, _, target, kernel, _, spills, shared in rows:
        assert int(shared) <= SHARED_LIMIT[target], (kernel, target)
        assert int(spills) == 0 or dtype == "float32", (kernel, target)
