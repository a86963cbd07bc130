"""GGUF files, converted once into a directory in the layout of Hugging Face that is kept in a cache folder."""

import errno
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...errors import CacheFolderError, ModelFileError, UnsupportedModelError
from ...shape import DTYPE_BYTES
from ..config import ModelConfig
from .gguf_config import ROPE_FACTORS, hf_config, tensor_name, uninterleave
from .gguf_tokenizer import tokenizer_config, tokenizer_of
from .safetensors import INDEX

try:
    import gguf
except ModuleNotFoundError:  # an optional dependency: `converted` says how to install it
    gguf = None  # type: ignore[assignment]

SHARD_BYTES = 2 << 30  # of weights that are held in memory at once
_LAYOUT = b"1"  # raise it when the conversion changes: older conversions are then no longer found
_HEADER_BYTES = 1 << 20


class GGUF(NamedTuple):
    """An open file: its metadata by name, and its tensors, still quantised, by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Any]


def converted(path: Path, dtype: str, cache_dir: Path) -> Path:
    """The directory with the model's config.json, safetensors in `dtype` and tokenizer; made if it is not there yet.

    It appears under its name only when it is complete, so that an interrupted or a concurrent conversion does no harm.
    Raises ModelFileError, UnsupportedModelError or CacheFolderError.
    """
    target = cache_dir / f"{path.stem}-{_fingerprint(path)}-{dtype}"
    if target.is_dir():
        return target
    source = open_gguf(path)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".converting-", ignore_cleanup_errors=True) as folder:
            work = Path(folder) / "model"
            work.mkdir()
            write(source, dtype, work)
            _publish(work, target)
    except (OSError, SafetensorError) as error:
        raise CacheFolderError(
            f"cannot keep the converted model in {cache_dir}: {error}: "
            "make room there, or set XDG_CACHE_HOME to another folder"
        ) from error
    return target


def open_gguf(path: Path) -> GGUF:
    """Read a file's metadata and map its tensors; ModelFileError if it is truncated, malformed or not GGUF at all."""
    if gguf is None:
        raise ModelFileError(f"reading {path.name} needs the gguf package: run pip install 'scout-attention[gguf]'")
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelFileError(f"{path} is truncated or not a GGUF file: {error}") from error
    return GGUF(fields, {tensor.name: tensor for tensor in reader.tensors})


def write(source: GGUF, dtype: str, directory: Path) -> None:
    """Write config.json, the tokenizer's files, and the weights in `dtype` into a directory."""
    shapes = {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in source.tensors.items()}
    factors = dequantized(source.tensors[ROPE_FACTORS]) if ROPE_FACTORS in source.tensors else None
    config = hf_config(source.fields, shapes, factors)
    ModelConfig.from_hf(config, dtype)  # refuses what cannot be run before anything is written
    (directory / "tokenizer.json").write_text(tokenizer_of(source.fields).to_str(), encoding="utf-8")
    _write_json(directory / "tokenizer_config.json", tokenizer_config(source.fields))
    _write_json(directory / "config.json", config | {"dtype": dtype})
    ends = {id_ for name in ("eos", "eot") if (id_ := source.fields.get(f"tokenizer.ggml.{name}_token_id")) is not None}
    _write_json(directory / "generation_config.json", {"eos_token_id": sorted(ends)})
    homes: dict[str, str] = {}
    for number, shard in enumerate(_shards(shapes, DTYPE_BYTES[dtype]), start=1):
        file = f"model-{number:05d}.safetensors"
        tensors = {
            tensor_name(name): converted_tensor(source, config, name).to(getattr(torch, dtype)) for name in shard
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(tensors, file)
    _write_json(directory / INDEX, {"metadata": {}, "weight_map": homes})


def converted_tensor(source: GGUF, config: Mapping[str, Any], name: str) -> Tensor:
    """One weight as Hugging Face has it, in float32."""
    weight = dequantized(source.tensors[name])
    part = name.split(".")[-2]
    if config["model_type"] == "llama" and part in ("attn_q", "attn_k"):
        return uninterleave(weight, config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"])
    return weight


def dequantized(tensor: Any) -> Tensor:  # noqa: ANN401  (gguf is optional, and so are its types)
    """A stored tensor in float32, rows first."""
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"the GGUF tensor {tensor.name} is quantised as {tensor.tensor_type.name}, which is not supported"
        ) from error
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    """The tensors' names in groups of at most SHARD_BYTES, or of one tensor."""
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        if name == ROPE_FACTORS:
            continue
        bytes_ = int(np.prod(shape)) * itemsize
        if shard and size + bytes_ > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += bytes_
    yield shard


def _fingerprint(path: Path) -> str:
    """Twelve hexadecimal digits that change when the file does."""
    status = path.stat()
    digest = hashlib.sha256(_LAYOUT + f"{status.st_size} {status.st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEADER_BYTES))
    return digest.hexdigest()[:12]


def _publish(work: Path, target: Path) -> None:
    """Give the finished directory its name; if another process was first, its copy is as good."""
    try:
        work.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
