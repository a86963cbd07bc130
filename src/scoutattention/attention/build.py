"""The one place that composes attention: from a shape, a query model, a configuration and operations.

Nothing here knows a decoder or an engine, so that another program's model can be given this attention.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.digests.key_codes import MainDimDigests
from ..cache.digests.make import make_digests
from ..cache.digests.stages import Stages
from ..cache.memory_plan import MemoryPlan, correction_dims, digest_kind, kept_dims, scan_dims
from ..cache.pages import Pages
from ..cache.pool import TORCH_DTYPES, make_pages
from ..cache.prefix import PrefixIndex
from ..cache.slots import Slots
from ..cache.store import KVStore
from ..config import KVDTypeName, ScoutConfig
from ..kernels.ops import Ops
from ..runtime.memory import CPU
from ..runtime.ranks import ALONE, Ranks
from ..shape import ModelShape
from .choose import TopChooser
from .dense import ResidentAttention
from .far import FarTransport, FarWork
from .guard import Guard
from .observer import Observer
from .predict import CalibratedPredictor, PlainPredictor, QueryModel
from .prompt.correction import Correction
from .prompt.prefill import PromptAttention
from .prompt.trial import ScoutTrial
from .recall import Recall
from .scout import Parts, ScoutAttention
from .share_limit import CpuShareLimit
from .softmax import Softmax

MakeTransport = Callable[[KVStore], FarTransport]
"""Makes what brings far attention to the CPU, for a store."""


@dataclass(frozen=True)
class Cache:
    """A store, and the digests of its pages."""

    store: KVStore
    digests: Stages


@dataclass(frozen=True)
class Built:
    """Attention that is ready to run: of decode steps, and of prompts.

    calibrated: the predictor that is corrected, or None where no query is predicted, or none corrected.
    """

    cache: Cache
    attention: ResidentAttention | ScoutAttention
    prompt: PromptAttention
    calibrated: CalibratedPredictor | None


@dataclass(frozen=True)
class Around:
    """The parts that differ by the program around attention: an engine, transformers, or vLLM.

    make_transport: see `MakeTransport`; called only where blocks may be absent.
    stored: a model's corrections, see `scout calibrate`.   observer: looks on, and changes nothing.
    sink_logits: see `Softmax`.
    """

    make_transport: MakeTransport
    stored: Correction | None = None
    observer: Observer | None = None
    sink_logits: Tensor | None = None


def build_cache(
    shape: ModelShape, config: ScoutConfig, plan: MemoryPlan, ops: Ops, *, kv_dtype: KVDTypeName, ranks: Ranks = ALONE
) -> Cache:
    """The pools and tables of a memory plan, for `plan.rows` sequences.   shape: of this rank's part of the model."""
    size, blocks = plan.block_size, plan.widest
    pool = make_pages(shape, size, plan.pages, kv_dtype, ops.device if plan.slots is None else CPU)
    if ops.device.type == "cuda" and plan.slots is not None:
        pool.pin()
    dims = scan_dims(shape), kept_dims(shape)
    digests = make_digests(digest_kind(config), shape, pool, ops, rows=plan.rows, dims=dims)
    pages = Pages(pool, digests.put, plan.rows, blocks, ops, PrefixIndex(plan.lineages))
    slots = None
    if plan.slots is not None:
        slots = Slots(shape, size, plan.slots, plan.rows, 0 if plan.resident else blocks, device=ops.device)
    store = KVStore(pages, slots, ops, resident=plan.resident, ranks=ranks)
    if isinstance(digests.judge, MainDimDigests):
        for state in digests.judge.basis:
            store.follow(state, fresh=torch.eye(dims[1], shape.head_dim, device=ops.device), of_prompt=True)
    return Cache(store, digests)


def build(shape: ModelShape, model: QueryModel, config: ScoutConfig, ops: Ops, cache: Cache, around: Around) -> Built:
    """The attention that a configuration asks for, over a cache.   shape: of this rank's part of the model."""
    store = cache.store
    chooser = TopChooser(config, cache.digests, store.pages.table)
    trusted = torch.ones((store.num_layers, store.num_rows), dtype=torch.bool)
    store.follow(trusted, fresh=True, of_prompt=True)
    calibrated = make_calibrated(shape, model, config, store, around.stored)
    trial = ScoutTrial(config, shape.num_layers, model, calibrated, ops, store.ranks)
    softmax = Softmax(ops, shape.scale, around.sink_logits)
    prompt = PromptAttention(config, store, cache.digests, softmax, trial, trusted)
    if store.resident:
        takes_all = config.budget is None and store.slots is None
        resident = ResidentAttention(store, softmax, None if takes_all else chooser)
        return Built(cache, resident, prompt, calibrated)
    assert store.slots is not None
    far = FarWork(around.make_transport(store), ops, shape.scale, correct=config.ablation.correct_far)
    guards = config.guard is not None and config.ablation.on_miss == "compute"
    guard = Guard(config.guard, store) if guards and config.guard is not None else None
    limit = CpuShareLimit(config, store)
    parts = Parts(
        store=store,
        ops=ops,
        softmax=softmax,
        chooser=chooser,
        predictor=calibrated or PlainPredictor(model),
        far=far,
        recall=Recall(config, store, store.slots, limit, ops, guarded=guard is not None),
        limit=limit,
        guard=guard,
        observer=around.observer,
    )
    return Built(cache, ScoutAttention(config, parts, trusted), prompt, calibrated)


def needs_calibration(config: ScoutConfig, store: KVStore) -> bool:
    """Whether queries are predicted at all, and corrected."""
    return config.ablation.predictor == "calibrated" and config.lookahead > 0 and not store.resident


def make_calibrated(
    shape: ModelShape, model: QueryModel, config: ScoutConfig, store: KVStore, stored: Correction | None
) -> CalibratedPredictor | None:
    """A predictor with empty corrections, which move with the rows of the store; None if queries need no correction."""
    if not needs_calibration(config, store):
        return None
    dims, dtype, device = correction_dims(shape, config, store.ranks.size), TORCH_DTYPES[shape.dtype], store.device
    size = (store.num_layers, store.num_rows)
    left = torch.zeros((*size, dims, shape.hidden_size), dtype=dtype, device=device).mT
    right = torch.zeros((*size, shape.hidden_size, dims), dtype=dtype, device=device)
    predictor = CalibratedPredictor(model, (left, right), None if stored is None else stored.to(dtype, device))
    for state in (left, right, predictor.uses_stored):
        store.follow(state, fresh=0, of_prompt=True)
    return predictor
