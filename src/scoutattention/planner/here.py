"""The computer that this process runs on, as the planner sees it."""

from ..errors import ConfigError
from ..hardware.gpu import Driver
from ..hardware.host import Host, read_cores, read_cpu, read_memory
from ..hardware.measured import Measured
from .computers import Computer, Processor, card_named
from .costs import CORE_READS


def this_computer(host: Host, driver: Driver | None, measured: Measured | None) -> Computer:
    """What this computer has: its free memory, its cores, and its GPU as the table has it.

    measured: what its threads read; without, an estimate by their number.
    Raises ConfigError where the GPU is in no row of the table.
    """
    cores, memory = read_cores(host).usable, read_memory(host).usable
    reads = cores * CORE_READS if measured is None else measured.reads
    source = "an estimate by the number of cores" if measured is None else f"measured on {measured.date}"
    processor = Processor(cores, memory, reads, f"{read_cpu(host)[0]}: {source}", measured=True)
    gpus = () if driver is None else driver.gpus
    if not gpus:
        return Computer("this computer", processor)
    card = card_named(gpus[0].name)
    if card is None:
        raise ConfigError(
            f"the planner has no data of the GPU {gpus[0].name}: give the name of a card like it as --hardware"
        )
    return Computer(f"this computer ({gpus[0].name})", processor, card)
