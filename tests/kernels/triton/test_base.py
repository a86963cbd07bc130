"""The door to Triton: what happens without it, and that every kernel compiles for every GPU."""

import ast
import os
import re
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
    trees = [ast.parse(path.read_text()) for path in FOLDER.rglob("*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    jitted = {node.name for node in functions if any("jit" in ast.unparse(mark) for mark in node.decorator_list)}
    return {name for name in jitted if name.endswith("_kernel")}


SHOW_CALLS = """
from torch import float32
from scoutattention.bench.kernels.compile import launches
from scoutattention.kernels.triton.precompile import compile_launch
for launch in launches(float32, 64, hip=False):
    if launch.kernel.__name__ in ("_take_kernel", "_list_kernel"):
        print(compile_launch(launch, "sm_90").text, end="// the end of a kernel")
"""


@pytest.mark.slow
def test_flags_are_raised_and_awaited_as_the_memory_model_asks(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", SHOW_CALLS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lists, calls, takes, _ = done.stdout.split("// the end of a kernel")
    assert not re.search(r"release|acquire", lists)
    arrival = calls.index("atom.global.sys.acq_rel.add.u32")
    last_store = calls.rindex("st.global.", 0, arrival)
    assert "bar.sync" in calls[last_store:arrival], "what all threads wrote comes before the program's arrival"
    assert calls.index("st.release.sys.global.b32") > arrival
    loop = re.search(r"\n(\$L__BB0_\d+):((?:(?!\n\$L__BB).)*?)@%p\d+ bra\s+\1;", takes, re.DOTALL)
    assert loop is not None, "it waits in a loop"
    assert "ld.acquire.sys.global.b32" in loop[2]
    assert "%globaltimer" in loop[2]
    assert "nanosleep" in loop[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_kernel_compiles_for_every_gpu(tmp_path):
    """In a process of its own: a process that interprets kernels cannot compile them."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "scoutattention.bench.kernels.compile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {row[3] for row in rows} == kernels()
    assert {row[2] for row in rows} == set(SHARED_LIMIT)
    for dtype, _, target, kernel, _, spills, shared in rows:
        assert int(shared) <= SHARED_LIMIT[target], (kernel, target)
        assert int(spills) == 0 or dtype == "float32", (kernel, target)
