"""From a model's name to a decoder and its tokenizer."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import DTypeName, RopeScaling, WeightsName
from ..errors import ConfigError, ModelFileError, UnsupportedModelError
from ..runtime.memory import PIECE, Arena
from ..runtime.ranks import ALONE, Ranks
from ..runtime.stored import StoredKind
from .config import ModelConfig
from .decoder import Decoder, DecoderWeights
from .fingerprint import Fingerprint
from .formats.gguf import GGUFModel
from .formats.model_files import Directory, ModelFiles
from .formats.reader import Reader
from .formats.safetensors import EMBEDDING, HEAD, Tensors
from .layers import LayerWeights, Weight
from .resolve import resolve
from .text import Tokenizer

QUANTISED = {"int8": StoredKind.Q8_0, "int4": StoredKind.Q4_1}
"""What weights are rounded to, by the values of `EngineConfig.weights` that quantise."""
LOG = logging.getLogger(__name__)
_RECOMPUTED = ".rotary_emb."  # stored by old checkpoints; follows from config.json


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, and its directory or file."""

    path: Path
    decoder: Decoder
    tokenizer: Tokenizer


def open_model(name: str) -> ModelFiles:
    """The files of `smollm2`, a directory, a .gguf file or a name on the hub. Raises what `load` does for a name."""
    return open_files(resolve(name))


def load(
    model: str | ModelFiles,
    dtype: DTypeName = "auto",
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
    rope_scaling: RopeScaling = None,
    *,
    weights: WeightsName = "auto",
    in_place: bool = True,
) -> LoadedModel:
    """Load a model.

    model: "smollm2", a directory, a .gguf file or a name on the hub; or the files that `open_model` gave.
    dtype: of weights and KV cache; "auto" is the checkpoint's, and float32 for GGUF, whose weights stay as they are on
        a CPU.
    device: where the weights go; None is the CPU.
    ranks: who else loads the model; each takes its part of the layers.
    rope_scaling: how positions are rotated instead of as the model says; see `EngineConfig.rope_scaling`.
    weights: how matrices are kept; see `EngineConfig.weights`. With "bf16" the dtype "auto" is bfloat16.
    in_place: whether matrices in blocks stay so.
    Raises ModelNotFoundError, ModelFileError or UnsupportedModelError, and ConfigError where the ranks cannot share the
    model, or its weights are not kept as `weights` says.
    """
    device = device or torch.device("cpu")
    _check_weights(weights, dtype)
    files = open_model(model) if isinstance(model, str) else model
    tokenizer = files.tokenizer()
    config = config_of(files, "bfloat16" if weights == "bf16" and dtype == "auto" else dtype, rope_scaling)
    kind = QUANTISED.get(weights)
    stored = files.quantised
    if kind is not None and stored is not None and stored.in_blocks:
        raise ConfigError(
            f"weights={weights!r} quantises weights of 16 or 32 bits, and those of {files.path} are in {stored.name}: "
            "set weights (--weights) to 'auto'"
        )
    read = read_weights(files.tensors(), config, device, ranks, in_place=in_place and weights != "bf16", kind=kind)
    return LoadedModel(files.path, Decoder(config, read, ranks=ranks), tokenizer)


def _check_weights(weights: WeightsName, dtype: DTypeName) -> None:
    if weights == "bf16" and dtype not in ("auto", "bfloat16"):
        raise ConfigError(f"weights='bf16' with dtype={dtype!r} is not supported: set dtype to 'bfloat16'")


def open_files(path: Path) -> ModelFiles:
    """The model in a directory or a .gguf file."""
    return GGUFModel(path) if path.is_file() else Directory(path)


def kept_bytes(files: ModelFiles, config: ModelConfig, weights: WeightsName) -> int | None:
    """Bytes that all matrices take on a CPU, or None where they are in the config's dtype.

    weights: see `EngineConfig.weights`.
    """
    if weights in QUANTISED:
        kind = QUANTISED[weights]
        return config.weights // kind.length * kind.size
    return None if weights == "bf16" else files.weight_bytes(config)


def config_of(files: ModelFiles, dtype: DTypeName, rope_scaling: RopeScaling = None) -> ModelConfig:
    """The configuration of a model; see `load`."""
    chosen = files.stored_dtype() if dtype == "auto" else dtype
    return ModelConfig.from_hf(files.config, chosen, rope_scaling, files.config_name)


def read_weights(
    checkpoint: Tensors,
    config: ModelConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    *,
    in_place: bool = True,
    kind: StoredKind | None = None,
) -> DecoderWeights:
    """Every weight of the decoder, in the config's dtype, the norms' in float32; of the layers' matrices a rank's part.

    Matrices in blocks stay so, unless `in_place` is False or a GPU's kernels do not read their kind. kind: of the
    blocks that other matrices are rounded to. Refuses a checkpoint that has more than the config implies, and numbers
    that are not finite in the config's dtype.
    """
    shape = config.shape
    reader = Reader(
        checkpoint,
        getattr(torch, shape.dtype),
        ranks,
        Fingerprint(config),
        Arena(device, PIECE if device.type == "cpu" else 0),
        in_place=in_place,
        kind=kind,
    )
    table = (shape.vocab_size, shape.hidden_size)
    only_head = config.tie_word_embeddings and HEAD in checkpoint.unread and EMBEDDING not in checkpoint.unread
    embedding = reader.matrix(HEAD if only_head else EMBEDDING, *table)
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(_layers(reader, config)),
        norm=reader.norm("model.norm.weight", shape.hidden_size),
        head=_head(reader, config, embedding),
        fingerprint=str(reader.fingerprint),
        files=checkpoint.files if reader.in_place and not reader.arena.on_gpu else (),
        rounded=kind,
    )
    _refuse_leftovers(checkpoint, config)
    return weights


def _head(reader: Reader, config: ModelConfig, embedding: Weight) -> Weight:
    """The head as transformers has it: tied to the embedding unless another one is stored."""
    checkpoint, table = reader.checkpoint, (config.shape.vocab_size, config.shape.hidden_size)
    stored = HEAD in checkpoint.unread
    if not config.tie_word_embeddings:
        try:
            return reader.matrix(HEAD, *table)
        except ModelFileError as error:
            advice = "" if stored else ": set tie_word_embeddings to true there if the model has one table for both"
            raise ModelFileError(f"{error}{advice}") from None
    if not stored or _equal(checkpoint.read(HEAD, table), checkpoint.read(EMBEDDING, table)):
        return embedding
    return reader.matrix(HEAD, *table)


def _equal(a: Weight, b: Weight) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def _layers(reader: Reader, config: ModelConfig) -> Iterator[LayerWeights]:
    """All layers; the log has how many were read, for programs that show it."""
    count = config.shape.num_layers
    for layer in range(count):
        yield _layer(reader, config, f"model.layers.{layer}.")
        LOG.debug("%d of %d layers are read", layer + 1, count)


def _layer(reader: Reader, config: ModelConfig, prefix: str) -> LayerWeights:
    shape = config.shape
    hidden, middle = shape.hidden_size, shape.intermediate_size
    queries, kv = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    heads = tuple((f"{attention}{name}_proj", rows) for name, rows in (("q", queries), ("k", kv), ("v", kv)))
    return LayerWeights(
        input_norm=reader.norm(f"{prefix}input_layernorm.weight", hidden),
        qkv=reader.stacked(((f"{name}.weight", rows) for name, rows in heads), hidden),
        qkv_bias=reader.bias(*((f"{name}.bias", rows) for name, rows in heads)) if config.qkv_bias else None,
        qk_norm=_qk_norm(reader, config, prefix) if config.qk_norm else None,
        output=reader.columns(f"{attention}o_proj.weight", hidden, queries),
        output_bias=reader.whole_bias(f"{attention}o_proj.bias", hidden) if config.output_bias else None,
        post_norm=reader.norm(f"{prefix}post_attention_layernorm.weight", hidden),
        gate_up=reader.stacked(((f"{mlp}{name}_proj.weight", middle) for name in ("gate", "up")), hidden),
        down=reader.columns(f"{mlp}down_proj.weight", hidden, middle),
        paired=reader.in_place and reader.checkpoint.paired(f"{attention}q_proj.weight") > 0,
    )


def _qk_norm(reader: Reader, config: ModelConfig, prefix: str) -> Tensor:
    shape = config.shape
    query = reader.norm(f"{prefix}self_attn.q_norm.weight", shape.head_dim)
    key = reader.norm(f"{prefix}self_attn.k_norm.weight", shape.head_dim)
    mine = shape.split(reader.ranks.size)
    return torch.cat((query.expand(mine.num_query_heads, -1), key.expand(mine.num_kv_heads, -1)))


def _refuse_leftovers(checkpoint: Tensors, config: ModelConfig) -> None:
    """Refuse checkpoints with unused tensors: then the model differs from its config.json."""
    leftover = sorted(name for name in checkpoint.unread if _RECOMPUTED not in name)
    if leftover:
        raise UnsupportedModelError(
            f"{checkpoint.path} has {len(leftover)} tensors that {config.architecture} does not use, "
            f"the first is {leftover[0]}"
        )
