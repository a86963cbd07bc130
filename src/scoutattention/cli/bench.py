"""`scout bench`: decode speed on this CPU and on this GPU, and the speed of the native kernels."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..bench.decode.measure import Workload as DecodeWorkload
from ..bench.decode.process import ENGINES
from ..bench.gpu.cases import AS_MANY, QUICK_STEPS, STEPS, other_programs, rivals
from ..bench.gpu.cases import Workload as GpuWorkload
from ..cache.memory_plan import SLOTS_PER_BUDGET
from ..config import EngineConfig, KVDTypeName, ScoutConfig, parse_size
from ..config.fields import format_bytes
from ..errors import ConfigError
from ..hardware.host import available_memory
from .command import Call, load_action, takes
from .flags import AsJson, DType, Model, Plot, Trace, flag
from .inputs import read_numbers, read_words
from .output import check_drawing, check_writable
from .settings import read_settings

LEAST_SIZE = 1 << 20
"""Bytes; less data would be timed from the caches."""
COPIES = 4
"""Of what a call reads: for the kernel, the plain read, and PyTorch's two ways."""
GPU_ENGINES = tuple(rival.name for rival in (*rivals(ScoutConfig()), *other_programs(ScoutConfig())))
NOT_TIMED = ("block_size", "sink_blocks", "recent_blocks", "calibration", "guard")
"""Settings of the method that `scout bench decode` leaves at their defaults."""
CONTEXTS, QUICK_CONTEXTS = "65536,32768,131072,8192", "32768,8192"
BATCHES, QUICK_BATCHES = "1,2,4,6,8,12,16,24,32,48,64,96,128,192,256", "1,8"
MINUTES, QUICK_MINUTES = 7.0, 2.0


@dataclass(frozen=True)
class KernelsFlags:
    """The flags of `scout bench kernels`."""

    quick: Annotated[bool, flag("--quick", "Fewer shapes: seconds, not minutes.")] = False
    rounds: Annotated[int, flag("--rounds", "Calls of each kernel; the median is reported.", min=1)] = 5
    size: Annotated[
        str, flag("--size", "Data that a call reads. It should be much larger than the CPU's caches.", metavar="BYTES")
    ] = "256MiB"
    as_json: AsJson = False


@takes(KernelsFlags)
def kernels(call: Call[KernelsFlags]) -> None:
    """Check the native kernels against plain PyTorch, then time them.

    The first table has attention and block scores. The second table has matrix products with GGUF weights. Each kernel
    is compared with a plain read of the same memory by the same threads, and attention also with PyTorch's. "Vs SDPA"
    is the speed-up over `scaled_dot_product_attention` with `enable_gqa=True`. "Vs grouped" is the speed-up over the
    same function with the query heads of a KV head as rows of one head. Exit code 1 if a kernel is wrong.
    """
    size = parse_size(call.flags.size)
    if size < LEAST_SIZE:
        raise ConfigError(f"--size {call.flags.size} is below the least value {LEAST_SIZE >> 20}MiB")
    most = available_memory() // COPIES
    if size > most:
        raise ConfigError(
            f"--size {call.flags.size} is above {format_bytes(most)}: {COPIES} copies must fit in the free memory"
        )
    load_action("kernels").kernels(call.flags, size)


@dataclass(frozen=True)
class DecodeFlags:
    """The flags of `scout bench decode`."""

    model: Model
    contexts: Annotated[str, flag("--contexts", "Lengths of the prompts in tokens.", metavar="LIST")] = "1024,7936"
    batches: Annotated[
        str, flag("--batches", "Numbers of sequences decoded at once, each with its own prompt.", metavar="LIST")
    ] = "1,4"
    engines: Annotated[
        str | None, flag("--engines", f"Of {', '.join(ENGINES)}. Without it: all that are installed.", metavar="LIST")
    ] = None
    slots: Annotated[
        float, flag("--slots", "Slots of scout-slots, as a multiple of the budget.", min=0, hidden=True)
    ] = SLOTS_PER_BUDGET
    dtype: DType = "auto"
    rounds: Annotated[
        int, flag("--rounds", "Timed turns of each engine, after one turn to warm up.", min=1, hidden=True)
    ] = 5
    steps: Annotated[int, flag("--steps", "Decode steps of a turn.", min=1, hidden=True)] = 6
    largest: Annotated[
        int, flag("--largest", "Largest case to run: tokens of all its prompts together.", hidden=True)
    ] = 16384
    as_json: AsJson = False
    plot: Plot = None
    trace: Trace = None


@takes(DecodeFlags, ScoutConfig, without=NOT_TIMED)
def decode(call: Call[DecodeFlags]) -> None:
    """Time decoding on this CPU, with this engine and with others, on the same model, prompts and threads.

    All engines use the same weights and dtype. The exception is llama.cpp: it uses the quantised weights of its file,
    and a float16 cache; llama.cpp-converted uses what the others use. Each engine runs in a process of its own, and the
    engines take turns. "Same" is the part of the answer before the first token that differs from full attention's.
    """
    flags = call.flags
    scout = read_settings(call.settings).scout
    if scout.budget is None:
        raise ConfigError("--budget all is full attention, which is the engine dense: give a number of tokens")
    check_drawing("--plot", flags.plot)
    check_writable("--trace", flags.trace)
    workload = DecodeWorkload(
        contexts=read_numbers("--contexts", flags.contexts, least=1),
        batches=read_numbers("--batches", flags.batches, least=1),
        engines=read_words("--engines", flags.engines, ENGINES),
        rounds=flags.rounds,
        steps=flags.steps,
        largest=flags.largest,
    )
    if not workload.cases():
        sizes = f"{flags.contexts} tokens by {flags.batches}"
        raise ConfigError(f"--largest={flags.largest} leaves out every case of {sizes}: raise it")
    load_action("decode").decode(flags, workload, scout)


@dataclass(frozen=True)
class GpuFlags:
    """The flags of `scout bench gpu`."""

    model: Annotated[str | None, typer.Argument(help="As in `scout generate`; left out with --load-format dummy.")] = (
        None
    )
    load_format: Annotated[Literal["auto", "dummy"], flag("--load-format", "'dummy': random weights of --shape.")] = (
        "auto"
    )
    shape: Annotated[
        str,
        flag(
            "--shape",
            "A known shape, or the path of a config.json. A wrong name lists the known shapes.",
            metavar="NAME",
        ),
    ] = "llama-3.1-8b"
    replay: Annotated[
        Path | None,
        flag(
            "--replay",
            "Replay the chosen blocks that `scout eval fidelity --record` wrote; for dummy weights.",
            metavar="FILE",
        ),
    ] = None
    contexts: Annotated[
        str | None,
        flag("--contexts", "Prompt lengths in tokens. Without it: 64k, 32k, 128k, 8k, in this order.", metavar="LIST"),
    ] = None
    batches: Annotated[
        str | None,
        flag(
            "--batches",
            "Numbers of sequences decoded at once; 'most': as many as fit. Without it: 1 to 256.",
            metavar="LIST",
        ),
    ] = None
    budget: Annotated[
        int | None,
        flag("--budget", "Tokens that each layer and KV head chooses. Without it: the recording's, or 1024."),
    ] = None
    host_memory: Annotated[
        str | None,
        flag("--host-memory", "Host memory for the KV cache. Without it: 3/4 of the free memory.", metavar="BYTES"),
    ] = None
    engines: Annotated[
        str | None,
        flag("--engines", f"Of {', '.join(GPU_ENGINES)}. Without it: all that are installed.", metavar="LIST"),
    ] = None
    kv_dtype: Annotated[
        KVDTypeName, flag("--kv-dtype", "Number format of pages in host memory, for the engines that support it.")
    ] = "auto"
    device_limit: Annotated[
        str | None,
        flag("--device-limit", "Use no more GPU memory than this.", metavar="BYTES"),
    ] = None
    minutes: Annotated[
        float | None,
        flag(
            "--minutes", "Start no case after this many minutes of decoding. Without it: 7, or 2 with --quick.", min=0
        ),
    ] = None
    quick: Annotated[bool, flag("--quick", "Fewer repeats, contexts, batches and steps.")] = False
    profile: Annotated[bool, flag("--profile", "List the kernels and copies of a step, by name.")] = False
    no_kernels: Annotated[bool, flag("--no-kernels", "Do not time the device kernels.", hidden=True)] = False
    device: Annotated[
        Literal["cuda", "cpu"], flag("--device", "'cpu' tries the command without a GPU.", hidden=True)
    ] = "cuda"
    as_json: AsJson = False
    plot: Plot = None
    trace: Annotated[
        Path | None,
        flag("--trace", "A few steps of each engine, for `scout trace`.", metavar="FILE"),
    ] = None


@takes(GpuFlags)
def gpu(call: Call[GpuFlags]) -> None:
    """Time decoding on this GPU, with full attention, with rival designs and with scout. Device kernels come first.

    With --load-format dummy no model is needed: weights and cache are random, and --replay takes the chosen blocks from
    a recording of a real model. Each result is printed to stderr when it is known. Exit code 1 if a kernel is wrong or
    an engine failed.
    """
    flags = call.flags
    if (flags.model is None) == (flags.load_format == "auto"):
        raise ConfigError("give either a model, or --load-format dummy with --shape")
    if flags.replay is not None and flags.model is not None:
        raise ConfigError(
            "--replay needs --load-format dummy, because a real model chooses its own blocks: leave it out"
        )
    check_drawing("--plot", flags.plot)
    check_writable("--trace", flags.trace)
    contexts, batches, minutes = CONTEXTS, BATCHES, MINUTES
    if flags.quick:
        contexts, batches, minutes = QUICK_CONTEXTS, QUICK_BATCHES, QUICK_MINUTES
    host = available_memory() * 3 // 4 if flags.host_memory is None else parse_size(flags.host_memory)
    warm_up, steps = QUICK_STEPS if flags.quick else STEPS
    workload = GpuWorkload(
        read_numbers("--contexts", flags.contexts or contexts, least=1),
        _read_batches(flags.batches or batches),
        EngineConfig(host_memory=host, device=flags.device, kv_dtype=flags.kv_dtype),
        warm_up,
        steps,
        None if flags.device_limit is None else parse_size(flags.device_limit),
        None if flags.engines is None else read_words("--engines", flags.engines, GPU_ENGINES),
        flags.trace is not None,
    )
    # A profile leaves CUPTI attached, which slows every later engine by 10 to 20 % (pytorch/pytorch#146604), unless
    # this is set before the first one.
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    load_action("gpu").gpu(flags, workload, minutes if flags.minutes is None else flags.minutes)


def _read_batches(text: str) -> tuple[int, ...]:
    """The numbers of a list as in 1,8,most, of which `most` is AS_MANY. Raises ConfigError where it is none."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [part for part in parts if part != "most"]
    most = (AS_MANY,) if "most" in parts else ()
    return (*most, *(read_numbers("--batches", ",".join(numbers), least=1) if numbers else ()))
