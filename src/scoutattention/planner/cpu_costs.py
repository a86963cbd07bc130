"""Costs of a decode step on a computer whose CPU is the device: what a CPU reaches of its peaks.

With slots the CPU is host and device at once. Its worker threads attend to far blocks beside the main thread's work, on
the same cores.
"""

from typing import NamedTuple

from ..cache.memory_plan import correction_dims
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

CHOICE_S = 150e-6  # of a layer's choice on a CPU, beside the bytes: docs/lab/2026-11-23-cpu-decode-step.md
CHANNELS_PER_THREAD = 1 << 17
"""As in csrc/tasks/partial.cpp: keys' channels for which a far call is given one more thread."""


class Reach(NamedTuple):
    """What a CPU that is the device reaches.

    products, attention: of what threads read.   core_flops: of a core, where products are bound by computing.
    layer_s: of a layer, beside the bytes; its products and its attention are calls of threads.
    """

    products: float
    core_flops: float
    attention: float
    layer_s: float


CPU = Reach(products=0.68, core_flops=150e9, attention=0.63, layer_s=100e-6)
"""docs/lab/2026-11-23-cpu-decode-step.md, two cores that read 50 GB/s; computing: the lab note on matrix products."""
CPU_IN_BLOCKS = Reach(products=0.68, core_flops=65e9, attention=0.5, layer_s=210e-6)
"""With weights in few bits: docs/lab/2026-11-26-stored-weights.md; of a layer's rest, the note on slots on a CPU."""


class PerLayer(NamedTuple):
    """Seconds of a layer beside the bytes: with one sequence, and for each further one."""

    first: float
    more: float

    def of(self, batch: int) -> float:
        """With so many sequences."""
        return self.first + (batch - 1) * self.more


CALL, SCOUT, NEAR = PerLayer(125e-6, 85e-6), PerLayer(280e-6, 70e-6), PerLayer(21e-6, 11e-6)
"""With slots: of the true query's choice with the call and recall; of a scout with its choice, merge and guard; of near
attention."""
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
    before, after, head = (_products(numbers, work, computer) for numbers in matrix_parts(shape))
    tokens: float = work.context if design == "full" else min(work.context, scout.budget or work.context)
    near = layer_bytes(work, tokens) * page_part(work) / (reach.attention * rate)
    judge = 0.0
    if design != "full" and tokens < work.context:
        judge = CHOICE_S + sum(scan_bytes(work)) / (reach.attention * rate)
    return Costs(LayerCosts(before + reach.layer_s, 0, judge, near, 0, after, 0, 0, 0, 0), head)


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
    call, ahead, attend = choice + CALL.of(work.batch), SCOUT.of(work.batch) * predicts, NEAR.of(work.batch)
    cores, threads = computer.host.cores, _far_threads(work, computer.host.cores)
    chosen = layer_bytes(work, (scout.budget_blocks or 0) * scout.block_size) * page_part(work)
    late = late_part(work) * chosen / (reach.attention * rate)
    alone = reach.layer_s + attend + call + ahead
    busy = before + after + near + scan + candidates + query * predicts + late
    return Costs(
        LayerCosts(
            before=before + reach.layer_s,
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


def _reach(work: Work, computer: Computer) -> Reach:
    return CPU_IN_BLOCKS if _number_bytes(work, computer) < work.shape.dtype_bytes else CPU


def _number_bytes(work: Work, computer: Computer) -> float:
    return weight_bytes(work, computer) / work.shape.matrix_numbers(tied=work.tied)


def _products(numbers: int, work: Work, computer: Computer) -> float:
    """Seconds of products with so many weights: bound by reading them, or, with many sequences, by computing."""
    reach = _reach(work, computer)
    read = numbers * _number_bytes(work, computer) / (reach.products * read_rate(computer.host))
    return max(read, 2 * numbers * work.batch / (computer.host.cores * reach.core_flops))


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
