"""Tiny checkpoints in few bits, written as each format is defined, and the numbers that they stand for.

The definitions: GPTQModel's nn_modules/qlinear (GPTQ), AutoAWQ's awq/modules/linear/gemm.py (AWQ), compressed-tensors'
compressors (the rest), and DeepSeek-V3's inference/kernel.py (8-bit floats in blocks).
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ....tiny import save
from ... import families

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs has the i-th code of a word."""
E4M3 = torch.float8_e4m3fn


def packed(codes, bits, axis=1):
    """Codes [rows, columns] as int32 words along an axis, the lowest bits first, filled up with zeros."""
    codes = np.moveaxis(codes.numpy().astype(np.int64), axis, 1)
    per = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).reshape(len(codes), -1, per)
    words = sum(codes[..., i] << bits * i for i in range(per)).astype(np.uint32).view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(words, 1, axis)))


def rounded(weight, bits, group, *, zeros):
    """A matrix in codes [rows, columns] from 0, with scales float16 and zeros [rows, groups], and its numbers."""
    group = group or weight.shape[1]
    groups = torch.nn.functional.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))
    most = 2**bits - 1
    if zeros:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = ((high - low) / most).half()
        zero = (-low / scale.float()).round().clamp(1, most)
    else:
        scale = (groups.abs().amax(-1) / (most // 2)).half()
        zero = torch.full_like(scale.float(), most // 2 + 1)
    codes = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, most)
    numbers = (codes - zero[..., None]) * scale.float()[..., None]
    columns = weight.shape[1]
    return codes.flatten(1)[:, :columns].int(), scale, zero.int(), numbers.flatten(1)[:, :columns]


def gptq(weight, bits=4, group=32, zeros=False, added=1):
    codes, scale, zero, numbers = rounded(weight, bits, group, zeros=zeros)
    columns = weight.shape[1]
    return {
        "qweight": packed(codes.T, bits, 0),
        "qzeros": packed(zero.T - added, bits),
        "scales": scale.T,
        "g_idx": torch.arange(columns, dtype=torch.int32) // (group or columns),
    }, numbers


def act_order(weight, bits=4, group=32, zeros=False):
    """Columns are in groups in an order of their own, which goes by how many columns there are."""
    columns = weight.shape[1]
    order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
    parts, numbers = gptq(weight[:, order], bits, group, zeros)
    places = order.argsort()
    codes = rounded(weight[:, order], bits, group, zeros=zeros)[0][:, places]
    return parts | {"qweight": packed(codes.T, bits, 0), "g_idx": parts["g_idx"][places]}, numbers[:, places]


def awq(weight, group=32):
    codes, scale, zero, numbers = rounded(weight, 4, group, zeros=True)
    ordered = [part.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1) for part in (codes, zero)]
    return {"qweight": packed(ordered[0], 4), "qzeros": packed(ordered[1], 4), "scales": scale.T}, numbers


def pack_quantized(weight, bits=4, group=32, zeros=False):
    codes, scale, zero, numbers = rounded(weight, bits, group, zeros=zeros)
    tensors = {"weight_packed": packed(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor(weight.shape)}
    return tensors | ({"weight_zero_point": packed(zero, bits, 0)} if zeros else {}), numbers


def int_quantized(weight, group=0):
    codes, scale, _, numbers = rounded(weight, 8, group, zeros=False)
    return {"weight": (codes - 128).to(torch.int8), "weight_scale": scale}, numbers


def float_quantized(weight, block=None, scale_name="weight_scale", whole=False):
    """One scale for all, for each row, or for each block of rows and columns."""
    rows, columns = weight.shape
    height, width = block or ((rows, columns) if whole else (1, columns))
    filled = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    blocks = filled.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).to(E4M3)
    numbers = (codes.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
    stored = codes.float().flatten(2).flatten(0, 1)[:rows, :columns].to(E4M3)
    return {"weight": stored, scale_name: scale.flatten() if whole else scale}, numbers


def compressed(form, weights, **other):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    } | other


def _args(bits=4, kind="int", strategy="group", group=32, symmetric=True, block=None):
    args = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric}
    return args | ({"block_structure": block} if block else {})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}
CASES = {
    "gptq": (GPTQ, gptq),
    "gptq-v2": (GPTQ | {"checkpoint_format": "gptq_v2"}, lambda w: gptq(w, added=0)),
    "gptq-zeros": (GPTQ | {"sym": False}, lambda w: gptq(w, zeros=True)),
    "gptq-v2-zeros": (GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"}, lambda w: gptq(w, zeros=True, added=0)),
    "gptq-64": (GPTQ | {"group_size": 64}, lambda w: gptq(w, group=64)),
    "gptq-rows": (GPTQ | {"group_size": -1}, lambda w: gptq(w, group=0)),
    "gptq-order": (GPTQ | {"desc_act": True}, act_order),
    "gptq-order-zeros": (GPTQ | {"desc_act": True, "sym": False}, lambda w: act_order(w, zeros=True)),
    "gptq-8": (GPTQ | {"bits": 8}, lambda w: gptq(w, bits=8)),
    "awq": (AWQ, awq),
    "awq-64": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": True}, lambda w: awq(w, 64)),
    "packed": (compressed("pack-quantized", _args()), pack_quantized),
    "packed-zeros": (compressed("pack-quantized", _args(symmetric=False)), lambda w: pack_quantized(w, zeros=True)),
    "packed-rows": (
        compressed("pack-quantized", _args(8, strategy="channel", group=None)),
        lambda w: pack_quantized(w, 8, 0),
    ),
    "packed-8": (compressed("pack-quantized", _args(8)), lambda w: pack_quantized(w, 8)),
    "int8": (compressed("int-quantized", _args(8, strategy="channel", group=None)), int_quantized),
    "int8-groups": (compressed("naive-quantized", _args(8)), lambda w: int_quantized(w, 32)),
    "float8": (compressed("float-quantized", _args(8, "float", "channel", None)), float_quantized),
    "float8-tensor": (
        compressed("float-quantized", _args(8, "float", "tensor", None)),
        lambda w: float_quantized(w, whole=True),
    ),
    "float8-blocks": (
        compressed("float-quantized", _args(8, "float", "block", None, block=[16, 32])),
        lambda w: float_quantized(w, (16, 32)),
    ),
    "fp8-blocks": (FP8, lambda w: float_quantized(w, (16, 32), "weight_scale_inv")),
    "fp8-uneven-blocks": (
        FP8 | {"weight_block_size": [40, 40]},
        lambda w: float_quantized(w, (40, 40), "weight_scale_inv"),
    ),
    "fp8-tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, lambda w: float_quantized(w, whole=True)),
}
"""By name: a `quantization_config`, and what writes a matrix so."""


def write(folder: Path, name: str, family: str = "llama", kept=(), *, sizes=(), **config) -> dict[str, torch.Tensor]:
    """Save a tiny model whose layers' matrices are quantised, but those whose names contain one of `kept`.

    Returns the tensors of the same model in float32, by name.   sizes, config: changes of the config.json and of its
    `quantization_config`.
    """
    save(families.make(family, **dict(sizes)), folder)
    about, quantise = CASES[name]
    tensors, numbers = {}, load_file(folder / "model.safetensors")
    for key, value in list(numbers.items()):
        module = key.removesuffix(".weight")
        if "_proj" in key and key.endswith(".weight") and not any(part in key for part in kept):
            parts, numbers[key] = quantise(value)
            tensors |= {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        else:
            tensors[key] = value
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, quantization_config=about | config)
    return numbers


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def write_expanded(folder: Path, numbers: dict[str, torch.Tensor], family: str = "llama") -> Path:
    """Save the model of these numbers in float32."""
    save(families.make(family), folder)
    save_file({name: tensor.contiguous() for name, tensor in numbers.items()}, folder / "model.safetensors")
    return folder
