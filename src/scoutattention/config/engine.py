"""The engine: the device, its kernels and the sizes of its memories."""

from dataclasses import dataclass
from typing import Literal

from .fields import Checked, setting

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
KVDTypeName = Literal["auto", "int8", "int4"]
MemoryName = Literal["all", "slots"]
DeviceName = Literal["cpu", "cuda"]
KernelsName = Literal["auto", "native", "triton", "plain"]
Memory = int | MemoryName | None


@dataclass(frozen=True)
class EngineConfig(Checked):
    """The engine's settings; sizes are in bytes. Raises ConfigError where a value is out of range."""

    device_memory: Memory = setting(
        None,
        "Memory for KV blocks on the device: a size, 'slots' for twice the budget of each sequence, or 'all'.",
        change="Give the memory that the weights leave free; more slots mean less work for the CPU.",
        none="'slots' on a GPU, and 'all' where the CPU is the device",
        size=True,
        least=1,
    )
    host_memory: int | None = setting(
        None,
        "Memory for the KV cache on the host.",
        change="Give a size where other programs need the memory, or to hold more sequences.",
        none="what max_num_seqs sequences can need, at most half of the free memory",
        size=True,
        least=1,
    )
    max_model_len: int | None = setting(
        None,
        "Longest sequence in tokens, prompt and answer together.",
        change="Lower it to save host memory.",
        none="the model's own limit",
        least=1,
    )
    max_num_seqs: int = setting(
        8, "Sequences that are decoded at once.", change="Raise it for throughput, lower it for memory.", least=1
    )
    dtype: DTypeName = setting(
        "auto",
        "Number format of weights and KV cache; 'auto' is the checkpoint's.",
        change="Choose 'bfloat16' for speed; 'float32' to compare numbers.",
    )
    kv_dtype: KVDTypeName = setting(
        "auto",
        "Number format of closed blocks in host memory; 'auto' is that of dtype, others are 8 or 4 bits a channel.",
        change="Choose 'int8' to halve a bfloat16 cache; 'int4' costs accuracy.",
    )
    device: DeviceName = setting(
        "cpu", "Where the model runs; 'cuda' is a GPU.", change="Choose 'cuda' where there is a GPU."
    )
    kernels: KernelsName = setting(
        "auto",
        "The kernels of decode steps: 'auto' is 'native' on a CPU and 'triton' on a GPU; 'plain' is slow PyTorch.",
        change="Choose 'plain' to find out whether a kernel is at fault.",
        advanced=True,
    )
    graphs: bool = setting(
        True,
        "Replay decode steps as CUDA graphs on a GPU.",
        change="Turn it off to debug or to profile single kernels.",
        advanced=True,
    )
    workers: int | None = setting(
        None,
        "Native CPU threads of each rank.",
        change="Lower it where other programs need the cores.",
        none="one for each core, shared by the ranks, and two fewer beside a GPU",
        least=1,
        advanced=True,
    )
    torch_threads: int | None = setting(
        None,
        "Threads of PyTorch's own operators, of each rank.",
        change="Lower it together with workers.",
        none="one for each core, shared by the ranks",
        least=1,
        advanced=True,
    )
    tensor_parallel_size: int = setting(
        1,
        "Processes (ranks) that share the model, each with its own KV heads, and with its own GPU on device 'cuda'.",
        change="Raise it where one GPU's memory is too small; on one CPU it is slower than one process.",
        least=1,
        advanced=True,
    )
