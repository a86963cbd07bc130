"""`scout bench`: decode speed on this CPU and on this GPU, and the speed of the native kernels."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..bench.decode.measure import Workload as DecodeWorkload
from ..bench.decode.process import ENGINES
from ..bench.gpu.cases import QUICK_STEPS, STEPS, other_programs, rivals
from ..bench.gpu.cases import Workload as GpuWorkload
from ..config import EngineConfig, KVDTypeName, ScoutConfig, parse_size
from ..config.fields import format_bytes
from ..errors import ConfigError
from ..hardware.host import available_memory
from .command import Call, load_action, takes
from .flags import AsJson, DType, Model, Plot, Trace, flag
from .inputs import read_numbers, read_words
from .output import check_drawing, check_writable

LEAST_SIZE = 1 << 20
"""Bytes; less data would be timed from the caches."""
COPIES = 4
"""Of what a call reads: for the kernel, the plain read, and PyTorch's two ways."""
GPU_ENGINES = tuple(rival.name for rival in (*rivals(ScoutConfig()), *other_programs(ScoutConfig())))
CONTEXTS, QUICK_CONTEXTS = "65536,32768,131072,8192", "32768,8192"
BATCHES, QUICK_BATCHES = "1,2,4,6,8,12,16,24,32,48,64,96,128,192,256", "1,8"
MINUTES, QUICK_MINUTES = 7.0, 2.0


@dataclass(frozen=True)
class KernelsFlags:
    """The flags of `scout bench kernels`."""

    quick: Annotated[bool, flag("--quick", "Fewer shapes: seconds, not minutes.")] = False
    rounds: Annotated[int, flag("--rounds", "Calls of each kernel; the median counts.", min=1)] = 5
    size: Annotated[str, flag("--size", "Data that a call reads; much larger than the caches.", metavar="BYTES")] = (
        "256MiB"
    )
    as_json: AsJson = False


@takes(KernelsFlags)
def kernels(call: Call[KernelsFlags]) -> None:
    """Check the native kernels against plain PyTorch, then time them.

    The first table is of attention and scores, the second of products with weights in GGUF's blocks. Each round times
    a kernel, a plain read of the same memory by the same threads, and, of attention, PyTorch's over the same keys. "Vs
    SDPA" says how many times as fast the kernel is as `scaled_dot_product_attention` with `enable_gqa=True`; "Vs
    grouped", as the same function with the query heads that share a key as rows of one head.
    Exit code 1 if a kernel is wrong.
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
        str, flag("--batches", "Sequences decoded at once, each with its own prompt.", metavar="LIST")
    ] = "1,4"
    engines: Annotated[
        str | None, flag("--engines", f"Of {', '.join(ENGINES)}. Without it: those that are installed.", metavar="LIST")
    ] = None
    budget: Annotated[int, flag("--budget", "Tokens that scout attends to, for each layer and KV head.")] = 1024
    dtype: DType = "auto"
    rounds: Annotated[
        int, flag("--rounds", "Counted turns of each engine; one more comes first.", min=1, hidden=True)
    ] = 5
    steps: Annotated[int, flag("--steps", "Decode steps of a turn.", min=1, hidden=True)] = 6
    largest: Annotated[int, flag("--largest", "Largest case to run, in tokens of all its prompts.", hidden=True)] = (
        16384
    )
    as_json: AsJson = False
    plot: Plot = None
    trace: Trace = None


@takes(DecodeFlags)
def decode(call: Call[DecodeFlags]) -> None:
    """Decode real text with this engine and with others: the same model, prompts and threads.

    All engines have the same weights and dtype, except llama.cpp, which keeps the weights of its file and a float16
    cache; llama.cpp-converted has what the others have. Each engine has a process of its own, and they take turns.
    "Same" is the part of the answer before the first token that differs from full attention's.
    """
    flags = call.flags
    ScoutConfig(budget=flags.budget)  # raises before minutes are spent
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
    load_action("decode").decode(flags, workload)


@dataclass(frozen=True)
class GpuFlags:
    """The flags of `scout bench gpu`."""

    model: Annotated[str | None, typer.Argument(help="As in `scout generate`; none with dummy weights.")] = None
    load_format: Annotated[
        Literal["auto", "dummy"], flag("--load-format", "'dummy': random weights of --shape, no model.")
    ] = "auto"
    shape: Annotated[
        str, flag("--shape", "A known shape (a wrong name lists them), or the path of a config.json.", metavar="NAME")
    ] = "llama-3.1-8b"
    replay: Annotated[
        Path | None,
        flag("--replay", "Choose the blocks that `scout eval fidelity --record` wrote; for dummies.", metavar="FILE"),
    ] = None
    contexts: Annotated[
        str | None,
        flag("--contexts", "Prompt lengths in tokens, in order. Without it: 64k, 32k, 128k, 8k.", metavar="LIST"),
    ] = None
    batches: Annotated[
        str | None, flag("--batches", "Sequences decoded at once. Without it: sizes from 1 to 256.", metavar="LIST")
    ] = None
    budget: Annotated[
        int | None,
        flag("--budget", "Tokens that a layer and KV head attends to. Without it: the recording's, or 1024."),
    ] = None
    host_memory: Annotated[
        str | None, flag("--host-memory", "For the KV cache. Without it: 3/4 of what is free.", metavar="BYTES")
    ] = None
    engines: Annotated[
        str | None,
        flag("--engines", f"Of {', '.join(GPU_ENGINES)}. Without it: those that are installed.", metavar="LIST"),
    ] = None
    kv_dtype: Annotated[
        KVDTypeName, flag("--kv-dtype", "Number format of pages in host memory, of the engines that can read it.")
    ] = "auto"
    device_limit: Annotated[
        str | None, flag("--device-limit", "Take no more of the GPU, as if it were smaller.", metavar="BYTES")
    ] = None
    minutes: Annotated[
        float | None, flag("--minutes", "No case starts after so much decoding. Without it: 7; 2 if quick.", min=0)
    ] = None
    quick: Annotated[bool, flag("--quick", "Fewer repeats, contexts, batches and steps.")] = False
    profile: Annotated[bool, flag("--profile", "List what the GPU runs in a step, by name.")] = False
    no_kernels: Annotated[bool, flag("--no-kernels", "Leave out timing the device kernels.", hidden=True)] = False
    device: Annotated[
        Literal["cuda", "cpu"], flag("--device", "'cpu' tries the command without a GPU.", hidden=True)
    ] = "cuda"
    as_json: AsJson = False
    plot: Plot = None
    trace: Annotated[
        Path | None,
        flag("--trace", "Write a few steps of each engine's first case, for `scout trace`.", metavar="FILE"),
    ] = None


@takes(GpuFlags)
def gpu(call: Call[GpuFlags]) -> None:
    """Time the device kernels, then decode with full attention, with rival designs, and with scout.

    The command needs no network. With --load-format dummy it needs no model: weights and cache are random, and
    --replay takes the chosen blocks from a recording of a real model. Every outcome is a line on stderr as it comes.
    Exit code 1 if a kernel is wrong or an engine failed.
    """
    flags = call.flags
    if (flags.model is None) == (flags.load_format == "auto"):
        raise ConfigError("give either a model, or --load-format dummy with a --shape")
    if flags.replay is not None and flags.model is not None:
        raise ConfigError("--replay is for dummy weights: a model chooses for itself")
    check_drawing("--plot", flags.plot)
    check_writable("--trace", flags.trace)
    contexts, batches, minutes = CONTEXTS, BATCHES, MINUTES
    if flags.quick:
        contexts, batches, minutes = QUICK_CONTEXTS, QUICK_BATCHES, QUICK_MINUTES
    host = available_memory() * 3 // 4 if flags.host_memory is None else parse_size(flags.host_memory)
    warm_up, steps = QUICK_STEPS if flags.quick else STEPS
    workload = GpuWorkload(
        read_numbers("--contexts", flags.contexts or contexts, least=1),
        read_numbers("--batches", flags.batches or batches, least=1),
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
