"""Costs of a decode step on a computer whose CPU is the device: what a CPU reaches of its peaks.

With slots the CPU is host and device at once. Its worker threads attend to far blocks beside the main thread's work, on
the same cores.
"""

from ..cache.memory_plan import correction_dims
from ..hardware.measure import Pace, PerSequence
from .computers import Computer
from .work import (
    Cores,
    Costs,
    Design,
    LayerCosts,
    Work,
    layer_bytes,
    matrix_parts,
    page_part,
    read_rate,
    scan_bytes,
    slot_tokens,
    weight_bytes,
)

PACE = Pace(
    flops=230e9,
    step=PerSequence(178e-6, 11e-6),
    full=PerSequence(33e-6, 6e-6),
    choice=PerSequence(15e-6, 0.2e-6),
    slots=PerSequence(74e-6, 1.2e-6),
    scout=PerSequence(81e-6, 8.5e-6),
)
"""Of a CPU that was not measured: that of an AMD EPYC (Zen 5, AVX-512), docs/lab/2026-11-27-planner-pace.md."""
REAL = 1.7
"""What `choice`, `slots` and `scout` take in a real model, over a tiny one: it has more blocks and larger scouts."""
PRODUCTS, ATTENTION = 0.68, 0.6
"""Parts of the rate at which threads read memory that products and attention reach."""
CHANNELS_PER_THREAD = 1 << 17
"""As in csrc/tasks/partial.cpp: keys' channels for which a far call is given one more thread."""
NEAR = 0.15
"""With slots: part of what they add to a layer that comes with near attention."""
BLOCK_S = 0.08e-6
"""With slots: of choosing, for each block of a KV head."""
FAR, FAR_S, TAKEN_S = 30, 1e-6, 0.17e-6
"""With slots: operations for each number of a key or value, in far attention; seconds of a far call, and of waiting for
one that has ended."""
LATE, LATE_POWER = 0.8, 1.75
"""See `late_part`. `REAL`, `ATTENTION` and the figures of slots are fitted to steps of SmolLM2: the lab notes."""


def on_cpu(design: Design, work: Work, computer: Computer) -> Costs:
    """What a step of a design costs on a CPU."""
    return _with_slots(work, computer) if design == "scout-slots" else _in_one_memory(design, work, computer)


def _in_one_memory(design: Design, work: Work, computer: Computer) -> Costs:
    """Everything in one memory: nothing is far, and a budget saves reading."""
    shape, scout, pace, rate = work.shape, work.scout, _pace(computer), read_rate(computer.host)
    before, after, head = (_products(numbers, work, computer) for numbers in matrix_parts(shape))
    tokens: float = work.context if design == "full" else min(work.context, scout.budget or work.context)
    near = layer_bytes(work, tokens) * page_part(work) / (ATTENTION * rate)
    judge = 0.0
    if design != "full" and tokens < work.context:
        judge = REAL * pace.choice.of(work.batch) + sum(scan_bytes(work)) / (ATTENTION * rate)
    layer = LayerCosts(before + pace.full.of(work.batch), 0, judge, near, 0, after, 0, 0, 0, 0)
    return Costs(layer, head + pace.step.of(work.batch))


def late_part(work: Work) -> float:
    """Blocks that the guard attends to again, as a part of the chosen ones: the more of these are far, the more."""
    return LATE * work.share**LATE_POWER if work.scout.lookahead and work.scout.guard is not None else 0.0


def _with_slots(work: Work, computer: Computer) -> Costs:
    """Two memories in one: every slot is attended to, and far blocks by workers. All as in one if all have slots."""
    if not work.has_absent:
        return _in_one_memory("scout", work, computer)
    shape, scout, pace, rate = work.shape, work.scout, _pace(computer), read_rate(computer.host)
    before, after, head = (_products(numbers, work, computer) for numbers in matrix_parts(shape))
    scan, candidates = (size / (ATTENTION * rate) for size in scan_bytes(work))
    near = layer_bytes(work, slot_tokens(work) + scout.block_size / 2) / (ATTENTION * rate)
    predicts = scout.lookahead > 0
    fixes = work.batch * 2 * shape.hidden_size * correction_dims(shape, scout) * shape.dtype_bytes
    query = _products(shape.hidden_size * shape.num_query_heads * shape.head_dim, work, computer)
    query += fixes / (PRODUCTS * rate)
    choice = BLOCK_S * work.batch * shape.num_kv_heads * work.context / scout.block_size
    layer, added = pace.full.of(work.batch), REAL * pace.slots.of(work.batch)
    ahead = REAL * pace.scout.of(work.batch) * predicts
    call, attend = choice + (1 - NEAR) * added, NEAR * added
    cores, threads = computer.host.cores, _far_threads(work, computer.host.cores)
    numbers = layer_bytes(work, (scout.budget_blocks or 0) * scout.block_size) / shape.dtype_bytes
    chosen = numbers * shape.dtype_bytes * page_part(work)
    late = late_part(work) * chosen / (ATTENTION * rate)
    alone = layer + attend + call + ahead
    busy = before + after + near + scan + candidates + query * predicts + late
    return Costs(
        LayerCosts(
            before=before + layer,
            ahead=scan + query * predicts + ahead,
            judge=candidates + call,
            near=near + attend,
            late=late,
            after=after,
            far_call=FAR_S,
            far=chosen / rate + FAR * numbers / (threads * pace.flops),
            fetch=0,
            recall=0,
        ),
        head + pace.step.of(work.batch),
        _cores(cores, threads, alone / (alone + busy)),
    )


def _pace(computer: Computer) -> Pace:
    return computer.host.pace or PACE


def _number_bytes(work: Work, computer: Computer) -> float:
    return weight_bytes(work, computer) / work.shape.matrix_numbers(tied=work.tied)


def _products(numbers: int, work: Work, computer: Computer) -> float:
    """Seconds of products with so many weights: bound by reading them, or, with many sequences, by computing."""
    read = numbers * _number_bytes(work, computer) / (PRODUCTS * read_rate(computer.host))
    return max(read, 2 * numbers * work.batch / (computer.host.cores * _pace(computer).flops))


def _far_threads(work: Work, cores: int) -> int:
    """Cores on which a far call runs: as many as its threads, but the main thread keeps its own."""
    shape, tokens = work.shape, work.share * (work.scout.budget_blocks or 0) * work.scout.block_size
    channels = work.batch * tokens * shape.num_kv_heads * shape.head_dim
    return min(max(1, cores - 1), 1 + int(channels) // CHANNELS_PER_THREAD)


def _cores(cores: int, taken: int, alone: float) -> Cores:
    """How a far call on some cores slows the device's work down.

    alone: part of the device's time in which the main thread works alone. Else it works with all workers that are free.
    """
    if cores == 1:
        return Cores(beside=0.5, slowed=0.5, helped=1.0, taken=TAKEN_S)
    slowed = 1 / (alone + (1 - alone) * cores / (cores - taken))
    return Cores(beside=1.0, slowed=slowed, helped=(taken + 1) / taken, taken=TAKEN_S)
