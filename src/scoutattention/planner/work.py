"""What a decode step reads and computes: sizes that follow from a model's shape, and costs as values."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..cache.memory_plan import SLOTS_PER_BUDGET, block_digest_bytes, key_code_bytes, scan_dims
from ..config import KVDTypeName, ScoutConfig
from ..shape import ModelShape
from .computers import CORE_READS, Computer, Processor

Design = Literal["full", "compute", "fetch-ahead", "scout", "scout-slots"]
"""`scout-slots`: scout on a CPU that has slots of its own, as if it were a device beside a host."""
DESIGNS: tuple[Design, ...] = ("full", "compute", "fetch-ahead", "scout")

SHARE = 0.085  # CPU share where nothing limits it: the default limit; recorded choices came to 0.093 to 0.099
SHEET = 0.8  # of a data sheet's bandwidth, that threads reach when they only read: an assumption


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
    def has_absent(self) -> bool:
        """Whether a sequence has more blocks than slots."""
        return slot_tokens(self) < self.context

    @property
    def share(self) -> float:
        """The CPU share to reckon with: the drift, as far as the settings allow; 0 where all blocks have slots."""
        if not self.has_absent:
            return 0.0
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


class Cores(NamedTuple):
    """A CPU that is host and device: its far calls and the device's work share the cores.

    beside: speed of a far call while the device works, as a part of its speed alone.   slowed: the device's meanwhile.
    helped: speed of a call that the device waits for, because the main thread helps.
    taken: seconds of waiting for a call that has ended.
    """

    beside: float
    slowed: float
    helped: float
    taken: float


class Costs(NamedTuple):
    """All layers alike; head: what follows the last one.   cores: where host and device share them."""

    layer: LayerCosts
    head: float
    cores: Cores = Cores(1.0, 1.0, 1.0, 0.0)


def weight_bytes(work: Work, computer: Computer) -> int:
    """Bytes of all weights: in few bits where a CPU keeps them so, and else in the shape's dtype."""
    if computer.card is None and work.weights is not None:
        return work.weights
    return work.shape.matrix_numbers(tied=work.tied) * work.shape.dtype_bytes


def read_rate(host: Processor) -> float:
    """Bytes per second that a host's threads read."""
    return host.bandwidth if host.measured else min(host.bandwidth * SHEET, host.cores * CORE_READS)


def matrix_parts(shape: ModelShape) -> tuple[int, int, int]:
    """Numbers of a layer's matrices before and after attention, and of the head."""
    queries, keys = shape.num_query_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    after = shape.hidden_size * (queries + 3 * shape.intermediate_size)
    return shape.hidden_size * (queries + 2 * keys), after, shape.hidden_size * shape.vocab_size


def layer_bytes(work: Work, tokens: float) -> float:
    """Bytes of keys and values of so many tokens of every sequence, in one layer."""
    return work.batch * tokens * work.shape.kv_bytes_per_token / work.shape.num_layers


def slot_tokens(work: Work) -> int:
    """Tokens that a sequence has slots for, beside its open block."""
    return round(work.slots * (work.scout.budget_blocks or 0)) * work.scout.block_size


def near_tokens(design: Design, work: Work) -> float:
    """Tokens that the device attends to in each sequence."""
    budget = work.scout.budget
    if design == "full" or budget is None:
        return work.context
    return min(work.context, work.slots * budget + work.scout.block_size / 2)


def scan_bytes(work: Work) -> tuple[float, float]:
    """Bytes of digests in one layer: of the scan of all blocks, and of the candidates."""
    shape, size, kind = work.shape, work.scout.block_size, work.scout.ablation.digest
    each = work.batch * shape.num_kv_heads
    blocks, candidates = work.context / size, work.scout.candidate_blocks or 0
    whole = block_digest_bytes(kind, shape, size) or size * shape.head_dim * shape.dtype_bytes
    scan = key_code_bytes(scan_dims(shape), size) if kind == "two-stage" else whole
    return each * blocks * scan, each * min(blocks, candidates) * whole


def page_part(work: Work) -> float:
    """Bytes of a page, as a part of those of an unpacked one."""
    size = work.scout.block_size
    return work.shape.page_bytes(size, work.kv_dtype) / work.shape.block_bytes(size)
