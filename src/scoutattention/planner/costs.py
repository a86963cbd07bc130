"""What the stages of a decode step take: bytes and operations of a shape, by what a processor reaches of its peaks.

Each constant is measured once, where its comment says. docs/planning.md says which checks do not depend on them.
"One H100" is docs/lab/2026-11-26-gpu-step-rewritten.md: an H100 80GB HBM3 with 3,350 GB/s and 16 host cores, a shape of
Qwen3-8B in bfloat16. Its traced kernels are those of full attention and of `scout-plain` at 8k tokens and batch 4, and
at 32k and batch 8.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..cache.memory_plan import SLOTS_PER_BUDGET, correction_dims, key_code_bytes, scan_dims
from ..config import KVDTypeName, ScoutConfig
from ..shape import ModelShape
from .computers import CORE_READS, Card, Computer, Processor

Design = Literal["full", "compute", "fetch-ahead", "scout"]
DESIGNS: tuple[Design, ...] = ("full", "compute", "fetch-ahead", "scout")

# A GPU.
PRODUCTS = 0.775  # of memory bandwidth: one H100, 15.1 GB of weights in 5.84 ms
PRODUCT_FLOPS = 0.6  # of the peak, where products are bound by computing: an assumption
ATTENTION = 0.90  # of memory bandwidth: one H100, full attention, from the difference of its two cases
PARTIAL_S = 5.4e-6  # of a call of attention, beside its bytes: the same two cases
SCORES = 0.53  # of memory bandwidth: one H100, the scan at 32k and batch 8 less that at 8k and batch 4
SCORES_S = 7.5e-6  # of a call of scores, beside its bytes: the same two cases
CHOICE_S, CHOICE_BLOCK_S = 3.6e-6, 1.75e-10  # of a layer's choices, and of each block and KV head: the same
KERNEL_S = 2.7e-6  # of starting a kernel, a tiny one included: one H100, what the above leaves of full attention
BRANCH_S = 36e-6  # a layer's part of the gaps that work for the CPU brings: one H100, scout's idle time less full's
KERNELS_BEFORE, KERNELS_NEAR, KERNELS_AFTER, KERNELS_AHEAD, KERNELS_JUDGE, KERNELS_CORRECT = 6, 2, 7, 6, 5, 2  # a layer
LINK = 0.66  # of the link's peak: one H100, recall's copies of 26 MB in 0.605 ms
LATE = 0.02  # of the chosen blocks, that a scout missed and the device reads over the link: one H100, its kernel
MOVED = 0.022  # of the chosen blocks, that recall moves in a step: one H100, bytes over the link
FETCH_S = 30e-6  # between a choice and its copies, where nothing is ahead: an assumption

SHARE = 0.085  # CPU share where nothing limits it: the default limit; recorded choices came to 0.093 to 0.099

# The host of a GPU.
SHEET = 0.8  # of a data sheet's bandwidth, that threads reach when they only read: an assumption
SCATTERED = 0.56  # of what threads read, in blocks of 8 KiB: one H100's host, 44 of 78 GB/s
FAR_CALL_S = 150e-6  # from a flag to its answer, beside the bytes: one H100, hidden and waited time of its two cases

CPU_CHOICE_S = 150e-6  # of a layer's choice on a CPU, beside the bytes: docs/lab/2026-11-23-cpu-decode-step.md


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
CPU_IN_BLOCKS = Reach(products=0.68, core_flops=65e9, attention=0.5, layer_s=390e-6)
"""With weights in few bits: docs/lab/2026-11-26-stored-weights.md; attention and a layer's rest by the stages of `scout
bench decode smollm2 --contexts 1024,4096 --batches 1,4`, two cores that read 42 GB/s before it, 2026-11-26."""


class Work(NamedTuple):
    """What a step decodes.   kv_dtype: of pages in host memory, or of all where the CPU is the device.

    drift: CPU share without a limit; None where only the limit is known.
    weights: see `NamedShape`.   slots: of a sequence, as a multiple of the budget.
    """

    shape: ModelShape
    tied: bool
    context: int
    batch: int
    scout: ScoutConfig
    kv_dtype: KVDTypeName = "auto"
    drift: float | None = None
    weights: int | None = None
    slots: float = SLOTS_PER_BUDGET

    @property
    def share(self) -> float:
        """The CPU share to reckon with: the drift, and no more than the settings allow."""
        most = self.scout.max_cpu_share
        if self.drift is None:
            return most or SHARE
        return self.drift if most is None else min(self.drift, most)


@dataclass(frozen=True)
class LayerCosts:
    """Seconds of one layer's stages on the device, of its far call, and of bytes on the link.

    before: norm and projections.   ahead: the scout of a later layer, its scan and choice.   judge: the true query's.
    near: attention on the device.   late: what a scout missed.   after: projection out and feed-forward.
    far_call: of the CPU, beside its bytes.   far: CPU seconds for each 1 of CPU share.   fetch: the same on the link.
    recall: link seconds of the copies of this layer in a step.
    """

    before: float
    ahead: float
    judge: float
    near: float
    late: float
    after: float
    far_call: float
    far: float
    fetch: float
    recall: float


class Costs(NamedTuple):
    """All layers alike; head: what follows the last one."""

    layer: LayerCosts
    head: float


def weight_bytes(work: Work, computer: Computer) -> int:
    """Bytes of all weights: in few bits where a CPU keeps them so, and else in the shape's dtype."""
    if computer.card is None and work.weights is not None:
        return work.weights
    return work.shape.matrix_numbers(tied=work.tied) * work.shape.dtype_bytes


def read_rate(host: Processor) -> float:
    """Bytes per second that a host's threads read."""
    return host.bandwidth if host.measured else min(host.bandwidth * SHEET, host.cores * CORE_READS)


def costs_of(design: Design, work: Work, computer: Computer) -> Costs:
    """What a step of a design costs on a computer."""
    return _on_cpu(design, work, computer) if computer.card is None else _on_gpu(design, work, computer)


def _parts(shape: ModelShape) -> tuple[int, int, int]:
    """Numbers of a layer's matrices before and after attention, and of the head."""
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    after = shape.hidden_size * (queries + 3 * shape.intermediate_size)
    return shape.hidden_size * (queries + 2 * keys), after, shape.hidden_size * shape.vocab_size


def layer_bytes(work: Work, tokens: float) -> float:
    """Bytes of keys and values of so many tokens of every sequence, in one layer."""
    return work.batch * tokens * work.shape.kv_bytes_per_token / work.shape.num_layers


def near_tokens(design: Design, work: Work) -> float:
    """Tokens that the device attends to in each sequence."""
    budget = work.scout.budget
    if design == "full" or budget is None:
        return work.context
    return min(work.context, work.slots * budget + work.scout.block_size / 2)


def _scan_bytes(work: Work) -> tuple[float, float]:
    """Bytes of digests in one layer: of the scan of all blocks, and of the candidates."""
    shape, size, kind = work.shape, work.scout.block_size, work.scout.ablation.digest
    each, dim = work.batch * shape.num_kv_heads, shape.head_dim
    blocks, candidates = work.context / size, work.scout.candidate_blocks or 0
    whole = {"minmax": 8 * dim, "exact": size * dim * shape.dtype_bytes}.get(kind, key_code_bytes(dim, size))
    scan = key_code_bytes(scan_dims(shape), size) if kind == "two-stage" else whole
    return each * blocks * scan, each * min(blocks, candidates) * whole


def _page_part(work: Work) -> float:
    """Bytes of a page, as a part of those of an unpacked one."""
    size = work.scout.block_size
    return work.shape.page_bytes(size, work.kv_dtype) / work.shape.block_bytes(size)


def _on_gpu(design: Design, work: Work, computer: Computer) -> Costs:
    card, shape, scout = computer.card, work.shape, work.scout
    assert card is not None
    before, after, head = _parts(shape)
    near = layer_bytes(work, near_tokens(design, work)) / (ATTENTION * card.bandwidth) + PARTIAL_S
    near += KERNELS_NEAR * KERNEL_S
    own = _products(before, work, card) + KERNELS_BEFORE * KERNEL_S
    rest = _products(after, work, card) + KERNELS_AFTER * KERNEL_S
    last = _products(head, work, card)
    if design == "full":
        return Costs(LayerCosts(own, 0, 0, near, 0, rest, 0, 0, 0, 0), last)
    scan, candidates = _scan_bytes(work)
    blocks = work.batch * work.context / scout.block_size * shape.num_kv_heads
    choice = CHOICE_S + CHOICE_BLOCK_S * blocks
    scores = [SCORES_S + size / (SCORES * card.bandwidth) for size in (scan, candidates)]
    query = _products(shape.hidden_size * shape.num_query_heads * shape.head_dim, work, card)
    fixes = work.batch * 2 * shape.hidden_size * correction_dims(shape, scout) * shape.dtype_bytes
    corrected = fixes / (PRODUCTS * card.bandwidth) + KERNELS_CORRECT * KERNEL_S
    predicts = design != "compute"
    chosen = layer_bytes(work, (scout.budget_blocks or 0) * scout.block_size)
    link, reads = LINK * card.link, SCATTERED * read_rate(computer.host)
    page = _page_part(work)
    return Costs(
        LayerCosts(
            before=own + BRANCH_S / 2,
            ahead=KERNELS_AHEAD * KERNEL_S + scores[0] + choice * 2 / 3 + (query + corrected if predicts else 0.0),
            judge=KERNELS_JUDGE * KERNEL_S + scores[1] + choice / 3,
            near=near,
            late=LATE * chosen * page / link if design == "scout" else 0.0,
            after=rest + BRANCH_S / 2,
            far_call=FAR_CALL_S,
            far=chosen * page / reads,
            fetch=chosen * page / link,
            recall=0.0 if design == "fetch-ahead" else MOVED * chosen * page / link,
        ),
        last,
    )


def _products(numbers: int, work: Work, card: Card) -> float:
    """Seconds of products with so many weights: bound by reading them, or, with many sequences, by computing."""
    read = numbers * work.shape.dtype_bytes / (PRODUCTS * card.bandwidth)
    return max(read, 2 * numbers * work.batch / (PRODUCT_FLOPS * card.flops))


def _on_cpu(design: Design, work: Work, computer: Computer) -> Costs:
    """Everything in one memory: nothing is far, and a budget saves reading."""
    shape, scout, rate = work.shape, work.scout, read_rate(computer.host)
    each = weight_bytes(work, computer) / shape.matrix_numbers(tied=work.tied)
    reach = CPU_IN_BLOCKS if each < shape.dtype_bytes else CPU
    computes = computer.host.cores * reach.core_flops
    before, after, head = (
        max(numbers * each / (reach.products * rate), 2 * numbers * work.batch / computes) for numbers in _parts(shape)
    )
    tokens: float = work.context if design == "full" else min(work.context, scout.budget or work.context)
    near = layer_bytes(work, tokens) * _page_part(work) / (reach.attention * rate)
    judge = 0.0
    if design != "full" and tokens < work.context:
        judge = CPU_CHOICE_S + sum(_scan_bytes(work)) / (reach.attention * rate)
    return Costs(LayerCosts(before + reach.layer_s, 0, judge, near, 0, after, 0, 0, 0, 0), head)
