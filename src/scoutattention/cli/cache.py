"""`scout cache`: what the user's cache folder keeps, and how it is cleared."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer

from ..config.fields import format_bytes
from ..errors import ConfigError
from ..models.cache_folder import Entry, default_cache_dir, entries, remove
from .command import Call, takes
from .flags import AsJson
from .output import PlainTable, show

cache = typer.Typer(help="List or clear what is kept in the cache folder.", no_args_is_help=True)


@dataclass(frozen=True)
class ListFlags:
    """The flags of `scout cache list`."""

    as_json: AsJson = False


@dataclass(frozen=True)
class ClearFlags:
    """The flags of `scout cache clear`."""

    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Names that `scout cache list` shows.")] = (
        None
    )
    everything: Annotated[bool, typer.Option("--all", help="Clear all that is listed.")] = False
    as_json: AsJson = False


@cache.command("list")
@takes(ListFlags)
def list_cache(call: Call[ListFlags]) -> None:
    """List converted models, stored calibrations, and what interrupted conversions left."""
    _show(entries(default_cache_dir()), call.flags.as_json)


@cache.command("clear")
@takes(ClearFlags)
def clear_cache(call: Call[ClearFlags]) -> None:
    """Delete what is kept: converted models are made again when they are needed, calibrations are not."""
    names = call.flags.names or []
    if bool(names) == call.flags.everything:
        raise ConfigError("give the names of what to clear, or --all, and not both: `scout cache list` shows the names")
    folder = default_cache_dir()
    kept = entries(folder)
    unknown = [name for name in names if all(entry.name != name for entry in kept)]
    if unknown:
        raise ConfigError(f"{folder} has no {unknown[0]!r}: `scout cache list` shows what it has")
    chosen = [entry for entry in kept if call.flags.everything or entry.name in names]
    for entry in chosen:
        remove(entry)
    if call.flags.as_json:
        _show(chosen, as_json=True)
    else:
        size = format_bytes(sum(entry.bytes for entry in chosen))
        print(f"cleared {len(chosen)} of {len(kept)}, {size}, in {folder}")


def _show(found: list[Entry], as_json: bool) -> None:
    if as_json:
        about = {"folder": str(default_cache_dir()), "entries": [_row(entry) for entry in found]}
        print(json.dumps(about, indent=2), flush=True)
        return
    if not found:
        print(f"nothing is kept in {default_cache_dir()}")
        return
    table = PlainTable("Name", "Kind", "dtype", "Size", "Last used")
    table.columns[0].overflow = "fold"
    for entry in found:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
        table.add_row(entry.name, entry.kind, entry.dtype or "", format_bytes(entry.bytes), used)
    total = format_bytes(sum(entry.bytes for entry in found))
    table.caption = f"{total} in {default_cache_dir()}"
    show(table)


def _row(entry: Entry) -> dict[str, object]:
    used = datetime.fromtimestamp(entry.used).astimezone().isoformat(timespec="seconds")
    return {
        "name": entry.name,
        "kind": entry.kind,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "dtype": entry.dtype,
        "last_used": used,
    }
