"""The settings: `ScoutConfig` is the method, `EngineConfig` is the machine, `SamplingParams` is the request.

All three are frozen and checked when they are made. What is computed from them is kept elsewhere.
"""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ConfigError

OnMiss = Literal["compute", "fetch", "drop"]
FarQuery = Literal["predicted", "true"]
PredictorName = Literal["plain", "calibrated", "oracle"]
DigestName = Literal["minmax", "keys2", "twostage", "exact"]
Pooling = Literal["mean", "max"]
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
KVDTypeName = Literal["auto", "int8", "int4"]
MemoryName = Literal["all", "slots"]
DeviceName = Literal["cpu", "cuda"]
KernelsName = Literal["auto", "native", "triton", "plain"]
Memory = int | MemoryName | None

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}ib"] = _UNITS[_letter] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power


def parse_size(text: str) -> int:
    """Bytes in `text`: a number with an optional unit, as "512MiB", "1.5G" or "4096".

    "k", "m", "g", "t" and "KiB" ... "TiB" are powers of 1024; "KB" ... "TB" are powers of 1000.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"cannot read {text!r} as a size: write a number and a unit, for example 512MiB or 8GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def _at_least(name: str, value: float, limit: float) -> None:
    if not value >= limit:
        raise ConfigError(f"{name}={value} is below the least value {limit}")


def _one_of(name: str, value: str, choices: object) -> None:
    names = get_args(choices)
    if value not in names:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(names)}")


@dataclass(frozen=True)
class ScoutConfig:
    """The method: every design of the field is a setting of these.

    budget: tokens attended per sequence, layer and KV head; None attends to all.
    block_size: tokens in a block.
    sink_blocks, recent_blocks: first and last closed blocks that are always chosen.
    on_miss: what happens to chosen blocks that are absent: the CPU computes them, they are fetched, or dropped.
    lookahead: layers between making a scout and needing it; 0 decides in the layer itself.
    far_query: the query the CPU attends with: the predicted one, or the true one (only the choice is ahead then).
    predictor: "plain" applies the later layer's own query projection; "calibrated" first corrects its input by what
        a text or the prompt has shown; "oracle" is exact, for tests.
    calibration: the stored correction that the calibrated predictor starts from: "auto" is the one that
        `scout calibrate` made of this model for this lookahead, if it did; a path is a file of it; None is none.
    rank: rank of the corrections that are fitted to each prompt; the hidden size is the most that makes sense.
    correct_far: correct the weight of what the CPU computed with a predicted query, to first order in its error.
    true_query_layers: layers that choose and attend with the true query, since theirs cannot be predicted; None finds
        them for each prompt, by trying the predictor on it.
    least_cosine: where true_query_layers is None, the mean cosine of scout and true query that a layer must reach on
        the prompt for its scouts to be used.
    guard: largest part of a KV head's attention that may go to absent blocks its scout missed, and largest far part,
        times the scout's relative error, that may stand. Beyond the one the CPU attends to what was missed, with the
        true query; beyond the other to all that is absent. None never does, and recall goes by what scouts want.
    digest: what blocks are judged by: bounds of their keys ("minmax"), the keys in 2 bits a channel ("keys2"), those
        first and then, of twice the budget, the keys themselves ("twostage"), or the keys of all blocks ("exact", slow:
        the ceiling of the others).
    pooling: how a KV head's query heads agree: the mean of their softmax over the blocks, or their largest score.
    most_share: part of a sequence's chosen blocks that may be absent: where it is more, those least wished for are left
        out. None, or a budget that admits every block, leaves none out.
    recall_interval: decode steps between two recalls of a layer; 0 never recalls.
    cpu_share: part of the chosen blocks of a layer that are absent where it keeps to that interval: with twice that
        part its recalls come twice as often, with half of it half as often. None always keeps to the interval.
    wait_share: part of a step's time that may be spent waiting for the CPU, above which recalls come sooner; None does
        not look at the clock, so that what is resident, and with it the answer, can be repeated.
    """

    budget: int | None = 1024
    block_size: int = 32
    sink_blocks: int = 1
    recent_blocks: int = 1
    on_miss: OnMiss = "compute"
    lookahead: int = 1
    far_query: FarQuery = "predicted"
    predictor: PredictorName = "calibrated"
    calibration: str | None = "auto"
    rank: int = 64
    correct_far: bool = True
    true_query_layers: tuple[int, ...] | None = None
    least_cosine: float = 0.8
    guard: float | None = 0.02
    digest: DigestName = "keys2"
    pooling: Pooling = "mean"
    most_share: float | None = 0.085
    recall_interval: int = 8
    cpu_share: float | None = 0.05
    wait_share: float | None = None

    def __post_init__(self) -> None:
        _at_least("block_size", self.block_size, 1)
        _at_least("sink_blocks", self.sink_blocks, 0)
        _at_least("recent_blocks", self.recent_blocks, 0)
        _at_least("lookahead", self.lookahead, 0)
        _at_least("recall_interval", self.recall_interval, 0)
        _at_least("rank", self.rank, 1)
        _at_least("least_cosine", self.least_cosine, -1.0)
        for name, least in (("guard", 0.0), ("most_share", 0.01), ("cpu_share", 0.0), ("wait_share", 0.0)):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, least)
        _one_of("on_miss", self.on_miss, OnMiss)
        _one_of("far_query", self.far_query, FarQuery)
        _one_of("predictor", self.predictor, PredictorName)
        _one_of("digest", self.digest, DigestName)
        _one_of("pooling", self.pooling, Pooling)
        least = self.always_blocks * self.block_size
        if self.budget is not None and self.budget < least:
            raise ConfigError(
                f"budget={self.budget} tokens is below {least}, which the {self.sink_blocks} sink, "
                f"{self.recent_blocks} recent and 1 open blocks of {self.block_size} tokens take: "
                "raise budget, or lower block_size"
            )

    @property
    def always_blocks(self) -> int:
        """Blocks that every step attends to: sink, recent, and the open one."""
        return self.sink_blocks + self.recent_blocks + 1

    @property
    def budget_blocks(self) -> int | None:
        """Closed blocks that a step may choose per layer and KV head: the budget without the open block."""
        return None if self.budget is None else self.budget // self.block_size - 1


@dataclass(frozen=True)
class EngineConfig:
    """The machine.

    device: where the model runs: "cuda" is an NVIDIA GPU, or an AMD one; the cache is then in host memory, and blocks
        that matter on the device. "cpu" is both tiers in one memory.
    kernels: what a decode step's attention runs on: "native" on a CPU, "triton" on a GPU, or in Triton's interpreter;
        "plain" is PyTorch anywhere, slow. "auto" is native on a CPU and triton on a GPU.
    graphs: on a GPU, replay decode steps as CUDA graphs; without, or with plain kernels, every kernel is queued by
        itself, for debugging.
    device_memory: bytes for device slots; "slots" is twice the budget for each sequence that may run at once; "all"
        keeps every block on the device. None is "slots" where the device has memory of its own, and "all" where the
        CPU is the device, so that both are one memory.
    host_memory: bytes for host pages; None takes what `max_num_seqs` sequences can need, at most half of the memory
        that is free.
    max_model_len: longest sequence in tokens, prompt and answer together; None is the model's own limit.
    max_num_seqs: sequences decoded at once.
    dtype: dtype of weights and KV cache; "auto" is the checkpoint's.
    kv_dtype: of pages: "auto" is that of the KV cache; "int8" and "int4" are 8 and 4 bits a channel, on a scale of each
        block and channel. The open block and device slots keep the cache's dtype.
    workers: native threads of each rank for the CPU's attention; None is one per core, or its rank's part of them, and
        two fewer beside a GPU, whose stream and main thread need cores as well.
    torch_threads: threads of each rank for PyTorch's own operators; None is as of workers.
    tensor_parallel_size: ranks, processes that share the model and both memories: each has its own KV heads, and where
        the device is "cuda" its own GPU, rank i the i-th of those that CUDA shows. Sizes are of all ranks together.
    """

    device_memory: Memory = None
    host_memory: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 8
    dtype: DTypeName = "auto"
    kv_dtype: KVDTypeName = "auto"
    device: DeviceName = "cpu"
    kernels: KernelsName = "auto"
    graphs: bool = True
    workers: int | None = None
    torch_threads: int | None = None
    tensor_parallel_size: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.device_memory, str):
            if self.device_memory not in get_args(MemoryName):
                raise ConfigError(f"device_memory={self.device_memory!r} is neither bytes, 'all', 'slots' nor None")
        elif self.device_memory is not None:
            _at_least("device_memory", self.device_memory, 1)
        for name in ("host_memory", "max_model_len", "workers", "torch_threads"):
            value = getattr(self, name)
            if value is not None:
                _at_least(name, value, 1)
        _at_least("max_num_seqs", self.max_num_seqs, 1)
        _at_least("tensor_parallel_size", self.tensor_parallel_size, 1)
        _one_of("dtype", self.dtype, DTypeName)
        _one_of("kv_dtype", self.kv_dtype, KVDTypeName)
        _one_of("device", self.device, DeviceName)
        _one_of("kernels", self.kernels, KernelsName)


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn for one request; `temperature=0` is greedy.

    max_tokens: new tokens at most.   stop: strings that end the answer and are not part of it.
    ignore_eos: go on after the model's end-of-sequence token.   seed: makes draws repeatable; None is not.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("temperature", self.temperature, 0.0)
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p={self.top_p} is not in (0, 1]")
