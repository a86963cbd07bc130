"""Computers to plan for: graphics cards, hosts, and whole machines, as their makers' data sheets describe them.

A card's `flops` are those of dense bfloat16 products with float32 sums, and its `link` is one direction of what the
card is plugged into. Sources are named in each row; the figures are peaks, and `costs.py` says what of them is reached.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from ..errors import ConfigError, nearest
from ..hardware.gpu import Driver
from ..hardware.host import Host, read_cores, read_cpu, read_memory
from ..hardware.measure import Measured, Pace

GB, GIB, TERA = 1e9, 1 << 30, 1e12
PCIE4, PCIE5 = 31.5 * GB, 63.0 * GB
"""Bytes per second in one direction of 16 lanes (PCI-SIG)."""
CORE_READS = 10e9
"""Bytes per second that one core reads: an assumption, for hosts with few cores, and where nothing was measured."""


@dataclass(frozen=True)
class Card:
    """A GPU: bytes of memory, bytes per second of memory and link, bfloat16 operations per second."""

    memory: int
    bandwidth: float
    flops: float
    link: float
    source: str
    host: str = "server"


@dataclass(frozen=True)
class Processor:
    """A host: cores, bytes of memory, and bytes per second of it.

    measured: whether `bandwidth` is what its threads were seen to read, and no data sheet's.
    pace: how fast its cores work, where that was measured.
    """

    cores: int
    memory: int
    bandwidth: float
    source: str
    measured: bool = False
    pace: Pace | None = None


@dataclass(frozen=True)
class Computer:
    """A host and its GPU, if it has one."""

    name: str
    host: Processor
    card: Card | None = None

    def with_host_memory(self, size: int | None) -> Self:
        """The same with another size of host memory in bytes; None changes nothing."""
        return self if size is None else replace(self, host=replace(self.host, memory=size))


def _card(gib: float, gb_s: float, tflops: float, link: float, source: str, host: str = "server") -> Card:
    return Card(int(gib * GIB), gb_s * GB, tflops * TERA, link, source, host)


CARDS: Mapping[str, Card] = {
    "b200": _card(179, 8000, 2250, PCIE5, "NVIDIA HGX B200 data sheet"),
    "h200": _card(140, 4800, 989, PCIE5, "NVIDIA H200 data sheet"),
    "h100-sxm": _card(79.6, 3350, 989, PCIE5, "NVIDIA H100 data sheet"),
    "h100-pcie": _card(79.6, 2000, 756, PCIE5, "NVIDIA H100 PCIe product brief"),
    "h100-nvl": _card(93.6, 3900, 835, PCIE5, "NVIDIA H100 data sheet"),
    "gh200": _card(94.5, 4000, 989, 450 * GB, "NVIDIA GH200 data sheet; NVLink-C2C", "grace"),
    "a100-80gb-sxm": _card(79.3, 2039, 312, PCIE4, "NVIDIA A100 data sheet"),
    "a100-80gb-pcie": _card(79.3, 1935, 312, PCIE4, "NVIDIA A100 data sheet"),
    "a100-40gb": _card(39.4, 1555, 312, PCIE4, "NVIDIA A100 data sheet"),
    "l40s": _card(44.5, 864, 362, PCIE4, "NVIDIA L40S data sheet (ECC on)"),
    "rtx-6000-ada": _card(47.5, 960, 364, PCIE4, "NVIDIA RTX 6000 Ada data sheet", "workstation"),
    "rtx-a6000": _card(47.5, 768, 155, PCIE4, "NVIDIA RTX A6000 data sheet", "workstation"),
    "a10": _card(22.5, 600, 125, PCIE4, "NVIDIA A10 data sheet"),
    "a10g": _card(22.5, 600, 70, PCIE4, "AWS, instances of type g5"),
    "l4": _card(22.5, 300, 121, PCIE4, "NVIDIA L4 data sheet"),
    "rtx-5090": _card(31.8, 1792, 210, PCIE5, "NVIDIA RTX Blackwell white paper", "desktop"),
    "rtx-5080": _card(15.9, 960, 113, PCIE5, "NVIDIA RTX Blackwell white paper", "desktop"),
    "rtx-4090": _card(24, 1008, 165, PCIE4, "NVIDIA Ada white paper", "desktop"),
    "rtx-4080": _card(16, 717, 97, PCIE4, "NVIDIA Ada white paper", "desktop"),
    "rtx-4070": _card(12, 504, 58, PCIE4, "NVIDIA Ada white paper", "desktop"),
    "rtx-4060-ti-16gb": _card(16, 288, 44, PCIE4 / 2, "NVIDIA Ada white paper; 8 lanes", "desktop"),
    "rtx-3090": _card(24, 936, 71, PCIE4, "NVIDIA Ampere GA102 white paper", "desktop"),
    "rtx-3060": _card(12, 360, 25, PCIE4, "NVIDIA Ampere GA102 white paper", "desktop"),
    "rtx-4090-laptop": _card(16, 576, 77, PCIE4 / 2, "NVIDIA Ada white paper; 8 lanes assumed", "laptop"),
    "rtx-4060-laptop": _card(8, 256, 29, PCIE4 / 2, "NVIDIA Ada white paper; 8 lanes", "laptop"),
}

HOSTS: Mapping[str, Processor] = {
    "server": Processor(32, 256 * GIB, 307 * GB, "a server with DDR5-4800 in 8 channels"),
    "workstation": Processor(16, 128 * GIB, 166 * GB, "AMD Threadripper 7000: DDR5-5200, 4 channels"),
    "desktop": Processor(8, 64 * GIB, 90 * GB, "AMD Ryzen 7000/9000: DDR5-5600, 2 channels"),
    "desktop-ddr4": Processor(8, 32 * GIB, 51 * GB, "AMD Ryzen 5000: DDR4-3200, 2 channels"),
    "laptop": Processor(8, 32 * GIB, 90 * GB, "Intel Core Ultra and AMD Ryzen 7000 laptops: DDR5-5600, 2 channels"),
    "ryzen-ai-max-395": Processor(16, 128 * GIB, 256 * GB, "AMD Ryzen AI Max+ 395: LPDDR5X-8000, 256 bits, unified"),
    "core-ultra-258v": Processor(8, 32 * GIB, 136 * GB, "Intel Core Ultra 7 258V: LPDDR5X-8533, 128 bits, unified"),
    "apple-m4-max": Processor(16, 64 * GIB, 546 * GB, "Apple, MacBook Pro (2024) specifications; Linux in a VM"),
    "apple-m4": Processor(10, 16 * GIB, 120 * GB, "Apple, MacBook Air (2025) specifications; Linux in a VM"),
    "epyc-9654": Processor(96, 768 * GIB, 461 * GB, "AMD EPYC 9004 data sheet: DDR5-4800, 12 channels"),
    "epyc-7763": Processor(64, 512 * GIB, 205 * GB, "AMD EPYC 7003 data sheet: DDR4-3200, 8 channels"),
    "xeon-8480": Processor(56, 512 * GIB, 307 * GB, "Intel Xeon Platinum 8480+: DDR5-4800, 8 channels"),
    "grace": Processor(72, 480 * GIB, 384 * GB, "NVIDIA GH200 data sheet: LPDDR5X of 480 GB"),
}

CLOUDS: Mapping[str, tuple[str, Processor]] = {
    "aws-g5.xlarge": ("a10g", Processor(2, 16 * GIB, 40 * GB, "AWS: 4 vCPUs of an AMD EPYC 7R32; share of bandwidth")),
    "aws-g5.8xlarge": ("a10g", Processor(16, 128 * GIB, 100 * GB, "AWS: 32 vCPUs of an AMD EPYC 7R32")),
    "aws-g6.xlarge": ("l4", Processor(2, 16 * GIB, 40 * GB, "AWS: 4 vCPUs of an AMD EPYC 7R13")),
    "aws-g6e.4xlarge": ("l40s", Processor(8, 128 * GIB, 80 * GB, "AWS: 16 vCPUs of an AMD EPYC 7R13")),
    "aws-p5.4xlarge": ("h100-sxm", Processor(8, 256 * GIB, 80 * GB, "AWS: 16 vCPUs of an AMD EPYC 7R13")),
    "gcp-g2-standard-8": ("l4", Processor(4, 32 * GIB, 50 * GB, "Google Cloud: 8 vCPUs of an Intel Cascade Lake")),
    "gcp-a2-highgpu-1g": ("a100-40gb", Processor(6, 85 * GIB, 60 * GB, "Google Cloud: 12 vCPUs of a Cascade Lake")),
    "gcp-a2-ultragpu-1g": ("a100-80gb-sxm", Processor(6, 170 * GIB, 60 * GB, "Google Cloud: 12 vCPUs")),
    "gcp-a3-highgpu-1g": ("h100-sxm", Processor(13, 234 * GIB, 100 * GB, "Google Cloud: 26 vCPUs of a Xeon 8481C")),
    "azure-nc24ads-a100-v4": ("a100-80gb-pcie", Processor(24, 220 * GIB, 120 * GB, "Azure: 24 cores of an EPYC 7V13")),
    "azure-nc40ads-h100-v5": ("h100-nvl", Processor(40, 320 * GIB, 200 * GB, "Azure: 40 cores of an EPYC 9V84")),
    "h100-16-cores": ("h100-sxm", Processor(16, 128 * GIB, 78 * GB, "the machine of docs/speed.md", measured=True)),
}
"""Whole machines: a card and a host. Clouds sell parts of hosts and give no bandwidth for them: those are estimates."""

DEVICES: Mapping[str, str] = {
    "h100-80gb-hbm3": "h100-sxm",
    "gh200-480gb": "gh200",
    "a100-sxm4-80gb": "a100-80gb-sxm",
    "a100-sxm4-40gb": "a100-40gb",
    "a100-pcie-40gb": "a100-40gb",
    "a100-80gb-pcie": "a100-80gb-pcie",
    "rtx-6000-ada-generation": "rtx-6000-ada",
    "rtx-4060-ti": "rtx-4060-ti-16gb",
}
"""What drivers call cards, where that is not the name in the table."""


def find_computer(name: str) -> Computer:
    """A card with the host it usually has, a host alone, a cloud's machine, or CARD+HOST.

    A card may also be called what its driver calls it. Raises ConfigError, naming what is nearest, where there is none
    of the name.
    """
    first, plus, second = name.partition("+")
    card, host = _card_key(first), _key(second if plus else first, HOSTS)
    if plus and card is not None and host is not None:
        return Computer(f"{card}+{host}", HOSTS[host], CARDS[card])
    if plus:
        what, asked, names = ("card", first, [*CARDS]) if card is None else ("host", second, [*HOSTS])
        raise ConfigError(f"there is no {what} {asked!r}: {nearest(asked, names)}")
    if card is not None:
        return Computer(card, HOSTS[CARDS[card].host], CARDS[card])
    if host is not None:
        return Computer(host, HOSTS[host])
    cloud = _key(first, CLOUDS)
    if cloud is not None:
        of_cloud, host_of_cloud = CLOUDS[cloud]
        return Computer(cloud, host_of_cloud, CARDS[of_cloud])
    known = [*CARDS, *HOSTS, *CLOUDS, "measured"]
    raise ConfigError(f"there is no hardware {name!r}: {nearest(name, known)}, or CARD+HOST as rtx-4090+epyc-7763")


def card_named(device: str) -> Card | None:
    """The card that a driver calls `device`, as "NVIDIA GeForce RTX 4090"; None where the table has no such name."""
    key = _card_key(device)
    return None if key is None else CARDS[key]


def _card_key(name: str) -> str | None:
    return _key(name, CARDS) or DEVICES.get(_key(name, DEVICES) or "")


def _key(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled like `name`, whatever the case and what stands between its words."""
    return next((one for one in known if _spelled(one) == _spelled(name)), None)


def _spelled(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.removeprefix("nvidia").removeprefix("geforce").removesuffix("gpu")


def this_computer(host: Host, driver: Driver | None, measured: Measured | None) -> Computer:
    """What this computer has: its free memory, its cores, and its GPU as the table has it.

    measured: how fast its threads read and its cores work; without, an estimate by their number.
    Raises ConfigError where the GPU is in no row of the table.
    """
    cores, memory = read_cores(host).usable, read_memory(host).usable
    reads = cores * CORE_READS if measured is None else measured.reads
    source = "an estimate by the number of cores" if measured is None else f"measured on {measured.date}"
    pace = None if measured is None else measured.pace
    processor = Processor(cores, memory, reads, f"{read_cpu(host)[0]}: {source}", measured=True, pace=pace)
    gpus = () if driver is None else driver.gpus
    if not gpus:
        return Computer("this computer", processor)
    card = card_named(gpus[0].name)
    if card is None:
        raise ConfigError(f"the planner has no data of the GPU {gpus[0].name}: plan with --hardware and a card like it")
    return Computer(f"this computer ({gpus[0].name})", processor, replace(card, memory=gpus[0].memory))
