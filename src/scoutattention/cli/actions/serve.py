"""What `scout serve` does: it loads a model, and answers requests until a signal ends it."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace

from ...config.fields import format_bytes
from ...engine.device import kernels_for
from ...engine.llm import LLM
from ...errors import ConfigError
from ...server.app import Server
from ...server.local import LocalEngine
from ...server.run import Process, bind, url_of
from ...server.security import is_local
from ...server.state import Options
from ..output import TOLD_S, loading, moving, progress
from ..server.serve import ServeFlags
from ..settings import Settings
from ..shell import tell
from .trace import traced

LOG = logging.getLogger("scoutattention.serve")
SHOWN_S = 2.0
"""Seconds for which a prompt is being read before a bar shows it."""


def serve(flags: ServeFlags, settings: Settings) -> None:
    """Serve until a signal comes. Raises ScoutError where the model or the address cannot be had."""
    if flags.api_key is None and not flags.allow_no_key and not is_local(flags.host):
        raise ConfigError(
            f"--host {flags.host} lets other computers in: give --api-key, or --allow-no-key where nobody else can "
            "reach the port"
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    LOG.setLevel(logging.INFO)
    engine_config = replace(settings.engine, max_num_seqs=flags.max_num_seqs)
    name = flags.served_model_name or flags.model
    with closing(bind(flags.host, flags.port)) as bound:
        LOG.info("loading %s", flags.model)
        with loading(flags.model, LOG.info):
            llm = LLM(flags.model, scout="auto" if flags.auto else settings.scout, **asdict(engine_config))
        with traced(llm, flags.trace), llm:
            engine = LocalEngine(llm)
            server = Server(engine, Options(name, max_waiting=flags.max_waiting, api_key=flags.api_key))
            LOG.info("%s", decided(engine, llm))
            reading = ShownReading(engine)
            Process(server, lambda: tell(_started(name, url_of(bound), engine, llm)), reading.look).run([bound])
    tell("the server has ended")


def _started(name: str, url: str, engine: LocalEngine, llm: LLM) -> str:
    """Where the server is, and what it takes, in a line."""
    return (
        f"{name} is served at {url}/v1, with a dashboard at {url}/: sequences of up to {engine.capacity:,} tokens, "
        f"{engine.max_running} at once; Ctrl-C ends it"
    )


def decided(engine: LocalEngine, llm: LLM) -> str:
    """What the settings came to, and why, in a line."""
    memory, config, plan = engine.memory(), llm.engine_config, llm.engine.plan
    device, shape = llm.engine.store.device, llm.engine.runner.decoder.shape
    kernels = "as asked for" if config.kernels != "auto" else f"for {device.type}"
    budget = "all tokens are attended to"
    if llm.scout.budget is not None:
        budget = f"each layer and KV head attends to a budget of {llm.scout.budget:,} tokens"
    if memory.pages.blocks >= config.max_num_seqs * plan.blocks(plan.max_len):
        why = f"enough for {config.max_num_seqs} sequences of {plan.max_len:,} tokens"
    elif plan.resident and device.type != "cpu":
        why = "what the device has left"
    else:
        why = (
            "half of the free memory"
            if config.host_memory is None
            else f"host_memory={format_bytes(config.host_memory)}"
        )
    where = "the device" if plan.resident else "the host"
    pages = f"{memory.pages.blocks:,} pages of {plan.block_size} tokens on {where}, {format_bytes(memory.pages.bytes)}"
    slots = "no slots, because the device holds every page"
    if not plan.resident:
        asked = "slots" if config.device_memory is None else config.device_memory
        slots = (
            f"slots for {memory.slots.blocks:,} blocks on the device, {format_bytes(memory.slots.bytes)} "
            f"(device_memory={asked if isinstance(asked, str) else format_bytes(asked)})"
        )
    return (
        f"{shape.dtype} on {device} with {kernels_for(config, device)} kernels ({kernels}); {budget}; {pages} ({why}); "
        f"{slots}"
    )


class ShownReading:
    """Shows how far a long prompt is read: as a bar where stderr is a terminal, else in the log."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._bar = ExitStack()
        self._watch: Callable[[str, int, int], None] | None = None
        self._number, self._began, self._told = 0, 0.0, 0.0

    def look(self) -> None:
        """See what is being read; called about once a second."""
        now, reading = time.monotonic(), self._engine.reading()
        if reading is None or reading.number != self._number:
            self._bar.close()
            self._watch = None
            self._number, self._began, self._told = 0 if reading is None else reading.number, now, now
        if reading is None or now - self._began < SHOWN_S:
            return
        if moving():
            self._watch = self._watch or self._bar.enter_context(progress(" tokens"))
            self._watch("Reading a prompt", reading.done, reading.total)
        elif now - self._told >= TOLD_S:
            self._told, seconds = now, now - self._began
            LOG.info("reading a prompt: %s of %s tokens, %.0f s", f"{reading.done:,}", f"{reading.total:,}", seconds)
