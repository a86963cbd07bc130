"""What the GPU and its driver offer, asked of NVIDIA's driver library itself. No PyTorch."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # the driver's numbers of a device's attributes
NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """A device: its name, compute capability, and bytes of memory."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class Driver:
    """A driver that is installed.

    cuda: the newest CUDA version whose programs it runs.   error: what it answered when it was started, 0 for none.
    gpus: the devices that this process may use.
    """

    cuda: tuple[int, int]
    error: int
    gpus: tuple[Gpu, ...]


def read_driver(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> Driver | None:
    """The driver, or None where its library is not there; takes none of a device's memory.

    load: opens a library by its name, OSError where it is not there.
    """
    try:
        library = load(LIBRARY)
    except OSError:
        return None
    cuda = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(cuda))
    error = int(library.cuInit(0))
    count = ctypes.c_int()
    if error == 0:
        library.cuDeviceGetCount(ctypes.byref(count))
    gpus = tuple(_read_gpu(library, number) for number in range(count.value))
    version = cuda.value // 1000, cuda.value % 1000 // 10
    return Driver(version, error, gpus)


def _read_gpu(library: ctypes.CDLL, number: int) -> Gpu:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(NAME_BYTES)
    library.cuDeviceGet(ctypes.byref(device), number)
    library.cuDeviceGetName(name, NAME_BYTES, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]), memory.value)
