"""GGUF files, converted once into a directory in the layout of Hugging Face that is kept in a cache folder."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...errors import CacheFolderError, CapacityError, ModelError, ModelFileError
from ...shape import DTYPE_BYTES
from ..cache_folder import is_complete, mark_used, publish, remove_abandoned, working_folder
from ..config import ModelConfig
from ..ends import end_of_turn_ids
from ..text import Tokenizer
from .gguf_config import hf_config, tensor_name, uninterleave
from .gguf_file import GGUF, StoredTensor, open_gguf, parts_beside
from .gguf_rope import ROPE_TENSORS
from .gguf_tokenizer import special_ids, tokenizer_config, tokenizer_of
from .safetensors import INDEX

logger = logging.getLogger(__name__)

SHARD_BYTES = 2 << 30  # of weights that are held in memory at once
_LAYOUT = b"2"  # raise it when the conversion changes: older conversions are then no longer found
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
"""Parts of tokens that end an answer: of a turn, of a text, or of a file in models that fill in code."""
_HEADER_BYTES, _SAMPLES, _SAMPLE_BYTES = 1 << 20, 64, 1 << 16


def converted(path: Path, dtype: str, cache_dir: Path) -> Path:
    """The directory with the model's config.json, safetensors in `dtype` and tokenizer; made if it is not there yet.

    It appears under its name only when it is complete and can be loaded. What earlier processes left unfinished is
    removed, and a damaged conversion is replaced.
    Raises ModelFileError, UnsupportedModelError, CacheFolderError, or CapacityError where memory is short.
    """
    target = cache_dir / f"{path.stem}-{_fingerprint(path)}-{dtype}"
    try:
        remove_abandoned(cache_dir)
        if target.is_dir():
            if is_complete(target):
                mark_used(target)
                return target
            logger.warning("the converted model %s is damaged: it is converted again", target)
        source = open_gguf(path)
        with working_folder(cache_dir) as folder:
            work = folder / "model"
            work.mkdir()
            write(source, dtype, work)
            publish(work, target, {"source": str(path), "dtype": dtype})
    except MemoryError as error:
        raise CapacityError(f"converting {path} needs more memory than there is: {error}: free some") from error
    except (OSError, SafetensorError) as error:
        raise CacheFolderError(
            f"cannot keep the converted model in {cache_dir}: {error}: "
            "make room there (scout cache), or set XDG_CACHE_HOME to another folder"
        ) from error
    return target


def write(source: GGUF, dtype: str, directory: Path) -> None:
    """Write config.json, the tokenizer's files, and the weights in `dtype` into a directory.

    All that can be refused is refused before weights are written, except weights that are not finite.
    """
    metadata, shapes = source.metadata, source.shapes
    rope_tensors = {name: source.tensors[name].dequantized() for name in ROPE_TENSORS if name in shapes}
    config = hf_config(metadata, shapes, rope_tensors)
    with _naming(metadata.path, directory):
        ModelConfig.from_hf(config, dtype)
    (directory / "tokenizer.json").write_text(tokenizer_of(metadata).to_str(), encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", tokenizer_config(metadata))
    _write_json(directory / "config.json", config | {"dtype": dtype})
    names = enumerate(metadata.texts("tokenizer.ggml.tokens"))
    ends = end_of_turn_ids(names, special_ids(metadata, _ENDS).values())
    _write_json(directory / "generation_config.json", {"eos_token_id": sorted(ends)})
    with _naming(metadata.path, directory):
        Tokenizer.from_directory(directory)
    homes: dict[str, str] = {}
    for number, shard in enumerate(_shards(shapes, DTYPE_BYTES[dtype]), start=1):
        file = f"model-{number:05d}.safetensors"
        tensors = {tensor_name(name): _weight(source.tensors[name], config, dtype) for name in shard}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, file)
    _write_json(directory / INDEX, {"metadata": {}, "weight_map": homes})


def converted_tensor(tensor: StoredTensor, config: Mapping[str, Any]) -> Tensor:
    """One weight as Hugging Face has it, in float32."""
    weight = tensor.dequantized()
    part = tensor.name.split(".")[-2]
    if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
        return uninterleave(weight, config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])
    return weight


@contextmanager
def _naming(path: Path, directory: Path) -> Iterator[None]:
    """Let errors about a directory that is not there yet say which file is at fault."""
    try:
        yield
    except ModelError as error:
        raise type(error)(f"{path}: {str(error).replace(str(directory), 'the converted model')}") from error


def _weight(tensor: StoredTensor, config: Mapping[str, Any], dtype: str) -> Tensor:
    """The weight in a dtype, refused where one of its numbers is not finite there, or where there is no room for it."""
    try:
        weight = converted_tensor(tensor, config)
        narrow = weight.to(getattr(torch, dtype))
    except RuntimeError as error:  # PyTorch's word for a lack of memory
        raise MemoryError(f"the tensor {tensor.name} has the shape {list(tensor.shape)}") from error
    if not torch.isfinite(narrow).all():
        stored = torch.isfinite(weight).all()
        raise ModelFileError(
            f"{tensor.path}: the tensor {tensor.name} has numbers that {dtype} does not hold: choose --dtype float32"
            if stored
            else f"{tensor.path}: the tensor {tensor.name} has numbers that are infinite or not numbers: "
            "the file is damaged: get it again"
        )
    return narrow


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    """The weights' names in groups of at most SHARD_BYTES, or of one tensor."""
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if name in ROPE_TENSORS:
            continue
        bytes_ = int(np.prod(shape)) * itemsize
        if shard and size + bytes_ > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += bytes_
    yield shard


def _fingerprint(path: Path) -> str:
    """Twelve hexadecimal digits of the sizes, the headers and a sample of the data of all parts: all of a small file.

    Times do not count: a copy of a file is the same model.
    """
    digest = hashlib.sha256(_LAYOUT)
    try:
        for part in parts_beside(path):
            size = part.stat().st_size
            digest.update(f" {size}".encode())
            with part.open("rb") as file:
                digest.update(file.read(_HEADER_BYTES))
                for start in range(_HEADER_BYTES, size, max((size - _HEADER_BYTES) // _SAMPLES, _SAMPLE_BYTES)):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()[:12]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
