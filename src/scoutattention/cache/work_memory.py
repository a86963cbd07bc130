"""What a device needs beside its pools: the tensors of the prompt that is being read, and those of a decode step.

Plain arithmetic, without PyTorch. One prompt is read at a time, in pieces, one layer after the other. What is done with
a layer's keys and inputs beside the next layer, on the second stream, takes memory of its own.
"""

from typing import NamedTuple

from ..shape import ModelShape

PIECE = 2048
"""Tokens of a piece; `engine/runner.py`."""
TRIED, HELD_OUT = (2048, 4096), 8
"""Positions on which scouts are tried, and one in so many that judges; `attention/prompt/trial.py`."""
GRAPHED = 8192
"""Tokens of a prompt up to which fits are captured; `runtime/layer_graphs.py`."""
VOTERS, SCORED_BYTES = 32, 64 << 20
"""Positions that choose the first residents, and bytes of their scores; `attention/prompt/prefill.py`."""
WIDE = 4
"""Bytes of a number in float32."""
SOLVED, MOMENTS = 5, 10
"""Square matrices that a fit has at once: of a correction, and of the main dimensions of each KV head."""
PER_LOGIT = 56
"""Bytes of a step for each token that may come next: logits, their order and sums, and what penalties are made of."""
PER_BLOCK = 64
"""Bytes of a step for each block and KV head: its number, page and wish, and their lists; scores come on top."""
LIBRARIES = 96 << 20
"""Bytes that libraries take when they are first used, beside PyTorch's own memory, as on an H200."""


class Reading(NamedTuple):
    """What is done with a prompt of so many tokens beside attending to it.

    fitted: digests have main dimensions, which are fitted to the prompt.
    lookahead: layers that scouts are ahead, which are then tried on it; None where every block is resident.
    corrected: corrections of the scouts are fitted.
    """

    tokens: int
    fitted: bool
    lookahead: int | None
    corrected: bool


def tried(tokens: int) -> int:
    """Positions on which scouts are tried of a prompt of so many tokens, or of a shorter one, at most."""
    least, most = TRIED
    return min(tokens, max(least, min(tokens // 4, most)))


def prompt_bytes(shape: ModelShape, reading: Reading, ranks: int = 1) -> int:
    """Bytes of one rank for a prompt.   shape: of its part of the model.   ranks: how many share the model.

    Of all tokens: the residual stream, rotary tables and numbers, and keys and values of two layers, because the
    second stream may be one layer behind. Of the tried positions: inputs and queries, of two layers too, and the inputs
    that later scouts are made from. Of a piece: the tensors of a layer at its widest place, between both parts of the
    feed-forward layer. Then the most that the second stream has.
    """
    tokens, size, width = reading.tokens, shape.dtype_bytes, shape.hidden_size
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    whole = tokens * (width * size + 2 * WIDE * shape.head_dim + 8 + 4 * keys * size)
    inputs = 1 if reading.lookahead is None else 2 + reading.lookahead
    samples = tried(tokens) * size * (inputs * width + 2 * queries)
    layer = 2 * queries + 2 * keys + 5 * width + 3 * shape.intermediate_size
    return whole + samples + min(tokens, PIECE) * layer * size + _beside_bytes(shape, reading, ranks)


def _beside_bytes(shape: ModelShape, reading: Reading, ranks: int) -> int:
    """The most that the second stream has at once: what it does with a layer comes one after the other.

    Fits of a short prompt come on top once more: they are captured as graphs, which have memory of their own, and
    copies of their inputs.
    """
    tokens, positions, size = reading.tokens, tried(reading.tokens), shape.dtype_bytes
    queries = positions * shape.num_query_heads * shape.head_dim
    keys = tokens * shape.num_kv_heads * shape.head_dim
    most, graphs, inputs = 2 * keys * size, 0, 0  # in the order of pages
    if reading.fitted:  # two of the keys, the queries that they are for, and moments
        graphs = WIDE * (queries + max(queries, 2 * keys) + MOMENTS * shape.num_kv_heads * shape.head_dim**2)
        most, inputs = max(most, graphs), (queries + keys) * size
    if reading.lookahead is not None:
        most = max(most, _residents_bytes(shape, tokens))
    if reading.lookahead:
        most = max(most, -(-queries // HELD_OUT) * (2 * size + 5 * WIDE))  # scouts beside the queries that judge them
    if reading.lookahead and reading.corrected:
        fit = CorrectionFit(positions - -(-positions // HELD_OUT), shape, ranks)
        graphs = max(graphs, fit.inside)
        most, inputs = max(most, fit.inside + 3 * fit.inputs), inputs + 2 * fit.inputs + fit.weight * size
    return most + (graphs + inputs if tokens <= GRAPHED else 0)


def _residents_bytes(shape: ModelShape, tokens: int) -> int:
    """What finds the first residents: scores of some KV heads at a time, three such tensors, and the heads' keys."""
    voters = shape.group_size * VOTERS
    head = WIDE * voters * tokens
    scores = min(shape.num_kv_heads * head, max(head, SCORED_BYTES))
    return 3 * scores + scores * shape.head_dim // voters + VOTERS * tokens


class CorrectionFit(NamedTuple):
    """The fit of a correction.   positions: that it is fitted to.   shape: of one rank's part of the model."""

    positions: int
    shape: ModelShape
    ranks: int

    @property
    def inputs(self) -> int:
        """Bytes of the inputs; of those that are wanted, and of the change, there are as many."""
        return self.positions * self.shape.hidden_size * self.shape.dtype_bytes

    @property
    def weight(self) -> int:
        """Numbers of the projection of all ranks' queries."""
        return self.shape.hidden_size * self.shape.num_query_heads * self.shape.head_dim * self.ranks

    @property
    def inside(self) -> int:
        """Bytes that it takes itself: inputs, change and weight in float32, and moments."""
        wide = 2 * WIDE * self.inputs // self.shape.dtype_bytes if self.shape.dtype_bytes < WIDE else 0
        return wide + WIDE * self.weight + SOLVED * WIDE * min(self.positions, self.shape.hidden_size) ** 2


def step_bytes(shape: ModelShape, block_size: int, rows: int, tokens: int) -> int:
    """Bytes of one rank for a decode step of so many rows, each with so many tokens at most.

    Logits and what is drawn from them, the tensors of a layer, lists and scores of all blocks, and the open blocks,
    which are copied when they are full.
    """
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = shape.dtype_bytes * (3 * queries + 2 * keys + 6 * shape.hidden_size + 3 * shape.intermediate_size)
    lists = -(-tokens // block_size) * shape.num_kv_heads * (PER_BLOCK + WIDE * shape.group_size)
    return rows * (PER_LOGIT * shape.vocab_size + layer + lists + shape.block_bytes(block_size))
