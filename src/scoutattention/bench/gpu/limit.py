"""A limit on the device's memory, so that a large GPU tells what a smaller one would do."""

import torch

from ...errors import CapacityError, ConfigError
from ...models.config import ModelConfig
from ...shape import DTYPE_BYTES


def weight_bytes(config: ModelConfig) -> int:
    """Bytes of a model's matrices; its norms and biases are nothing beside them."""
    shape = config.shape
    heads = 2 * (shape.num_query_heads + shape.num_kv_heads) * shape.head_dim
    layer = shape.hidden_size * (heads + 3 * shape.intermediate_size)
    tables = shape.vocab_size * shape.hidden_size * (1 if config.tie_word_embeddings else 2)
    return (shape.num_layers * layer + tables) * DTYPE_BYTES[shape.dtype]


def limit_device(device: torch.device, limit: int, config: ModelConfig) -> None:
    """Let this process take at most `limit` bytes of a GPU, those of the driver and its kernels included.

    `engine.device.free_memory` keeps to it from then on, and PyTorch takes no more for anything.
    Raises ConfigError where there is no such GPU, CapacityError where the weights alone do not fit.
    """
    if device.type == "cpu":
        raise ConfigError(f"--device-limit={limit} bytes is for a GPU, and the device is a CPU: leave it out")
    free, total = torch.cuda.mem_get_info(device)
    if limit > total:
        raise ConfigError(f"--device-limit={limit} bytes is above the {total} that the device has: lower it")
    beside = total - free - torch.cuda.memory_reserved(device)
    weights = weight_bytes(config)
    if weights > limit - beside:
        raise CapacityError(
            f"the weights need {weights} bytes, and of --device-limit={limit} bytes the driver leaves "
            f"{max(0, limit - beside)}: raise --device-limit"
        )
    torch.cuda.set_per_process_memory_fraction((limit - beside) / total, device)
