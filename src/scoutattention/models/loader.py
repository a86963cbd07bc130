"""From a model's name to a decoder and its tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import DTypeName, RopeScaling
from ..errors import UnsupportedModelError
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
_RECOMPUTED = ".rotary_emb.inv_freq"  # stored by old checkpoints; follows from config.json


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
    return dtype or str(Checkpoint(directory).dtype(_EMBEDDING)).removeprefix("torch.")


def read_weights(
    checkpoint: Tensors, config: ModelConfig, device: torch.device, ranks: Ranks = ALONE
) -> DecoderWeights:
    """Every weight of the decoder, in the config's dtype, the norms' in float32; of the layers' matrices a rank's part.

    Refuses a checkpoint that has more than the config implies.
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
    embedding = reader.one(_EMBEDDING, *table)
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(reader, config, f"model.layers.{layer}.") for layer in range(shape.num_layers)),
        norm=reader.norm("model.norm.weight", shape.hidden_size),
        head=embedding if config.tie_word_embeddings else reader.one(_HEAD, *table),
        fingerprint=str(reader.fingerprint),
    )
    _refuse_leftovers(checkpoint, config)
    return weights


class _Reader(NamedTuple):
    checkpoint: Tensors
    dtype: torch.dtype
    ranks: Ranks
    fingerprint: Fingerprint
    arena: Arena

    def one(self, name: str, *shape: int) -> Tensor:
        return self._copy(self._read(name, shape), self.dtype)

    def norm(self, name: str, width: int) -> Tensor:
        return self._copy(self._read(name, (width,)), torch.float32)

    def columns(self, name: str, *shape: int) -> Tensor:
        """Of a matrix, the columns of this rank."""
        return self._copy(self._part(self._read(name, shape), 1), self.dtype)

    def stacked(self, parts: Iterable[tuple[str, int]], *inner: int) -> Tensor:
        """One tensor of several, given as name and rows, that lie below each other: this rank's rows of each."""
        parts = tuple(parts)
        mine = [rows // self.ranks.size for _, rows in parts]
        result = self.arena.take((sum(mine), *inner), self.dtype)
        for (name, rows), target in zip(parts, torch.split(result, mine), strict=True):
            target.copy_(self._part(self._read(name, (rows, *inner)), 0))
        return result

    def _copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in memory of its own: what the file's pages hold can go when all of it is read."""
        return self.arena.take(tuple(tensor.shape), dtype).copy_(tensor)

    def _part(self, tensor: Tensor, axis: int) -> Tensor:
        return tensor.chunk(self.ranks.size, axis)[self.ranks.index]

    def _read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A whole tensor: a view of the file, of which memory has only what is then copied."""
        tensor = self.checkpoint.read(name, shape)
        self.fingerprint.see(tensor)
        return tensor


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
    known = {_HEAD} if config.tie_word_embeddings else set()
    leftover = sorted(name for name in checkpoint.unread - known if not name.endswith(_RECOMPUTED))
    if leftover:
        raise UnsupportedModelError(
            f"{checkpoint.directory} has {len(leftover)} tensors that {config.architecture} does not use, "
            f"the first is {leftover[0]}"
        )
