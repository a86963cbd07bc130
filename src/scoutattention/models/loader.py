"""From a model's name to a decoder and its tokenizer."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import DTypeName, RopeScaling
from ..errors import ConfigError, KernelError, ModelError, ModelFileError, UnsupportedModelError
from ..kernels.reference_stored import expand
from ..runtime.memory import PIECE, Arena
from ..runtime.ranks import ALONE, Ranks
from ..runtime.stored import StoredMatrix, columns_of, stacked
from .config import ModelConfig
from .decoder import Decoder, DecoderWeights
from .fingerprint import Fingerprint
from .formats.gguf import GGUFModel
from .formats.model_files import Directory, ModelFiles
from .formats.safetensors import EMBEDDING, HEAD, Tensors
from .layers import LayerWeights, Weight
from .resolve import resolve
from .text import Tokenizer

_CHECKED_AT_ONCE = 1 << 20  # numbers that are copied and then looked at
_RECOMPUTED = ".rotary_emb."  # stored by old checkpoints; follows from config.json


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run, the name it was asked for by, and its directory or file."""

    name: str
    path: Path
    decoder: Decoder
    tokenizer: Tokenizer


def load(
    name: str,
    dtype: DTypeName = "auto",
    device: torch.device | None = None,
    ranks: Ranks = ALONE,
    rope_scaling: RopeScaling = None,
    *,
    in_place: bool = True,
) -> LoadedModel:
    """Load `smollm2`, a directory, a .gguf file or a name on the hub.

    dtype: of weights and KV cache; "auto" is the checkpoint's, and float32 for GGUF, whose weights stay as they are on
        a CPU.
    device: where the weights go; None is the CPU.
    ranks: who else loads the model; each takes its part of the layers.
    rope_scaling: how positions are rotated instead of as the model says; see `EngineConfig.rope_scaling`.
    in_place: whether matrices in a file's own blocks stay there on a CPU; a GPU's kernels do not read them.
    Raises ModelNotFoundError, ModelFileError or UnsupportedModelError, and ConfigError where the ranks cannot share the
    model.
    """
    path = resolve(name)
    files = open_files(path)
    tokenizer = files.tokenizer()
    config = config_of(files, dtype, rope_scaling)
    weights = read_weights(files.tensors(), config, device or torch.device("cpu"), ranks, in_place=in_place)
    return LoadedModel(name, path, Decoder(config, weights, ranks=ranks), tokenizer)


def open_files(path: Path) -> ModelFiles:
    """The model in a directory or a .gguf file."""
    return GGUFModel(path) if path.is_file() else Directory(path)


def read_config(path: Path, dtype: DTypeName, rope_scaling: RopeScaling = None) -> ModelConfig:
    """The configuration of the model in a directory or a .gguf file; see `load`."""
    return config_of(open_files(path), dtype, rope_scaling)


def config_of(files: ModelFiles, dtype: DTypeName, rope_scaling: RopeScaling = None) -> ModelConfig:
    """The configuration of a model; see `load`."""
    chosen = files.stored_dtype() if dtype == "auto" else dtype
    return ModelConfig.from_hf(files.config, chosen, rope_scaling, files.config_name)


def read_weights(
    checkpoint: Tensors, config: ModelConfig, device: torch.device, ranks: Ranks = ALONE, *, in_place: bool = True
) -> DecoderWeights:
    """Every weight of the decoder, in the config's dtype, the norms' in float32; of the layers' matrices a rank's part.

    Matrices in a file's own blocks stay where they are on a CPU, unless `in_place` is False. Refuses a checkpoint that
    has more than the config implies, and numbers that are not finite in the config's dtype.
    """
    shape = config.shape
    reader = _Reader(
        checkpoint,
        getattr(torch, shape.dtype),
        ranks,
        Fingerprint(config),
        Arena(device, PIECE if device.type == "cpu" else 0),
        in_place=in_place and device.type == "cpu",
    )
    table = (shape.vocab_size, shape.hidden_size)
    only_head = config.tie_word_embeddings and HEAD in checkpoint.unread and EMBEDDING not in checkpoint.unread
    embedding = reader.matrix(HEAD if only_head else EMBEDDING, *table)
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(reader, config, f"model.layers.{layer}.") for layer in range(shape.num_layers)),
        norm=reader.norm("model.norm.weight", shape.hidden_size),
        head=_head(reader, config, embedding),
        fingerprint=str(reader.fingerprint),
        files=checkpoint.files if reader.in_place else (),
    )
    _refuse_leftovers(checkpoint, config)
    return weights


def _head(reader: "_Reader", config: ModelConfig, embedding: Weight) -> Weight:
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


class _Reader(NamedTuple):
    checkpoint: Tensors
    dtype: torch.dtype
    ranks: Ranks
    fingerprint: Fingerprint
    arena: Arena
    in_place: bool
    """Whether matrices in blocks stay so."""

    def matrix(self, name: str, *shape: int) -> Weight:
        return self._taken(name, self._read(name, shape))

    def columns(self, name: str, *shape: int) -> Weight:
        """Of a matrix, the columns of this rank."""
        weight = self._read(name, shape)
        if isinstance(weight, Tensor):
            return self._taken(name, weight.chunk(self.ranks.size, 1)[self.ranks.index])
        if self.ranks.size == 1:
            return self._taken(name, weight)
        each = weight.columns // self.ranks.size
        try:
            mine = columns_of(weight, self.ranks.index * each, (self.ranks.index + 1) * each)
        except KernelError as error:
            raise ConfigError(
                f"{self.ranks.size} ranks cannot share the tensor {name} of {self.checkpoint.path}: {error}: set "
                "tensor_parallel_size to less"
            ) from error
        return self._taken(name, mine)

    def stacked(self, parts: Iterable[tuple[str, int]], width: int) -> Weight:
        """One matrix of several, given as name and rows, that lie below each other: this rank's rows of each."""
        mine = {name: self._rows(self._read(name, (rows, width))) for name, rows in parts}
        if self.in_place and all(isinstance(part, StoredMatrix) for part in mine.values()):
            return stacked(tuple(part for part in mine.values() if isinstance(part, StoredMatrix)))
        return self._joined(mine, (width,))

    def norm(self, name: str, width: int) -> Tensor:
        return self._filled(name, self._read(name, (width,)), torch.float32)

    def bias(self, *parts: tuple[str, int]) -> Tensor:
        """One bias of several, given as name and length: this rank's part of each."""
        return self._joined({name: self._rows(self._read(name, (length,))) for name, length in parts}, ())

    def whole_bias(self, name: str, length: int) -> Tensor:
        return self._filled(name, self._read(name, (length,)), self.dtype)

    def _joined(self, parts: Mapping[str, Weight], inner: tuple[int, ...]) -> Tensor:
        lengths = [part.shape[0] for part in parts.values()]
        result = self.arena.take((sum(lengths), *inner), self.dtype)
        for (name, part), target in zip(parts.items(), torch.split(result, lengths), strict=True):
            self._fill(name, target, part)
        return result

    def _taken(self, name: str, weight: Weight) -> Weight:
        kept = self.in_place and isinstance(weight, StoredMatrix)
        return weight if kept else self._filled(name, weight, self.dtype)

    def _filled(self, name: str, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The numbers in memory of their own: what the file's pages hold can go when all of it is read."""
        return self._fill(name, self.arena.take(tuple(weight.shape), dtype), weight)

    def _fill(self, name: str, target: Tensor, weight: Weight) -> Tensor:
        """Copy, and refuse numbers that are not finite then. A sum tells while the copy is in the processor's cache."""
        paired = 0 if self.in_place else self.checkpoint.paired(name)
        for start, piece in _pieces(weight, paired or 1, whole=target.is_cuda):
            part = target[start : start + len(piece)].copy_(_halves(piece, paired) if paired else piece)
            if not math.isfinite(part.sum()) and not part.isfinite().all():
                raise _not_finite(self.checkpoint.path, name, piece, target.dtype)
        return target

    def _rows(self, weight: Weight) -> Weight:
        each = weight.shape[0] // self.ranks.size
        return weight[self.ranks.index * each : (self.ranks.index + 1) * each]

    def _read(self, name: str, shape: tuple[int, ...]) -> Weight:
        """A whole tensor: a view of the file, of which memory has only what is then used."""
        weight = self.checkpoint.read(name, shape)
        self.fingerprint.see(weight, self.checkpoint.paired(name))
        return weight


def _pieces(weight: Weight, step: int, *, whole: bool) -> Iterator[tuple[int, Tensor]]:
    """Rows of a weight in turn, with the number of their first; a multiple of `step` rows at once.

    whole: a tensor comes as one piece.
    """
    rows, each = weight.shape[0], math.prod(weight.shape[1:])
    if isinstance(weight, Tensor) and whole:
        yield 0, weight
        return
    count = max(1, _CHECKED_AT_ONCE // each // step) * step
    for start in range(0, rows, count):
        chosen = slice(start, start + count)
        yield start, weight[chosen] if isinstance(weight, Tensor) else expand(weight, chosen, torch.float32)


def _halves(rows: Tensor, paired: int) -> Tensor:
    """Rows of heads of `paired` channels in pairs, as two halves each."""
    return rows.view(-1, paired // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _not_finite(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> ModelError:
    if not tensor.isfinite().all():
        return ModelFileError(
            f"{path}: tensor {name} has numbers that are not finite, so the file is damaged: get it again"
        )
    word = str(dtype).removeprefix("torch.")
    wider = "'float32' or 'bfloat16'" if dtype == torch.float16 else "'float32'"
    return UnsupportedModelError(
        f"{path}: tensor {name} has the number {float(tensor.abs().max()):g}, and {word} ends at "
        f"{torch.finfo(dtype).max:g}: set dtype (--dtype) to {wider}"
    )


def _layer(reader: _Reader, config: ModelConfig, prefix: str) -> LayerWeights:
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
            f"{checkpoint.path} has {len(leftover)} tensors that {config.architecture} does not use, "
            f"the first is {leftover[0]}"
        )
