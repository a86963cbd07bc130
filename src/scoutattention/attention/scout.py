"""A decode step of ScoutAttention (arXiv 2603.27138): the device attends to what it holds, the CPU to the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from ..cache.batch import Batch
from ..cache.store import KVStore
from ..config import Ablation, ScoutConfig
from ..kernels.ops import Ops
from ..kernels.requests import CallRequest, JoinRequest, PartialRequest
from ..types import BlockList, Rope, SplitRequest
from .choose import Choice, Chooser, Wanted
from .far import CallKind, FarCall, FarWork
from .guard import Guard
from .observer import Attended, Chosen, Observer
from .predict import Predictor, source_layers
from .recall import Recall
from .share_limit import CpuShareLimit
from .softmax import Softmax
from .step import Attend, Attention, Decision, ScoutStep, StepMemory, StepStats, Work, residency, sort_sequences


@dataclass(frozen=True)
class Parts:
    """The parts of the method. Without a guard no scout is checked."""

    store: KVStore
    ops: Ops
    softmax: Softmax
    chooser: Chooser
    predictor: Predictor
    far: FarWork
    recall: Recall
    limit: CpuShareLimit
    guard: Guard | None
    observer: Observer | None


class ScoutAttention(Attention[ScoutStep]):
    """Decode attention over a store with slots.

    parts: what the method is made of.   trusted: bool [L, R], the layers and rows whose scouts are used.
    """

    def __init__(self, config: ScoutConfig, parts: Parts, trusted: torch.Tensor) -> None:
        """`trusted`: on the host; prompts fill it in, see `PromptAttention`."""
        store = parts.store
        layers = store.num_layers
        self.parts = parts
        self._config = config
        self._budget = config.budget_blocks
        self.trusted = trusted
        sources = source_layers(config, layers)
        self._has_scouts = torch.tensor([source != layer for layer, source in enumerate(sources)])
        self._targets = [[t for t in range(layers) if sources[t] == layer != t] for layer in range(layers)]
        self._memory = StepMemory(store)
        self._decision: Decision | None = None
        self.exchange = store.exchange
        self._residency: Sequence[float] = ()
        self._asked = False

    @override
    def prepare(self, rows: Sequence[int], real: int | None = None) -> ScoutStep:
        parts = self.parts
        batch = parts.store.prepare(rows, real)
        parts.chooser.prepare(batch)
        decision = self._decide(batch)
        work = Work(batch.size, batch.consecutive, batch.width, batch.near, bool(batch.full), *decision[2:])
        return ScoutStep(batch, work, work, decision.masks, self._memory.tally(batch.size))

    @override
    def start(self, step: ScoutStep) -> None:
        self.parts.far.transport.reset()
        self.exchange.send()

    def _decide(self, batch: Batch) -> Decision:
        """The work that the sequences need in each layer; mostly the same as in the step before."""
        slots, budget, rows = self.parts.store.slots, self._budget, list(batch.numbers)
        assert slots is not None
        complete = slots.complete(batch)
        within = [budget is None or count <= budget for count in batch.counts]
        trusted = self.trusted[:, rows]
        follows_from = (batch.numbers, *complete, *within, trusted.numpy().tobytes())
        known = self.exchange.masks_of
        if isinstance(known, Decision) and known is self._decision and known.follows_from == follows_from:
            return known
        has_absent, within_budget = ~torch.tensor(complete, dtype=torch.bool), torch.tensor(within, dtype=torch.bool)
        trusted &= self._has_scouts[:, None]
        masks = sort_sequences(has_absent, within_budget, trusted, guarded=self.parts.guard is not None)
        by_layer = (masks.scouted, masks.true_query, masks.asked, masks.scanning)
        scouted, true_query, asked, scanning = (tuple(of.any(1).tolist()) for of in by_layer)
        some_resident = bool(masks.all_resident.any())
        self._decision = Decision(
            *(follows_from, self._memory.put(masks), scouted, true_query, asked, scanning), all_resident=some_resident
        )
        self.exchange.masks_of = self._decision
        return self._decision

    @override
    def begin(self, step: ScoutStep, rope: Rope) -> Attend:
        store = self.parts.store
        assert store.transfers is not None
        self._memory.clear()
        store.transfers.start_copies()
        if self._config.ablation.on_miss == "fetch":
            store.side.join()  # layers will move blocks themselves
        store.begin(step.batch)
        return ScoutLayers(self._config.ablation, self.parts, self._targets, step, rope)

    @override
    def finish(self, step: ScoutStep) -> None:
        self.parts.store.close(step.batch)
        self.parts.recall.finish(step)

    @override
    def count(self, step: ScoutStep) -> None:
        self.parts.store.end(step.batch)

    @override
    def residency(self) -> Sequence[float]:
        self._asked = True
        return self._residency

    @override
    def end(self, step: ScoutStep, counts: Sequence[int]) -> StepStats:
        parts = self.parts
        assert parts.store.transfers is not None
        if self._asked:
            self._residency, self._asked = residency(step), False
        times = parts.far.transport.times()
        chosen, far, guarded, recalls, moved = counts[:5]
        moved_bytes = moved * parts.store.transfers.head_bytes
        return StepStats(chosen, far, guarded, times.hidden_s, times.waited_s, recalls, moved_bytes)


class ScoutLayers:
    """The `Attend` of one step; what one layer leaves for another is kept here."""

    def __init__(
        self, ablation: Ablation, parts: Parts, targets: Sequence[Sequence[int]], step: ScoutStep, rope: Rope
    ) -> None:
        """`targets`: of each layer, the later layers whose scouts are made from its input."""
        self._ablation = ablation
        self._parts = parts
        self._targets = targets
        self._step = step
        self._rope = rope
        self._ahead: dict[int, Wanted] = {}  # by scouts, for layers to come
        self._calls: dict[int, list[FarCall]] = {}
        self._everything: Choice | None = None
        masks = step.masks
        self._scanned = torch.stack([masks.scouted, masks.scanning]) * step.batch.closed  # [2, L, B], blocks to look at

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Attend in one layer; see `Attend`."""
        parts, store, step = self._parts, self._parts.store, self._step
        assert store.transfers is not None
        called_now = step.work.true_query[layer]
        if not called_now:  # the CPU has the longer, the sooner it is called
            self._look_ahead(layer, x)
        store.append(layer, k, v, step.batch)
        wanted = self._true_choice(layer, q)
        ahead = self._ahead.pop(layer, None)
        if ahead is not None and self._waits_for_true_query:
            self._start(layer, "scout", q, ahead, predicted=False)
        if wanted is not None and called_now:
            self._serve(layer, q, wanted.of(step.masks.true_query[layer]))
        if called_now:  # while the CPU attends to what this layer will wait for
            self._look_ahead(layer, x)
        store.transfers.wait_for_copies(layer)
        pool = store.near_pool
        request = PartialRequest(q, pool.k[layer], pool.v[layer], self._near(layer, wanted), parts.softmax.scale)
        near, far = parts.far.take(self._calls.pop(layer, ()), request)
        guard = None
        if far is not None and ahead is not None and wanted is not None and parts.guard is not None:
            guard = parts.guard.of(step, layer, wanted, ahead)
        merged = near if far is None else parts.ops.join(JoinRequest(q, near, *far, parts.softmax.scale, guard))
        if parts.observer is not None:
            far_weight = (1 - (near.lse - merged.lse).exp()).clamp(min=0)
            guarded = None if guard is None else guard.counts[0] > 0
            parts.observer.attended(layer, q, partial(self._choose, layer), Attended(far_weight, guarded))
        softmax = parts.softmax
        out = merged.out if softmax.sink_logits is None else softmax.beside_sink(layer, merged)
        return out.to(q.dtype)

    @property
    def _waits_for_true_query(self) -> bool:
        return self._ablation.on_miss == "compute" and self._ablation.far_query == "true"

    def _choose(self, layer: int, q: Tensor, ahead: Choice | None = None) -> Choice:
        """The true query's choice, from the candidates of the scout's wherever there is a scout."""
        chooser, step = self._parts.chooser, self._step
        if chooser.takes_all(step.batch):  # then one choice serves every layer
            self._everything = self._everything or chooser.judge(layer, q, step.batch)
            return self._everything
        if ahead is None:
            return chooser.judge(layer, q, step.batch)
        candidates, pages = ahead.candidates, ahead.pages
        if step.work.scanning[layer]:
            own = chooser.scan(layer, q, step.batch, self._scanned[1, layer]).candidates
            candidates, pages = own.where(step.masks.scanning[layer, :, None, None], candidates), None
        return chooser.judge(layer, q, step.batch, candidates, pages)

    def _split_request(self, layer: int, choice: Choice, asked: Tensor, counts: Tensor) -> SplitRequest:
        """How a choice is split in the sequences of bool [B]; counts: int64 [2, B, H], to be filled."""
        parts, step = self._parts, self._step
        assert parts.store.slots is not None
        return SplitRequest(
            *(choice.candidates, choice.picks, choice.wishes, choice.closed),
            slots=parts.store.slots.of_blocks(layer, step.batch),
            rows=(asked, step.masks.within_budget[0], parts.limit.threshold(step.batch)),
            always=parts.limit.always,
            counts=counts,
        )

    def _true_choice(self, layer: int, q: Tensor) -> Wanted | None:
        """The blocks that the true query chooses; None if no sequence uses its true query."""
        step = self._step
        if not step.work.asked[layer]:
            return None
        ahead = self._ahead.get(layer)
        choice = self._choose(layer, q, None if ahead is None else ahead.choice)
        request = self._split_request(layer, choice, step.masks.asked[layer], step.tally.asked[layer])
        return Wanted(
            choice, *self._parts.recall.split(step.batch, layer, choice, step.masks.interesting[layer], request)
        )

    def _look_ahead(self, layer: int, x: Tensor) -> None:
        """Make the scouts of later layers from this layer's input x, and start what they want."""
        parts, step = self._parts, self._step
        for target in self._targets[layer]:
            if not step.work.scouted[target]:
                continue
            scout = parts.predictor.predict(target, x, self._rope, step.batch.rows)
            rows = step.masks.scouted[target]
            choice = parts.chooser.scan(target, scout, step.batch, self._scanned[0, target])
            ahead = self._split_ahead(target, choice, scout)
            if parts.guard is None:  # else recall goes by the true query
                parts.recall.note(step.batch, target, choice, rows)
            self._ahead[target] = ahead
            self._serve(target, scout, ahead, predicted=True)

    def _split_ahead(self, layer: int, choice: Choice, scout: Tensor) -> Wanted:
        """The blocks that a scout chose. The CPU starts on the absent ones, unless it waits for the true query."""
        parts, step = self._parts, self._step
        request = self._split_request(layer, choice, step.masks.scouted[layer], step.tally.scouted[layer])
        if self._ablation.on_miss != "compute" or self._waits_for_true_query:
            return Wanted(choice, *parts.ops.split_choice(request))
        call = CallRequest(scout, parts.store.pages.table[step.batch.rows], parts.store.block_size)
        split, pages, started = parts.far.split(layer, request, call)
        self._calls.setdefault(layer, []).append(started)
        return Wanted(choice._replace(pages=pages), *split)

    def _serve(self, layer: int, q: Tensor, wanted: Wanted, *, predicted: bool = False) -> None:
        """Attend to chosen and absent blocks: by the CPU, unless it has started, or after fetching them."""
        parts, batch, blocks = self._parts, self._step.batch, wanted.blocks
        if parts.observer is not None:
            assert parts.store.slots is not None
            resident = parts.store.slots.resident(layer, batch.rows)
            chosen = Chosen(blocks, wanted.attended, resident)
            parts.observer.chose(layer, q if predicted else None, chosen)
        if self._ablation.on_miss == "fetch":
            parts.recall.fetch(batch, layer, blocks, wanted.absent)
        elif self._ablation.on_miss == "compute" and not predicted:
            self._start(layer, "true", q, wanted, predicted=False)

    def _start(self, layer: int, kind: CallKind, q: Tensor, wanted: Wanted, *, predicted: bool) -> None:
        what = self._parts.store.select(wanted.blocks, wanted.absent, self._step.batch)
        call = self._parts.far.start(layer, kind, q, what, predicted=predicted)
        self._calls.setdefault(layer, []).append(call)

    def _near(self, layer: int, wanted: Wanted | None) -> BlockList:
        """The blocks that the device attends to: all slots, or the chosen slots of sequences that are all resident."""
        slots, batch = self._parts.store.slots, self._step.batch
        assert slots is not None
        near = slots.near(layer, batch)
        if wanted is None or not self._step.work.all_resident:
            return near
        (rows,) = self._step.masks.all_resident
        slot_of, none = slots.of_blocks(layer, batch)
        attended = wanted.attended & rows[:, None, None]
        chosen = slot_of.gather(-1, wanted.blocks).masked_fill(~attended, none)
        return slots.keep(chosen, near, rows[:, None, None])
