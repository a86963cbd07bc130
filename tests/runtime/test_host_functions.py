"""Where the function that queues host functions is looked for, on a machine without any: in the C library."""

import os
import shutil

import pytest

from scoutattention.errors import KernelError
from scoutattention.runtime.host_functions import find_launch, loaded_libraries

MAPS = """\
7f00-7f01 r--p 00000000 08:01 42                         /venv/nvidia/cuda runtime/lib/libcudart.so.12
7f01-7f02 r-xp 00001000 08:01 42                         /venv/nvidia/cuda runtime/lib/libcudart.so.12
7f02-7f03 rw-p 00000000 00:00 0
7f03-7f04 rw-p 00000000 00:00 0                          [heap]
7f04-7f05 r--p 00000000 08:01 43                         /lib/libc.so.6
"""


def test_loaded_libraries_are_files_each_once(tmp_path):
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    assert list(map(str, loaded_libraries(maps))) == ["/venv/nvidia/cuda runtime/lib/libcudart.so.12", "/lib/libc.so.6"]


def test_a_function_is_found_in_a_library_that_is_loaded():
    launchers = (("libnone", "getpgid"), ("libc.", "no_such_function"), ("libc.", "getpgid"))
    launch = find_launch(loaded_libraries(), launchers)
    assert launch(0, 0, 0) == os.getpgid(0)


def test_libraries_that_are_not_loaded_stay_so(tmp_path):
    (loaded,) = (path for path in loaded_libraries() if path.name.startswith("libm."))
    stray = tmp_path / "libm.so"
    shutil.copy(loaded, stray)
    assert find_launch([stray, loaded], [("libm.", "lround")])
    with pytest.raises(KernelError, match="none of the 1 libraries"):
        find_launch([stray], [("libm.", "lround")])


def test_without_a_runtime_one_sentence_says_what_to_do():
    (libc,) = (path for path in loaded_libraries() if path.name.startswith("libc."))
    with pytest.raises(KernelError, match=r"has cudaLaunchHostFunc or hipLaunchHostFunc: install .* --device cpu$"):
        find_launch([libc])
