"""What `scout serve` does: it loads a model, and answers requests until a signal ends it."""

import logging
from contextlib import closing
from dataclasses import asdict, replace

from ...config.fields import format_bytes
from ...engine.llm import LLM
from ...errors import ConfigError
from ...server.app import Server
from ...server.local import LocalEngine
from ...server.run import Process, bind, url_of
from ...server.security import is_local
from ...server.state import Options
from ..output import busy
from ..server.serve import ServeFlags
from ..settings import Settings
from ..shell import tell
from .trace import traced


def serve(flags: ServeFlags, settings: Settings) -> None:
    """Serve until a signal comes. Raises ScoutError where the model or the address cannot be had."""
    if flags.api_key is None and not flags.allow_no_key and not is_local(flags.host):
        raise ConfigError(
            f"--host {flags.host} lets other computers in: give --api-key, or --allow-no-key where nobody else can "
            "reach the port"
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    engine_config = replace(settings.engine, max_num_seqs=flags.max_num_seqs)
    name = flags.served_model_name or flags.model
    with closing(bind(flags.host, flags.port)) as bound:
        with busy(f"Loading {flags.model}"):
            llm = LLM(flags.model, scout=settings.scout, **asdict(engine_config))
        with traced(llm, flags.trace), llm:
            engine = LocalEngine(llm)
            server = Server(engine, Options(name, max_waiting=flags.max_waiting, api_key=flags.api_key))
            Process(server, lambda: tell(_started(name, url_of(bound), engine, llm))).run([bound])
    tell("the server has ended")


def _started(name: str, url: str, engine: LocalEngine, llm: LLM) -> str:
    """What the server is, and what was decided, in a line."""
    memory, config = engine.memory(), llm.engine_config
    budget = "all tokens" if llm.scout.budget is None else f"a budget of {llm.scout.budget:,} tokens"
    slots = f", slots of {format_bytes(memory.slots_bytes)}" if memory.slots_bytes else ""
    return (
        f"{name} is served at {url}/v1, with a dashboard at {url}/: sequences of up to {engine.capacity:,} tokens, "
        f"{engine.max_running} at once, {budget}, {llm.engine.runner.decoder.shape.dtype} on {config.device}, pages of "
        f"{format_bytes(memory.pages_bytes)}{slots}; Ctrl-C ends it"
    )
