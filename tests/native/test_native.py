"""The native core without Python: memory and threads under sanitizers, and built for another architecture."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ARM_COMPILER, ARM_EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
SANITIZABLE_BITS = 28  # of randomness in addresses, up to which ThreadSanitizer finds its own memory


def run(*command: str) -> str:
    """What a command prints; fails with all of it where the command does."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
    return done.stdout


def build(folder: Path, *options: str) -> str:
    """The test program, built in `folder`."""
    search = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    cmake = shutil.which("cmake", path=search)
    assert cmake is not None, "cmake is not installed: pip install -e '.[dev]'"
    run(cmake, "-S", str(ROOT), "-B", str(folder), "-DSCOUT_TESTS=ON", *options)
    run(cmake, "--build", str(folder), "--parallel")
    return str(folder / "tests" / "native" / "native_tests")


def without_random_addresses() -> list[str]:
    """What to run a program with, so that its memory lies where ThreadSanitizer expects it."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    random = bits.exists() and int(bits.read_text()) > SANITIZABLE_BITS
    return ["setarch", platform.machine(), "--addr-no-randomize"] if random else []


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(tmp_path, sanitizer):
    program = build(tmp_path, f"-DSCOUT_SANITIZE={sanitizer}")
    prefix = without_random_addresses() if sanitizer == "thread" else []
    assert "portable: all right" in run(*prefix, program)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(ARM_COMPILER) is None, reason=f"{ARM_COMPILER} is not installed")
def test_the_core_builds_for_64_bit_arm(tmp_path):
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64")
    program = build(tmp_path, *target, f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}")
    if shutil.which(ARM_EMULATOR) is not None:
        assert run(ARM_EMULATOR, "-L", ARM_LIBRARIES, program) == "portable: all right\n"
