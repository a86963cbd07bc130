"""Products of a decode step's few rows, by the native kernels in place of PyTorch's."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ...cache.pool import TORCH_DTYPES
from ...kernels.native import RowKernels
from ...models.decoder import FEW_ROWS


def multiply_natively(model: nn.Module, kernels: RowKernels, undo: ExitStack) -> None:
    """Let a model's linear layers, which are on the CPU, multiply few rows by `kernels`; `undo` takes it back.

    Each module gets a `forward` of its own, which Python finds before that of its class. A module that already has its
    own `forward` keeps it. Subclasses of nn.Linear are left alone, because they may compute something else.
    """
    dtypes = set(TORCH_DTYPES.values())
    for module in model.modules():
        own = vars(module)
        if type(module) is nn.Linear and "forward" not in own and module.weight.dtype in dtypes:
            own["forward"] = partial(_linear, module, kernels, module.forward)
            undo.callback(own.pop, "forward", None)


def _linear(module: nn.Linear, kernels: RowKernels, original: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
    """What `nn.Linear` gives of rows [..., A]: [..., B], in their dtype."""
    weight, bias, width = module.weight, module.bias, input.shape[-1]
    if input.numel() > FEW_ROWS * width or torch.is_grad_enabled() or input.dtype != weight.dtype:
        return original(input)
    out = kernels.linear(input.reshape(-1, width), weight.detach())
    if bias is not None:
        out += bias
    return out.to(input.dtype).view(*input.shape[:-1], -1)
