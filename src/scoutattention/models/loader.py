"""From a model's name to a decoder and its tokenizer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import DTypeName, RopeScaling
from ..errors import ModelError, ModelFileError, UnsupportedModelError
from ..runtime.memory import PIECE, Arena
from ..runtime.ranks import ALONE, Ranks
from .config import ModelConfig, checkpoint_dtype
from .decoder import Decoder, DecoderWeights
from .fingerprint import Fingerprint
from .formats.safetensors import Checkpoint, Tensors, read_json
from .layers import LayerWeights
from .resolve import resolve
from .text import Tokenizer

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CHECKED_AT_ONCE = 1 << 20  # numbers that are copied and then looked at
_RECOMPUTED = ".rotary_emb."  # stored by old checkpoints; follows from config.json


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, the name it was asked for by, and the directory it was read from."""

    name: str
    directory: Path
    decoder: Decoder
    tokenizer: Tokenizer


def load(
    name: str,
    dtype: DTypeName = "auto",
    cache_dir: Path | None = None,
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
    rope_scaling: RopeScaling = None,
) -> LoadedModel:
    """Load `smollm2`, a directory, a .gguf file or a name on the hub.

    dtype: of weights and KV cache; "auto" is the checkpoint's, and float32 for GGUF.
    cache_dir: where converted GGUF files are kept; None is the user's cache folder.
    device: where the weights go; None is the CPU.
    ranks: who else loads the model; each takes its part of the layers.
    rope_scaling: how positions are rotated instead of as config.json says; see `EngineConfig.rope_scaling`.
    Raises ModelNotFoundError, ModelFileError, UnsupportedModelError or CacheFolderError, and ConfigError where the
    ranks cannot share the model.
    """
    directory = resolve(name, dtype, cache_dir)
    tokenizer = Tokenizer.from_directory(directory)
    config = read_config(directory, dtype, rope_scaling)
    weights = read_weights(Checkpoint(directory), config, device or torch.device("cpu"), ranks)
    return LoadedModel(name, directory, Decoder(config, weights, ranks=ranks), tokenizer)


def read_config(directory: Path, dtype: DTypeName, rope_scaling: RopeScaling = None) -> ModelConfig:
    """A directory's config.json; see `load`."""
    chosen = stored_dtype(directory) if dtype == "auto" else dtype
    path = directory / "config.json"
    return ModelConfig.from_hf(read_json(path), chosen, rope_scaling, str(path))


def stored_dtype(directory: Path) -> str:
    """The dtype of a model's weights, by its config.json, or by its embedding where that says nothing."""
    dtype = checkpoint_dtype(read_json(directory / "config.json"))
    if dtype is not None:
        return dtype
    checkpoint = Checkpoint(directory)
    return str(checkpoint.dtype(_EMBEDDING if _EMBEDDING in checkpoint.unread else _HEAD)).removeprefix("torch.")


def read_weights(
    checkpoint: Tensors, config: ModelConfig, device: torch.device, ranks: Ranks = ALONE
) -> DecoderWeights:
    """Every weight of the decoder, in the config's dtype, the norms' in float32; of the layers' matrices a rank's part.

    Refuses a checkpoint that has more than the config implies, and numbers that are not finite in the config's dtype.
    """
    shape = config.shape
    reader = _Reader(
        checkpoint,
        getattr(torch, shape.dtype),
        ranks,
        Fingerprint(config),
        Arena(device, PIECE if device.type == "cpu" else 0),
    )
    table = (shape.vocab_size, shape.hidden_size)
    only_head = config.tie_word_embeddings and _HEAD in checkpoint.unread and _EMBEDDING not in checkpoint.unread
    embedding = reader.one(_HEAD if only_head else _EMBEDDING, *table)
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(reader, config, f"model.layers.{layer}.") for layer in range(shape.num_layers)),
        norm=reader.norm("model.norm.weight", shape.hidden_size),
        head=_head(reader, config, embedding),
        fingerprint=str(reader.fingerprint),
    )
    _refuse_leftovers(checkpoint, config)
    return weights


def _head(reader: "_Reader", config: ModelConfig, embedding: Tensor) -> Tensor:
    """The head as transformers has it: tied to the embedding unless another one is stored."""
    checkpoint, table = reader.checkpoint, tuple(embedding.shape)
    stored = _HEAD in checkpoint.unread
    if not config.tie_word_embeddings:
        try:
            return reader.one(_HEAD, *table)
        except ModelFileError as error:
            advice = "" if stored else ": set tie_word_embeddings to true there if the model has one table for both"
            raise ModelFileError(f"{error}{advice}") from None
    if not stored or torch.equal(checkpoint.read(_HEAD, table), checkpoint.read(_EMBEDDING, table)):
        return embedding
    return reader.one(_HEAD, *table)


class _Reader(NamedTuple):
    checkpoint: Tensors
    dtype: torch.dtype
    ranks: Ranks
    fingerprint: Fingerprint
    arena: Arena

    def one(self, name: str, *shape: int) -> Tensor:
        return self._copy(name, self._read(name, shape), self.dtype)

    def norm(self, name: str, width: int) -> Tensor:
        return self._copy(name, self._read(name, (width,)), torch.float32)

    def columns(self, name: str, *shape: int) -> Tensor:
        """Of a matrix, the columns of this rank."""
        return self._copy(name, self._part(self._read(name, shape), 1), self.dtype)

    def stacked(self, parts: Iterable[tuple[str, int]], *inner: int) -> Tensor:
        """One tensor of several, given as name and rows, that lie below each other: this rank's rows of each."""
        mine = {name: self._part(self._read(name, (rows, *inner)), 0) for name, rows in parts}
        lengths = [len(part) for part in mine.values()]
        result = self.arena.take((sum(lengths), *inner), self.dtype)
        for (name, part), target in zip(mine.items(), torch.split(result, lengths), strict=True):
            self._fill(name, target, part)
        return result

    def _copy(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in memory of its own: what the file's pages hold can go when all of it is read."""
        return self._fill(name, self.arena.take(tuple(tensor.shape), dtype), tensor)

    def _fill(self, name: str, target: Tensor, tensor: Tensor) -> Tensor:
        """Copy, and refuse numbers that are not finite then. A sum tells while the copy is in the processor's cache."""
        rows = len(tensor) if target.is_cuda else max(1, _CHECKED_AT_ONCE * len(tensor) // tensor.numel())
        for start in range(0, len(tensor), rows):
            part = target[start : start + rows].copy_(tensor[start : start + rows])
            if not math.isfinite(part.sum()) and not part.isfinite().all():
                raise _not_finite(self.checkpoint.directory, name, tensor, target.dtype)
        return target

    def _part(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.chunk(self.ranks.size, axis)[self.ranks.index]

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole tensor: a view of the file, of which memory has only what is then copied."""
        tensor = self.checkpoint.read(name, shape)
        self.fingerprint.see(tensor)
        return tensor


def _not_finite(directory: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> ModelError:
    if not tensor.isfinite().all():
        return ModelFileError(
            f"{directory}: tensor {name} has numbers that are not finite, so the file is damaged: get it again"
        )
    word = str(dtype).removeprefix("torch.")
    wider = "'float32' or 'bfloat16'" if dtype == torch.float16 else "'float32'"
    return UnsupportedModelError(
        f"{directory}: tensor {name} has the number {float(tensor.abs().max()):g}, and {word} ends at "
        f"{torch.finfo(dtype).max:g}: set dtype (--dtype) to {wider}"
    )


def _layer(reader: _Reader, config: ModelConfig, prefix: str) -> LayerWeights:
    shape = config.shape
    hidden, middle = shape.hidden_size, shape.intermediate_size
    queries, kv = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    heads = tuple((f"{prefix}self_attn.{name}_proj", rows) for name, rows in (("q", queries), ("k", kv), ("v", kv)))
    biases = ((f"{name}.bias", rows) for name, rows in heads)
    return LayerWeights(
        input_norm=reader.norm(f"{prefix}input_layernorm.weight", hidden),
        qkv=reader.stacked(((f"{name}.weight", rows) for name, rows in heads), hidden),
        qkv_bias=reader.stacked(biases) if config.qkv_bias else None,
        qk_norm=_qk_norm(reader, config, prefix) if config.qk_norm else None,
        output=reader.columns(f"{prefix}self_attn.o_proj.weight", hidden, queries),
        output_bias=reader.one(f"{prefix}self_attn.o_proj.bias", hidden) if config.output_bias else None,
        post_norm=reader.norm(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=reader.stacked(((f"{prefix}mlp.{name}_proj.weight", middle) for name in ("gate", "up")), hidden),
        down=reader.columns(f"{prefix}mlp.down_proj.weight", hidden, middle),
    )


def _qk_norm(reader: _Reader, config: ModelConfig, prefix: str) -> Tensor:
    shape = config.shape
    query = reader.norm(f"{prefix}self_attn.q_norm.weight", shape.head_dim)
    key = reader.norm(f"{prefix}self_attn.k_norm.weight", shape.head_dim)
    mine = shape.split(reader.ranks.size)
    return torch.cat((query.expand(mine.num_query_heads, -1), key.expand(mine.num_kv_heads, -1)))


def _refuse_leftovers(checkpoint: Tensors, config: ModelConfig) -> None:
    """A tensor nobody asked for means a model that is not quite what its config.json says."""
    leftover = sorted(name for name in checkpoint.unread if _RECOMPUTED not in name)
    if leftover:
        raise UnsupportedModelError(
            f"{checkpoint.directory} has {len(leftover)} tensors that {config.architecture} does not use, "
            f"the first is {leftover[0]}"
        )
