"""The GGUF file of a model as the directory that Hugging Face would have of it: vLLM reads no GGUF."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from scoutattention.kernels.reference_stored import expand
from scoutattention.models.formats.gguf import GGUFModel
from scoutattention.models.formats.gguf_file import open_gguf
from scoutattention.models.formats.gguf_tokenizer import tokenizer_of
from scoutattention.runtime.stored import StoredMatrix


def expand_gguf(path: Path, directory: Path) -> Path:
    """Write config.json, tokenizer.json and the weights in float32."""
    model = GGUFModel(path)
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(model.config) | {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer_of(open_gguf(path).metadata).save(str(directory / "tokenizer.json"))
    tensors = model.tensors()
    weights = {}
    for name in sorted(tensors.unread):
        weight = tensors.read(name, (0,) if name.endswith("norm.weight") else (0, 0))
        if isinstance(weight, StoredMatrix):
            dense, paired = expand(weight, slice(None), torch.float32), tensors.paired(name)
            if paired:
                dense = dense.view(-1, paired // 2, 2, dense.shape[-1]).transpose(1, 2).reshape(dense.shape)
            weight = dense
        weights[name] = weight.contiguous()
    save_file(weights, directory / "model.safetensors")
    return directory
