"""The engine: the device, its kernels and the sizes of its memories."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .fields import Checked, setting

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
WeightsName = Literal["auto", "bf16", "int8", "int4"]
KVDTypeName = Literal["auto", "int8", "int4"]
MemoryName = Literal["all", "slots"]
DeviceName = Literal["cpu", "cuda"]
KernelsName = Literal["auto", "native", "triton", "cuda", "plain"]
Memory = int | MemoryName | None
RopeScaling = Mapping[str, Any] | None
"""What config.json calls `rope_scaling`."""


@dataclass(frozen=True)
class EngineConfig(Checked):
    """The settings of the engine; sizes are in bytes. Raises ConfigError if a value is out of range."""

    device_memory: Memory = setting(
        None,
        "Device memory for slots and digests: a size, 'slots' (twice the budget of each sequence), or 'all' blocks.",
        change="On a GPU, give the memory that weights and prefill leave free: more slots leave the CPU less work. "
        "On a CPU, slots are copies in the same memory, and save none.",
        none="'slots' on a GPU, 'all' on a CPU",
        size=True,
        least=1,
    )
    host_memory: int | None = setting(
        None,
        "Host memory for the KV cache.",
        change="Lower it if other programs need the memory. Raise it to run more sequences at once: sequences without "
        "room wait. On a GPU each GiB takes 61 MiB of GPU memory for digests (bfloat16, heads of 128 channels).",
        none="enough for max_num_seqs sequences, at most half of the free memory",
        size=True,
        least=1,
    )
    max_model_len: int | None = setting(
        None,
        "Longest sequence in tokens, prompt and answer.",
        change="Lower it to save host memory.",
        none="the model's limit",
        least=1,
    )
    max_num_seqs: int = setting(
        8,
        "Sequences that run at once, at most.",
        change="Raise it for throughput. Lower it to save memory. `scout generate` and `scout chat` run one sequence.",
        least=1,
    )
    dtype: DTypeName = setting(
        "auto",
        "Dtype: 'auto', 'float32', 'bfloat16', 'float16'.",
        change="The number format of weights and KV cache; 'auto' is the checkpoint's, and float32 for a .gguf file. "
        "Choose 'bfloat16' for speed, and 'float32' to compare numbers. Quantised weights stay quantised, and "
        "dtype is the format of the KV cache and of activations in prefill.",
    )
    weights: WeightsName = setting(
        "auto",
        "Weights: 'auto' (as stored), 'bf16', 'int8', 'int4'.",
        change="'int8' halves the memory of a 16-bit checkpoint. 'int4' takes less than a third, and costs accuracy. "
        "'bf16' expands quantised weights.",
    )
    kv_dtype: KVDTypeName = setting(
        "auto",
        "Number format of full blocks in host memory: 'auto' (dtype), 'int8' or 'int4'.",
        change="Choose 'int8' to halve a bfloat16 cache. 'int4' takes a quarter, and costs accuracy.",
        advanced=True,
    )
    prefix_cache: bool = setting(
        True,
        "Prefix caching: keep the pages of prompts, and reuse them for later prompts with the same beginning.",
        change="Turn it off to prefill every prompt as a whole. Kept pages are freed when running sequences need them. "
        "Besides pages, kept prompts take at most an eighth of host_memory, or as much as max_num_seqs sequences "
        "take.",
        advanced=True,
    )
    prefix_cache_dir: str | None = setting(
        None,
        "Directory in which prompts are stored, to be found again after a restart.",
        change="Set it to ask about the same documents again later. A prompt takes as much disk space as host memory.",
        none="no prompt is stored",
        advanced=True,
    )
    prefix_cache_size: int = setting(
        16 << 30,
        "Largest size of prefix_cache_dir. The least recently used prompts are deleted first.",
        change="Set it by the free space of the disk.",
        size=True,
        least=1,
        advanced=True,
    )
    device: DeviceName = setting(
        "cpu", "Where the model runs: 'cpu', or 'cuda' for a GPU.", change="Choose 'cuda' if there is a GPU."
    )
    kernels: KernelsName = setting(
        "auto",
        "Kernels of decode steps: 'auto', or 'plain' for PyTorch without fast kernels.",
        change="Choose 'plain' to see whether a wrong answer comes from a kernel. 'auto' is 'native' on a CPU. "
        "On a GPU it is 'cuda' if the package cuda-core is installed, else 'triton'.",
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
        "Native CPU threads of each process.",
        change="Lower it if other programs need the cores.",
        none="one for each core, divided among the processes; two fewer with a GPU",
        least=1,
        advanced=True,
    )
    torch_threads: int | None = setting(
        None,
        "Threads of PyTorch's own operators, in each process.",
        change="Lower it together with workers.",
        none="one for each core, divided among the processes",
        least=1,
        advanced=True,
    )
    tensor_parallel_size: int = setting(
        1,
        "Processes (ranks) that share the model by KV heads; with device 'cuda' each has its own GPU.",
        change="Keep it at 1. Larger values are tested on one CPU, where they are slower, and have never run on GPUs.",
        least=1,
        advanced=True,
    )
    rope_scaling: RopeScaling = setting(
        None,
        "Rotary scaling instead of the model's own, with the keys of `rope_scaling` in config.json.",
        change="Set it to read longer contexts than the model was trained on, as the model card says, for example "
        '`{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}`.',
        none="the model's own",
        advanced=True,
    )
