"""Costs of a decode step on a computer whose CPU is the device: what a CPU reaches of its peaks.

With slots the CPU is host and device at once. Its worker threads attend to far blocks beside the main thread's work, on
the same cores.
"""

from typing import NamedTuple

from ..cache.memory_plan import correction_dims
from ..hardware.measure import Pace, PerLayer
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

PACE = Pace(65e9, PerLayer(100e-6, 0), PerLayer(150e-6, 0), PerLayer(146e-6, 96e-6), PerLayer(280e-6, 70e-6))
"""Of a CPU that was not measured."""
IN_NUMBERS = 2.3
"""Operations per second of products with float32 and bfloat16 weights, over those with weights in blocks: the lab notes
on matrix products and on stored weights."""
CHANNELS_PER_THREAD = 1 << 17
"""As in csrc/tasks/partial.cpp: keys' channels for which a far call is given one more thread."""


class Reach(NamedTuple):
    """What a CPU that is the device reaches, of what its threads read.   attention: with blocks that are scattered."""

    products: float
    attention: float


CPU, CPU_IN_BLOCKS = Reach(products=0.68, attention=0.63), Reach(products=0.68, attention=0.5)
"""docs/lab/2026-11-23-cpu-decode-step.md, and with weights in few bits docs/lab/2026-11-26-stored-weights.md."""
NEAR = 0.15
"""With slots: of the seconds that they add to a layer, those that follow near attention."""
BLOCK_S = 0.08e-6
"""With slots: of choosing, for each block of a KV head."""
FAR, FAR_S, TAKEN_S = 0.5, 2e-6, 0.2e-6
"""With slots: of what threads read, that far attention reaches; of a far call; of waiting for one that has ended."""
LATE, LATE_POWER = 0.8, 1.75
"""See `late_part`. These figures of slots are fitted to steps of SmolLM2 in float32 after 7,936 tokens, two cores that
read 30 to 35 GB/s: docs/lab/2026-11-26-planner-slots-on-a-cpu.md."""


def on_cpu(design: Design, work: Work, computer: Computer) -> Costs:
    """What a step of a design costs on a CPU."""
    return _with_slots(work, computer) if design == "scout-slots" else _in_one_memory(design, work, computer)


def _in_one_memory(design: Design, work: Work, computer: Computer) -> Costs:
    """Everything in one memory: nothing is far, and a budget saves reading."""
    shape, scout, reach, rate = work.shape, work.scout, _reach(work, computer), read_rate(computer.host)
    pace = _pace(computer)
    before, after, head = (_products(numbers, work, computer) for numbers in matrix_parts(shape))
    tokens: float = work.context if design == "full" else min(work.context, scout.budget or work.context)
    near = layer_bytes(work, tokens) * page_part(work) / (reach.attention * rate)
    judge = 0.0
    if design != "full" and tokens < work.context:
        judge = pace.choice.of(work.batch) + sum(scan_bytes(work)) / (reach.attention * rate)
    return Costs(LayerCosts(before + pace.full.of(work.batch), 0, judge, near, 0, after, 0, 0, 0, 0), head)


def has_absent(work: Work) -> bool:
    """Whether a sequence has more blocks than slots."""
    return slot_tokens(work) < work.context


def late_part(work: Work) -> float:
    """Blocks that the guard attends to again, as a part of the chosen ones: the more of these are far, the more."""
    return LATE * work.share**LATE_POWER if work.scout.lookahead and work.scout.guard is not None else 0.0


def _with_slots(work: Work, computer: Computer) -> Costs:
    """Two memories in one: every slot is attended to, and far blocks by workers. All as in one if all have slots."""
    if not has_absent(work):
        return _in_one_memory("scout", work, computer)
    shape, scout, reach, rate = work.shape, work.scout, _reach(work, computer), read_rate(computer.host)
    before, after, head = (_products(numbers, work, computer) for numbers in matrix_parts(shape))
    scan, candidates = (size / (reach.attention * rate) for size in scan_bytes(work))
    near = layer_bytes(work, slot_tokens(work) + scout.block_size / 2) / (reach.attention * rate)
    predicts = scout.lookahead > 0
    fixes = work.batch * 2 * shape.hidden_size * correction_dims(shape, scout) * shape.dtype_bytes
    query = _products(shape.hidden_size * shape.num_query_heads * shape.head_dim, work, computer)
    query += fixes / (reach.products * rate)
    choice = BLOCK_S * work.batch * shape.num_kv_heads * work.context / scout.block_size
    pace = _pace(computer)
    layer, slots, ahead = pace.full.of(work.batch), pace.call.of(work.batch), pace.scout.of(work.batch) * predicts
    call, attend = choice + (1 - NEAR) * slots, NEAR * slots
    cores, threads = computer.host.cores, _far_threads(work, computer.host.cores)
    chosen = layer_bytes(work, (scout.budget_blocks or 0) * scout.block_size) * page_part(work)
    late = late_part(work) * chosen / (reach.attention * rate)
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
            far=chosen / (FAR * rate * threads / cores),
            fetch=0,
            recall=0,
        ),
        head,
        _cores(cores, threads, alone / (alone + busy)),
    )


def _pace(computer: Computer) -> Pace:
    return computer.host.pace or PACE


def _reach(work: Work, computer: Computer) -> Reach:
    return CPU_IN_BLOCKS if _in_blocks(work, computer) else CPU


def _in_blocks(work: Work, computer: Computer) -> bool:
    return _number_bytes(work, computer) < work.shape.dtype_bytes


def _number_bytes(work: Work, computer: Computer) -> float:
    return weight_bytes(work, computer) / work.shape.matrix_numbers(tied=work.tied)


def _products(numbers: int, work: Work, computer: Computer) -> float:
    """Seconds of products with so many weights: bound by reading them, or, with many sequences, by computing."""
    reach = _reach(work, computer)
    read = numbers * _number_bytes(work, computer) / (reach.products * read_rate(computer.host))
    flops = _pace(computer).flops * (1 if _in_blocks(work, computer) else IN_NUMBERS)
    return max(read, 2 * numbers * work.batch / (computer.host.cores * flops))


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
