"""One decoder for every supported family; attention is an argument, so this file knows no cache and no method."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ..attention.predict import Adjust, QueryModel
from ..attention.step import Attend, AttendInTurns, telling
from ..kernels import reference_rows
from ..kernels.reference_rows import HeadPlacing, LayerEnd, RowCorrection
from ..runtime.ranks import ALONE, Ranks, gathered
from ..runtime.stored import StoredKind, StoredMatrix
from ..runtime.stored_file import StoredFile
from ..types import Rope
from .config import ModelConfig
from .layers import LayerOps, LayerWeights, RowOps, Weight
from .rope import RopeConfig, inverse_frequencies, rope_steps

FEW_ROWS = 16
"""Rows up to which the native kernels for few rows are used; beyond, PyTorch's products are faster."""


@dataclass(frozen=True)
class DecoderWeights:
    """All weights: embedding and head [vocab, E] (one storage where they are tied), the layers, the final norm [E].

    Of a model that ranks share, the layers' matrices are one rank's part.
    fingerprint: names the whole model, see `fingerprint.py`.
    files: that hold matrices in blocks; they must not change while the decoder is in use.
    rounded: what matrices were rounded to as they were read, which the fingerprint does not tell; None where not.
    """

    embedding: Weight
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Weight
    fingerprint: str
    files: tuple[StoredFile, ...] = ()
    rounded: StoredKind | None = None


class Rotary:
    """The rotary tables of a model on its device."""

    def __init__(self, rope: RopeConfig, head_dim: int, device: torch.device) -> None:
        self._rope = rope
        self._steps = rope_steps(head_dim).to(device)
        self._inverse = inverse_frequencies(rope, head_dim).to(device)
        self._beyond = inverse_frequencies(rope, head_dim, beyond=True).to(device)

    def tables(self, positions: Tensor, length: int | None = None) -> Rope:
        """Cosines and sines, float32 [T, D] each, of positions, int64 [T].

        length: of the sequence that is read at once; None where each position is the last one of a sequence.
        """
        inverse = self._inverse
        if self._rope.kind in ("dynamic", "longrope"):
            lengths = positions + 1 if length is None else torch.full_like(positions, length)
            beyond = self._grown(lengths) if self._rope.kind == "dynamic" else self._beyond
            inverse = torch.where((lengths > self._rope.original_max_positions)[:, None], beyond, inverse)
        angles = (positions.float()[:, None] * inverse).repeat(1, 2)
        cos, sin, factor = angles.cos(), angles.sin(), self._rope.attention_factor
        return Rope(cos, sin) if factor == 1.0 else Rope(cos * factor, sin * factor)

    def variant(self, length: int) -> int:
        """A number: tables of sequences of these lengths are alike at equal positions where the numbers are equal."""
        if length <= self._rope.original_max_positions or self._rope.kind not in ("dynamic", "longrope"):
            return 0
        return length if self._rope.kind == "dynamic" else 1

    def _grown(self, lengths: Tensor) -> Tensor:
        """Dynamic scaling: the frequencies of sequences of these lengths, int64 [T]: [T, D / 2]."""
        rope, head_dim = self._rope, 2 * len(self._steps)
        growth = (rope.factor * lengths / rope.original_max_positions) - (rope.factor - 1)
        base = rope.theta * growth.clamp(min=1.0) ** (head_dim / (head_dim - 2))
        return 1.0 / base[:, None] ** self._steps


class Decoder(QueryModel):
    """A stack of layers, stateless between calls: the same code runs a prompt and a batch of single tokens.

    config: of the model.   shape: of this rank's part of it, as are the heads H of every method.
    dtype: of the KV cache, of all weights but norms and those in a file's own blocks, and of what a prompt computes.
    few_rows, many_rows: the kernels that compute few rows, and those of a prompt.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: DecoderWeights,
        few_rows: RowOps = reference_rows,
        many_rows: RowOps = reference_rows,
        most: int = FEW_ROWS,
        ranks: Ranks = ALONE,
        whole: LayerOps | None = None,
    ) -> None:
        """`few_rows`: what computes at most `most` rows.   ranks: who has the other parts of the layers.

        whole: what computes the parts of a layer of so few rows at once, where it can.
        """
        self.config = config
        self.shape = config.shape.split(ranks.size)
        self.weights = weights
        self.ranks = ranks
        self.few_rows = few_rows
        self.many_rows = many_rows
        self.dtype: torch.dtype = getattr(torch, config.shape.dtype)
        self._most = most
        self._whole = whole
        self._rotary = Rotary(config.rope, config.shape.head_dim, weights.norm.device)

    def with_rows(
        self, few: RowOps, many: RowOps = reference_rows, most: int = FEW_ROWS, whole: LayerOps | None = None
    ) -> "Decoder":
        """The same decoder, with other kernels for batches of at most `most` rows, and for larger ones."""
        return Decoder(self.config, self.weights, few, many, most, self.ranks, whole)

    @property
    def fingerprint(self) -> str:
        """A name for the whole model's weights."""
        return self.weights.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where tokens and positions must be."""
        return self.weights.norm.device

    def rope(self, positions: Tensor, length: int | None = None) -> Rope:
        """Rotary tables of positions, int64 [T]: cos and sin, float32 [T, D] each.

        length: of the sequence that is read at once, on which some scalings depend; None where each position is the
        last one of a sequence.
        """
        return self._rotary.tables(positions, length)

    def frequencies_of(self, length: int) -> int:
        """A number: two prompts of these lengths rotate equal positions alike where their numbers are equal."""
        return self._rotary.variant(length)

    def forward(self, token_ids: Tensor, rope: Rope, attend: Attend) -> Tensor:
        """Run tokens, int64 [T], through all layers at once; returns final-normed hidden states [T, E].

        T is a batch of sequences with one token each, or a prompt: only `attend` knows which. See `read`, too.
        Raises ModelFileError where a file that holds weights was changed.
        """
        x = self._embedded(token_ids)
        normed = self.normed_input(0, x)
        for layer in range(self.shape.num_layers):
            x, normed = self.finish_layer(layer, x, attend(layer, *self.project(layer, normed, rope), x))
        return normed

    def read(
        self, token_ids: Tensor, rope: Rope, attend: AttendInTurns, size: int, first: int | None = None
    ) -> Generator[int, None, Tensor]:
        """Run a prompt's tokens, int64 [T], through all layers, in pieces of `size` tokens.

        first: tokens that `attend` gets first, if more; the rest of a layer takes `size` of them at a time. It yields
        behind so many, and wherever `attend` does: how much is done, in tokens. A layer reads all pieces, in order,
        before the next layer does. Returns the last layer's output [T, E], for `normed_output`.
        """
        x, count, done = self._embedded(token_ids), len(token_ids), 0
        bounds = [0, *range(first or size, count, size), count]
        for layer in range(self.shape.num_layers):
            for start, end in pairwise(bounds):
                inputs, place = x[start:end], Rope(*(part[start:end] for part in rope))
                turns = attend(layer, *self.project(layer, self.normed_input(layer, inputs), place), inputs)
                for updated in self._update_all(layer, inputs, (yield from telling(done, turns)), size):
                    done = (layer * count + start + updated) // self.shape.num_layers
                    yield done
        return x

    def _update_all(self, layer: int, x: Tensor, out: Tensor, size: int) -> Iterator[int]:
        """Turn a layer's inputs x [T, E] to its outputs in place, `size` at a time; yields how many are done."""
        for start in range(0, len(x), size):
            some = slice(start, min(start + size, len(x)))
            before, change = self.update(layer, x[some], out[some])
            torch.add(before, change, out=x[some])
            yield some.stop

    def normed_output(self, x: Tensor) -> Tensor:
        """Final-normed hidden states of the last layer's outputs [n, E]: [n, E]."""
        return self._ops(x).rms_norm(x, self.weights.norm, self.config.rms_norm_eps)

    def project(self, layer: int, normed: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's q [T, H, G, D], k [T, H, D] and v [T, H, D], contiguous, from its normed input [T, E]."""
        weights, shape = self.weights.layers[layer], self.shape
        q, k, v = self._placed(weights, normed, rope, shape.num_query_heads + 2 * shape.num_kv_heads)
        q = q.reshape(-1, shape.num_kv_heads, shape.group_size, shape.head_dim)
        return q.contiguous(), k.to(self.dtype).contiguous(), v.to(self.dtype).contiguous()

    def update(self, layer: int, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream after a layer's attention, [T, E], and what its feed-forward part adds.

        x: the layer's input [T, E].   out: [T, H, G, D], what was attended to.
        """
        weights, ops = self.weights.layers[layer], self._ops(x)
        attended = self.ranks.sum(self._product(out.flatten(1), weights.output))
        if weights.output_bias is not None:
            attended += weights.output_bias
        x, normed = ops.add_norm(x, attended, weights.post_norm, self.config.rms_norm_eps)
        return x, self.ranks.sum(self._product(ops.swiglu(self._product(normed, weights.gate_up)), weights.down))

    def finish_layer(self, layer: int, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream after a layer, see `update`, and its norm by the weight that comes next."""
        weights, norm, eps = self.weights.layers[layer], self._norm_after(layer), self.config.rms_norm_eps
        matrices = weights.output, weights.gate_up, weights.down
        whole = self._whole_of(x, *matrices)
        if whole is not None and self.ranks.size == 1 and weights.output_bias is None:
            return whole.end_layer(
                x, out.flatten(1), LayerEnd(matrices[0], weights.post_norm, *matrices[1:], norm, eps)
            )
        x, change = self.update(layer, x, out)
        return self._ops(x).add_norm(x, change, norm, eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final-normed hidden states [n, E]: float32 [n, vocab]."""
        return self._product(hidden, self.weights.head).float()

    @override
    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        return self._ops(x).rms_norm(x, self.weights.layers[layer].input_norm, self.config.rms_norm_eps)

    @override
    def query_weight(self, layer: int) -> Tensor:
        weights, shape = self.weights.layers[layer], self.shape
        mine = weights.qkv[: shape.num_query_heads * shape.head_dim]
        if isinstance(mine, StoredMatrix):
            mine = self.few_rows.expand(mine, slice(None), torch.float32)
        if weights.paired:
            mine = mine.view(shape.num_query_heads, -1, 2, shape.hidden_size).transpose(1, 2).reshape(mine.shape)
        return gathered(self.ranks, mine).flatten(0, 1)

    @override
    def project_query(self, layer: int, x: Tensor, rope: Rope, adjust: Adjust | None = None) -> Tensor:
        normed = self.normed_input(layer, x)
        return self._queries(layer, normed if adjust is None else adjust(normed), rope)

    @override
    def project_corrected(self, layer: int, x: Tensor, rope: Rope, by: Sequence[RowCorrection]) -> Tensor:
        weight = self.weights.layers[layer].input_norm
        return self._queries(layer, self._ops(x).corrected_norm(x, weight, self.config.rms_norm_eps, by), rope)

    def _queries(self, layer: int, normed: Tensor, rope: Rope) -> Tensor:
        shape = self.shape
        q, _, _ = self._placed(self.weights.layers[layer], normed, rope, shape.num_query_heads)
        return q.view(-1, shape.num_kv_heads, shape.group_size, shape.head_dim)

    def _placed(self, weights: LayerWeights, normed: Tensor, rope: Rope, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [T, heads, D] each, of the first `count` heads that a layer projects."""
        shape, ops = self.shape, self._ops(normed)
        rows = count * shape.head_dim
        bias = None if weights.qkv_bias is None else weights.qkv_bias[:rows]
        how = HeadPlacing(
            shape.num_query_heads, bias, weights.qk_norm, self.config.rms_norm_eps, rope, paired=weights.paired
        )
        weight = weights.qkv if rows == weights.qkv.shape[0] else weights.qkv[:rows]
        whole = self._whole_of(normed, weight)
        if whole is not None:
            return whole.project_heads(normed, weight, how)
        return ops.place_heads(self._product(normed, weight).view(-1, count, shape.head_dim), how)

    def _norm_after(self, layer: int) -> Tensor:
        """The weight of the norm that comes after a layer: the next one's, or the last."""
        last = layer == self.shape.num_layers - 1
        return self.weights.norm if last else self.weights.layers[layer + 1].input_norm

    def _embedded(self, token_ids: Tensor) -> Tensor:
        """The embeddings of tokens, int64 [T]: [T, E]. Raises ModelFileError where a file of weights was changed."""
        for file in self.weights.files:
            file.check()
        return rows_of(self.weights.embedding, token_ids, self.dtype, self.few_rows)

    def _product(self, x: Tensor, weight: Weight) -> Tensor:
        """Rows x [T, A] times the transpose of weight [B, A]; the kernels for few rows expand blocks for many, too."""
        return (self.few_rows if isinstance(weight, StoredMatrix) else self._ops(x)).linear(x, weight)

    def _whole_of(self, x: Tensor, *matrices: Weight) -> LayerOps | None:
        """What computes rows with these matrices at once; None where a matrix has its columns in another order."""
        ordered = any(isinstance(one, StoredMatrix) and one.order is not None for one in matrices)
        return None if ordered or x.shape[0] > self._most else self._whole

    def _ops(self, x: Tensor) -> RowOps:
        return self.few_rows if x.shape[0] <= self._most else self.many_rows


def rows_of(table: Weight, rows: Tensor, dtype: torch.dtype, ops: RowOps = reference_rows) -> Tensor:
    """Rows, int64 [T], of a table [N, E]: [T, E].   dtype: of the result where the table is stored in blocks."""
    return ops.expand(table, rows, dtype) if isinstance(table, StoredMatrix) else F.embedding(rows, table)
