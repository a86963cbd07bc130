"""What a device needs beside its pools: the tensors of the prompt that is being read, and those of a decode step.

Plain arithmetic, without PyTorch. One prompt is read at a time, in pieces, one layer after the other. What is done with
the keys and inputs of some layers beside the next ones, on the second stream, takes memory of its own.
"""

from typing import NamedTuple

from ..shape import ModelShape

PIECE, FIRST = 2048, 8192
"""Tokens that a layer reads at once, and that it attends to at once at the beginning; `engine/runner.py`."""
TRIED, HELD_OUT = (2048, 4096), 8
"""Positions on which scouts are tried, and one in so many that judges; `attention/prompt/trial.py`."""
TOGETHER, MOST_LAYERS = 32_768, 4
"""Tokens of all layers whose fits are done together, and such layers at most; see `layers_together`."""
VOTERS, SCORED_BYTES = 32, 64 << 20
"""Positions that choose the first residents, and bytes of their scores; `attention/prompt/prefill.py`."""
WIDE = 4
"""Bytes of a number in float32."""
SOLVED, MOMENTS = 3, 10
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

    @property
    def together(self) -> int:
        """Layers that are looked into together."""
        return layers_together(self.tokens, fitted=self.fitted or self.lookahead is not None)


def tried(tokens: int) -> int:
    """Positions on which scouts are tried of a prompt of so many tokens, or of a shorter one, at most."""
    least, most = TRIED
    return min(tokens, max(least, min(tokens // 4, most)))


def layers_together(tokens: int, *, fitted: bool) -> int:
    """Layers of a prompt whose bases and corrections are fitted together: a fit is a long chain of small kernels.

    A GPU starts such a kernel where a large one of the next layers ends. So a chain for several layers ends as early as
    one for a single layer.   fitted: whether there is anything to fit.
    """
    return max(1, min(MOST_LAYERS, TOGETHER // max(1, tokens))) if fitted else 1


def prompts_bytes(shape: ModelShape, reading: Reading, ranks: int = 1) -> int:
    """Bytes of one rank for a prompt, or for a shorter one, of which more layers are fitted together."""
    lengths = {TOGETHER // layers for layers in range(1, MOST_LAYERS + 1)}
    shorter = [reading._replace(tokens=tokens) for tokens in lengths if tokens < reading.tokens]
    return max(prompt_bytes(shape, each, ranks) for each in (reading, *shorter))


def prompt_bytes(shape: ModelShape, reading: Reading, ranks: int = 1) -> int:
    """Bytes of one rank for a prompt.   shape: of its part of the model.   ranks: how many share the model.

    Of all tokens: the residual stream, rotary tables, and keys and values of the layers that wait and of those that the
    second stream works on, as many. Of the tried positions: inputs and queries of them, and the inputs that later
    scouts are made from. Of the first tokens: queries, keys and values, and a copy of what is tried; or what was
    attended to and, of a piece, the tensors between both parts of the feed-forward layer. Then the most that the second
    stream has.
    """
    tokens, size, width = reading.tokens, shape.dtype_bytes, shape.hidden_size
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layers = reading.together
    whole = tokens * (width * size + 2 * WIDE * shape.head_dim + 8 + 2 * layers * 2 * keys * size)
    inputs = layers if reading.lookahead is None else 2 * layers + reading.lookahead
    samples = tried(tokens) * size * (inputs * width + 2 * layers * queries)
    first, piece = min(tokens, FIRST), min(tokens, PIECE)
    projected = first * (width + 2 * (queries + 2 * keys)) + tried(tokens) * (width + queries)
    updating = first * queries + piece * (2 * width + 3 * shape.intermediate_size)
    return whole + samples + max(projected, updating) * size + _beside_bytes(shape, reading, ranks)


def _beside_bytes(shape: ModelShape, reading: Reading, ranks: int) -> int:
    """The most that the second stream has at once: what it does with some layers comes one after the other."""
    tokens, positions, size = reading.tokens, tried(reading.tokens), shape.dtype_bytes
    layers = reading.together
    queries = positions * shape.num_query_heads * shape.head_dim
    keys = tokens * shape.num_kv_heads * shape.head_dim
    most = 2 * keys * size  # in the order of pages
    if reading.fitted:  # keys, the queries that they are for, in both dtypes, and moments
        moments = layers * MOMENTS * shape.num_kv_heads * shape.head_dim**2
        most = max(most, WIDE * (queries + keys + moments) + size * max(queries, keys))
    if reading.lookahead is not None:
        most = max(most, _residents_bytes(shape, tokens))
    if reading.lookahead:
        judges = layers * -(-queries // HELD_OUT) * (size + WIDE)
        most = max(most, 4 * judges)  # scouts beside the queries that judge them
        if reading.corrected:
            most = max(most, judges + fits_bytes(shape, positions - -(-positions // HELD_OUT), layers, ranks))
    return most


def fits_bytes(shape: ModelShape, positions: int, layers: int, ranks: int) -> int:
    """Bytes of the fits of some layers' corrections: inputs, changes, and what they are solved by.

    positions: that each is fitted to.
    """
    width, size = shape.hidden_size, shape.dtype_bytes
    least, queries = min(positions, width), shape.num_query_heads * shape.head_dim * ranks
    inputs = 2 * layers * positions * width * size
    one = WIDE * width * max(positions, queries)  # the inputs of a layer, or its weight, in float32
    return inputs + one + WIDE * least * (layers * (SOLVED * least + queries) + queries)


def _residents_bytes(shape: ModelShape, tokens: int) -> int:
    """What finds the first residents: scores of some KV heads at a time, three such tensors, and the heads' keys."""
    voters = shape.group_size * VOTERS
    head = WIDE * voters * tokens
    scores = min(shape.num_kv_heads * head, max(head, SCORED_BYTES))
    return 3 * scores + scores * shape.head_dim // voters + VOTERS * tokens


def step_bytes(shape: ModelShape, block_size: int, rows: int, tokens: int) -> int:
    """Bytes of one rank for a decode step of so many rows, each with so many tokens at most.

    Logits and what is drawn from them, the tensors of a layer, lists and scores of all blocks, and the open blocks,
    which are copied when they are full.
    """
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    layer = shape.dtype_bytes * (3 * queries + 2 * keys + 6 * shape.hidden_size + 3 * shape.intermediate_size)
    lists = -(-tokens // block_size) * shape.num_kv_heads * (PER_BLOCK + WIDE * shape.group_size)
    return rows * (PER_LOGIT * shape.vocab_size + layer + lists + shape.block_bytes(block_size))
