"""The driver's answers, from a library that stands for it."""

import ctypes

from scoutattention.hardware.gpu import Driver, Gpu, read_driver

GPUS = (Gpu("Fast GPU", (9, 0), 80 * 10**9), Gpu("Old GPU", (7, 5), 8 * 10**9))


class Library:
    """The functions that are asked, each writing where it is told to and returning an error code."""

    def __init__(self, error: int = 0) -> None:
        self.error = error

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = 12040
        return 0

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(GPUS)
        return 0

    def cuDeviceGet(self, device, number: int) -> int:
        device._obj.value = 40 + number
        return 0

    def cuDeviceGetName(self, name, size: int, device) -> int:
        name.value = GPUS[device.value - 40].name.encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, memory, device) -> int:
        memory._obj.value = GPUS[device.value - 40].memory
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
        value._obj.value = GPUS[device.value - 40].capability[attribute - 75]
        return 0


def test_a_driver_and_its_gpus():
    asked = []
    assert read_driver(lambda name: asked.append(name) or Library()) == Driver((12, 4), 0, GPUS)
    assert asked == ["libcuda.so.1"]


def test_a_driver_that_does_not_start_has_no_gpus():
    assert read_driver(lambda name: Library(error=803)) == Driver((12, 4), 803, ())


def test_no_driver():
    def load(name: str) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    assert read_driver(load) is None
