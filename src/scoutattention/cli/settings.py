"""The settings as flags: every field of the three configuration classes becomes one option, with its default."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from ..config import EngineConfig, MemoryName, SamplingParams, ScoutConfig, parse_size
from ..errors import ConfigError


class Settings(NamedTuple):
    """What the flags say, checked: the method, the machine and the request."""

    scout: ScoutConfig
    engine: EngineConfig
    params: SamplingParams


PANELS: dict[type, str] = {ScoutConfig: "Method", EngineConfig: "Machine", SamplingParams: "Answer"}
FIXED: dict[str, Any] = {"max_num_seqs": 1}  # the command decodes one sequence

HELP = {
    "budget": "Tokens attended per layer and KV head, or 'all'.",
    "block_size": "Tokens in a block.",
    "sink_blocks": "First blocks that are always attended.",
    "recent_blocks": "Last full blocks that are always attended.",
    "on_miss": "What happens to chosen blocks that the device does not hold.",
    "lookahead": "Layers between predicting a query and needing it; 0 decides in the layer itself.",
    "far_query": "The query the CPU attends with.",
    "predictor": "What predicts a later layer's query; 'oracle' is exact and slow, for tests.",
    "calibration": "Stored correction to start from: a file, 'off', or 'auto': what `scout calibrate` stored, if any.",
    "rank": "Rank of the corrections that are fitted to each prompt.",
    "correct_far": "Correct the weight of what the CPU computed with a predicted query.",
    "true_query_layers": "Layers that use their true query, as in 0,1,2; '' for none. Without it, found in the prompt.",
    "least_cosine": "Mean cosine of scout and true query that a layer must reach on the prompt for scouts to be used.",
    "guard": "Part of its attention that a scout may spoil or miss before the true query sees to it; 'off' never does.",
    "digest": "What blocks are judged by: bounds of keys, keys in 2 bits, the best of these by keys, or keys (slow).",
    "pooling": "How a KV head's query heads agree: the mean of their softmax over the blocks, or their largest score.",
    "most_share": "Part of the chosen blocks that may be absent; the least wished for are left out; 'off' leaves none.",
    "recall_interval": "Decode steps between two recalls of a layer; 0 never recalls.",
    "cpu_share": "CPU's share of the chosen blocks at which recall keeps to its interval. 'off': any.",
    "wait_share": "Part of a step's time that may be waited for the CPU; recalls come sooner above it. 'off': any.",
    "device_memory": "Memory for blocks on the device, as in 512MiB, 'slots' for twice the budget, or 'all'. "
    "Without it, all where the CPU is the device.",
    "host_memory": "Memory for blocks on the host, as in 8GiB. Without it, what the longest sequence needs.",
    "max_model_len": "Longest prompt and answer together, in tokens. Without it, the model's own limit.",
    "dtype": "Number format of weights and KV cache; 'auto' is the checkpoint's.",
    "kv_dtype": "Number format of full blocks of the KV cache, slots excepted; 'auto' is that of --dtype.",
    "device": "Where the model runs: 'cpu', or 'cuda' for a GPU.",
    "kernels": "What a step's attention runs on; 'auto' is native on a CPU and triton on a GPU, plain is PyTorch.",
    "graphs": "Replay decode steps as CUDA graphs on a GPU; without, every kernel is queued by itself.",
    "workers": "Native threads for the CPU's attention, of each rank. Without it, one a core, and two fewer on a GPU.",
    "torch_threads": "Threads of PyTorch's own operators, of each rank. Without it, one per core, shared by the ranks.",
    "tensor_parallel_size": "Processes (ranks) that share the model, each with its own KV heads and cores, or GPU.",
    "max_tokens": "New tokens at most.",
    "temperature": "0 is greedy; larger is more random.",
    "top_p": "Draw from the likeliest tokens that together have this probability.",
    "seed": "Makes random draws repeatable.",
    "stop": "Text that ends the answer and is not part of it; may be repeated.",
    "ignore_eos": "Go on after the model's end-of-sequence token.",
}


def _read_budget(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.removeprefix("-").isdigit():
        raise ConfigError(f"--budget={text!r} is neither a number of tokens nor 'all'")
    return int(text)


def _read_device_memory(text: str) -> int | str:
    return text if text in get_args(MemoryName) else parse_size(text)


def _read_layers(text: str) -> tuple[int, ...]:
    numbers = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ConfigError(f"--true-query-layers={text!r} is not a list of layer numbers as in 0,1,2")
    return tuple(int(number) for number in numbers)


def _read_limit(text: str) -> float | None:
    if text == "off":
        return None
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is neither a number nor 'off', as --guard, --most-share, --cpu-share and --wait-share want it"
        ) from None


def _read_calibration(text: str) -> str | None:
    return None if text == "off" else text


READERS: dict[str, Callable[[str], Any]] = {
    "budget": _read_budget,
    "calibration": _read_calibration,
    "cpu_share": _read_limit,
    "device_memory": _read_device_memory,
    "guard": _read_limit,
    "most_share": _read_limit,
    "host_memory": parse_size,
    "true_query_layers": _read_layers,
    "wait_share": _read_limit,
}


def _shown(value: object) -> object:
    """A default as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _parameter(field: Field[Any], default: object, hint: object, panel: str) -> inspect.Parameter:
    default = _shown(default)
    if field.name in READERS:
        hint, default = str | None, None if default is None else str(default)
    elif field.name == "stop":
        hint, default = list[str], []
    flag = field.name.replace("_", "-")
    option = typer.Option(
        f"--{flag}/--no-{flag}" if hint is bool else f"--{flag}",
        help=HELP[field.name] if default is None else HELP[field.name].partition(" Without it")[0],
        envvar=None if isinstance(default, list) else f"SCOUT_{field.name.upper()}",
        show_envvar=False,
        rich_help_panel=panel,
        show_default=default not in (None, []),
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )


def with_settings(*classes: type, **defaults: object) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: `command(..., **settings)`, seen by Typer as taking one option per field of `classes` instead.

    defaults: of fields whose default is another for this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            _parameter(field, defaults.get(field.name, field.default), get_type_hints(cls)[field.name], PANELS[cls])
            for cls in classes
            for field in fields(cls)
            if field.name not in FIXED
        ]
        command.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        return command

    return decorate


def _pick(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(cls) if field.name in values}


def read_settings(flags: Mapping[str, Any], *, dense: bool = False) -> Settings:
    """The configuration that the flags describe; `dense` attends to everything and keeps it on the device.

    A class of settings that the command does not take has its defaults.
    Raises ConfigError where a text cannot be read or a value is out of range.
    """
    values = {
        name: READERS[name](value) if name in READERS and value is not None else value for name, value in flags.items()
    }
    values |= FIXED | {"stop": tuple(flags.get("stop", ()))}
    if dense:
        values |= {"budget": None, "device_memory": "all"}
    return Settings(
        ScoutConfig(**_pick(ScoutConfig, values)),
        EngineConfig(**_pick(EngineConfig, values)),
        SamplingParams(**_pick(SamplingParams, values)),
    )
