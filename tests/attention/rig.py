"""A cache and an attention without a model: random queries, keys and values go in, and every result has an oracle."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from scoutattention.attention.build import Around, build, build_cache
from scoutattention.attention.far import WorkerTransport
from scoutattention.attention.predict import Adjust
from scoutattention.attention.scout import ScoutAttention
from scoutattention.attention.step import Attend, StepStats
from scoutattention.cache.digests.make import make_digests
from scoutattention.cache.digests.stages import Stages
from scoutattention.cache.memory_plan import MemoryPlan
from scoutattention.cache.pages import Pages
from scoutattention.cache.pool import BlockPool
from scoutattention.config import DigestName, ScoutConfig
from scoutattention.kernels.native import NativeOps
from scoutattention.kernels.ops import Ops
from scoutattention.kernels.reference_rows import RowCorrection
from scoutattention.runtime.workers import Job, Workers
from scoutattention.shape import ModelShape
from scoutattention.types import BlockList, Partial, Rope

SHAPE = ModelShape(
    num_layers=3,
    num_query_heads=6,
    num_kv_heads=2,
    head_dim=16,
    hidden_size=8,
    intermediate_size=8,
    vocab_size=8,
    max_positions=256,
)
ROPE = Rope(torch.zeros(0), torch.zeros(0))
MAX_BLOCKS = 256


class RecordingWorkers(Workers):
    """Workers that remember which blocks of which pool they were asked to attend to."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.lists: list[tuple[Tensor, BlockList]] = []

    def submit(self, q, k, v, blocks, scale, *, with_mean_key=False) -> Job:
        self.lists.append((k, blocks))
        return super().submit(q, k, v, blocks, scale, with_mean_key=with_mean_key)

    def partial(self, q, k, v, blocks, scale, *, with_mean_key=False) -> Partial:
        return self.submit(q, k, v, blocks, scale, with_mean_key=with_mean_key).wait()


class RandomModel:
    """A model whose queries have nothing to do with its inputs."""

    def normed_input(self, layer: int, x: Tensor) -> Tensor:
        return x

    def query_weight(self, layer: int) -> Tensor:
        return torch.eye(SHAPE.num_query_heads * SHAPE.head_dim, SHAPE.hidden_size)

    def project_query(self, layer: int, x: Tensor, rope: Rope, adjust: Adjust | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(layer)
        return torch.randn(x.shape[0], SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim, generator=generator)

    def project_corrected(self, layer: int, x: Tensor, rope: Rope, by: Sequence[RowCorrection]) -> Tensor:
        return self.project_query(layer, x, rope)


class RandomPredictor:
    """Scouts that have nothing to do with the query."""

    def predict(self, layer: int, x: Tensor, rope: Rope, rows: slice | Tensor) -> Tensor:
        return torch.randn(x.shape[0], SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)


def make_pages(
    size: int, capacity: int, rows: int, max_blocks: int, ops: Ops, digest: DigestName = "minmax"
) -> tuple[Pages, Stages]:
    pool = BlockPool(SHAPE, size, capacity, knob="host_memory")
    digests = make_digests(digest, SHAPE, pool, ops, rows=rows, dims=(SHAPE.head_dim, SHAPE.head_dim))
    return Pages(pool, digests.put, rows, max_blocks, ops), digests


def set_parts(attention: ScoutAttention, **parts) -> None:
    """Exchange parts of the method."""
    attention.parts = replace(attention.parts, **parts)


@dataclass
class Rig:
    """Sequences in rows 0, 1, ... of one store, with the whole history kept aside."""

    config: ScoutConfig
    quota: int | None = None  # slots of each row; None: everything is resident
    seed: int = 0
    workers: Workers = field(default_factory=lambda: Workers(2))
    sink_logits: Tensor | None = None

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        rows, size, ops = 4, self.config.block_size, NativeOps(self.workers)
        slots = None if self.quota is None else rows * (1 + self.quota)
        plan = MemoryPlan(size, rows, MAX_BLOCKS * size, rows * MAX_BLOCKS, slots, MAX_BLOCKS, 0)
        cache = build_cache(SHAPE, self.config, plan, ops, kv_dtype="auto")
        config = self.config
        if config.ablation.predictor == "calibrated":
            config = config.changed(predictor="plain")
        around = Around(
            lambda store: WorkerTransport(store.pages.pool, ops, self.workers, SHAPE.scale),
            sink_logits=self.sink_logits,
        )
        built = build(SHAPE, RandomModel(), config, ops, cache, around)
        self.store, self.digests = cache.store, cache.digests
        self.prompt, self.attention = built.prompt, built.attention
        if isinstance(self.attention, ScoutAttention):
            set_parts(self.attention, predictor=RandomPredictor())
        self.rows: list[int] | None = None  # of the sequences of a step; None is in their order
        self.keys: list[list[Tensor]] = []  # [row][layer] -> [T, H, D]
        self.values: list[list[Tensor]] = []

    def add(self, tokens: int) -> list[Tensor]:
        """Admit a prompt of random keys and values; returns each layer's prompt attention, [T, H, G, D]."""
        row = len(self.keys)
        self.store.admit(row, MAX_BLOCKS, self.quota or 0)
        ks, vs, outs = [], [], []
        attend = self.prompt.begin(row, Rope(torch.zeros(tokens, 0), torch.zeros(tokens, 0)))
        for layer in range(SHAPE.num_layers):
            q = torch.randn(tokens, SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)
            k, v = torch.randn(2, tokens, SHAPE.num_kv_heads, SHAPE.head_dim)
            outs.append((q, attend(layer, q, k, v, torch.randn(tokens, SHAPE.hidden_size))))
            ks.append(k)
            vs.append(v)
        self.prompt.finish(row, tokens)
        self.keys.append(ks)
        self.values.append(vs)
        return outs

    def step(self, queries: Tensor | None = None, between=None) -> tuple[list[Tensor], list[Tensor], StepStats]:
        """One decode step: each layer's queries and results, [B, H, G, D]."""
        rows = list(range(len(self.keys))) if self.rows is None else self.rows
        batch = len(rows)
        attend = self.begin()
        qs, outs = [], []
        for layer in range(SHAPE.num_layers):
            q = torch.randn(batch, SHAPE.num_kv_heads, SHAPE.group_size, SHAPE.head_dim)
            k, v = torch.randn(2, batch, SHAPE.num_kv_heads, SHAPE.head_dim)
            for place, row in enumerate(rows):
                self.keys[row][layer] = torch.cat([self.keys[row][layer], k[place : place + 1]])
                self.values[row][layer] = torch.cat([self.values[row][layer], v[place : place + 1]])
            qs.append(q)
            outs.append(attend(layer, q, k, v, torch.randn(batch, SHAPE.hidden_size)))
            if between is not None:
                between(layer)
        return qs, outs, self.end()

    def begin(self) -> Attend:
        """Start a decode step of every sequence."""
        self.under_way = self.attention.prepare(range(len(self.keys)) if self.rows is None else self.rows)
        self.attention.start(self.under_way)
        self.store.exchange.receive()
        return self.attention.begin(self.under_way, ROPE)

    def end(self) -> StepStats:
        """Finish the step."""
        self.attention.finish(self.under_way)
        self.store.exchange.tell()
        self.attention.count(self.under_way)
        return self.attention.end(self.under_way, self.store.exchange.read()[0])

    def full(self, row: int, layer: int, q: Tensor) -> Tensor:
        """Full attention of one query [H, G, D] over a row's history, in float64."""
        k, v = (t[row][layer].double().transpose(0, 1) for t in (self.keys, self.values))  # [H, T, D]
        scores = (q.double() @ k.transpose(1, 2)) * SHAPE.scale
        if self.sink_logits is not None:
            scores = torch.cat([self.sink_logits[layer].double()[..., None], scores], -1)
        return scores.softmax(-1)[..., -k.shape[1] :] @ v

    def error(self, qs: list[Tensor], outs: list[Tensor]) -> float:
        """The largest difference between a step's results and full attention."""
        return max(
            float((outs[layer][place] - self.full(row, layer, qs[layer][place])).abs().max())
            for layer in range(SHAPE.num_layers)
            for place, row in enumerate(range(len(self.keys)) if self.rows is None else self.rows)
        )


def attended(rig: Rig, k: Tensor, blocks: BlockList) -> dict[tuple[int, int], list[int]]:
    """The blocks that a recorded list names, for each (row, head); -1 is the open block."""
    entries = [(row, head, int(blocks.index[row, head, n])) for row, head, n in torch.nonzero(blocks.length).tolist()]
    named: dict[tuple[int, int], list[int]] = {}
    for row, head, entry in entries:
        named.setdefault((row, head), []).append(_block(rig, k, row, head, entry))
    return named


def _block(rig: Rig, k: Tensor, row: int, head: int, entry: int) -> int:
    slots = rig.store.slots
    layer = (k.data_ptr() - _base(rig, k).data_ptr()) // (k.numel() * k.element_size())
    if slots is not None and _base(rig, k) is slots.pool.k:
        position = slots.near_index[row].tolist().index(entry)
        return -1 if position == 0 else int(slots.content[layer, row, head, position - 1])
    block = rig.store.pages.table[row].tolist().index(entry)
    return block if block < rig.store.closed[row] else -1


def _base(rig: Rig, k: Tensor) -> Tensor:
    pools = [rig.store.pages.pool] + ([] if rig.store.slots is None else [rig.store.slots.pool])
    return next(p.k for p in pools if p.k.untyped_storage().data_ptr() == k.untyped_storage().data_ptr())
