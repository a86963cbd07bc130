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
    """The engine's settings; sizes are in bytes. Raises ConfigError where a value is out of range."""

    device_memory: Memory = setting(
        None,
        "Device memory for slots and digests: a size, 'slots' (twice the budget of each sequence), or 'all' blocks.",
        change="On a GPU, give what weights and a prompt leave free: with more slots the CPU has less work. On a CPU "
        "slots are copies in the same memory, and save none.",
        none="'slots' on a GPU, 'all' on a CPU",
        size=True,
        least=1,
    )
    host_memory: int | None = setting(
        None,
        "Host memory for the KV cache.",
        change="Lower it where other programs need the memory; raise it to run more sequences. "
        "Too little makes sequences wait. On a GPU each GiB takes 96 MiB of GPU memory for digests (bfloat16).",
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
        change="Raise it for throughput; lower it to save memory. The commands run one sequence.",
        least=1,
    )
    dtype: DTypeName = setting(
        "auto",
        "Numbers: 'auto', 'float32', 'bfloat16', 'float16'.",
        change="The number format of weights and KV cache; 'auto' is the checkpoint's, and float32 for a .gguf file. "
        "Choose 'bfloat16' for speed, and 'float32' to compare numbers. Quantised weights stay so: it is then the "
        "format of the KV cache and of a prompt's own numbers.",
    )
    weights: WeightsName = setting(
        "auto",
        "Weights: 'auto' (stored), 'bf16', 'int8', 'int4'.",
        change="'auto' keeps them as the file has them. 'int8' halves the memory of a 16-bit checkpoint. "
        "'int4' takes less than a third, and costs accuracy. 'bf16' expands what is quantised.",
    )
    kv_dtype: KVDTypeName = setting(
        "auto",
        "Number format of full blocks in host memory: 'auto' (that of dtype), 'int8' or 'int4'.",
        change="Choose 'int8' to halve a bfloat16 cache. 'int4' takes a quarter, and costs accuracy.",
        advanced=True,
    )
    prefix_cache: bool = setting(
        True,
        "Keep prompts in free pages, so that a prompt that begins like one of them is read from there on.",
        change="Turn it off to read every prompt whole. Kept prompts make room for running ones. Beside their pages, "
        "they take at most an eighth of host_memory, or as much as max_num_seqs sequences have of their own.",
        advanced=True,
    )
    prefix_cache_dir: str | None = setting(
        None,
        "Directory in which prompts are stored, so that they are found after a restart.",
        change="Give one to ask about the same documents again later. A prompt takes there as much as in host memory.",
        none="none are stored",
        advanced=True,
    )
    prefix_cache_size: int = setting(
        16 << 30,
        "Size of that directory at most; prompts that were not used for longest go first.",
        change="Set it to what the disk has room for.",
        size=True,
        least=1,
        advanced=True,
    )
    device: DeviceName = setting(
        "cpu", "Where the model runs: 'cpu', or 'cuda' for a GPU.", change="Choose 'cuda' where there is a GPU."
    )
    kernels: KernelsName = setting(
        "auto",
        "Kernels of decode steps: 'auto' ('native' on a CPU), or 'plain' for slow PyTorch.",
        change="Choose 'plain' to see whether a wrong answer comes from a kernel. On a GPU 'auto' is 'cuda' where the "
        "package cuda-core is installed, else 'triton'.",
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
        change="Lower it where other programs need the cores.",
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
        "Processes that share the model; each has its own KV heads and, with device 'cuda', its own GPU.",
        change="Keep it at 1: it is tested on one CPU, where it is slower, and has not run on GPUs.",
        least=1,
        advanced=True,
    )
    rope_scaling: RopeScaling = setting(
        None,
        "How positions are rotated, in the words of config.json, instead of as the model says.",
        change="Give it to read longer contexts than the model was trained on; its card says with what, for example "
        '`{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}`.',
        none="as the model says",
        advanced=True,
    )
