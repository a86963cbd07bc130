"""A decode step of ScoutAttention (arXiv 2603.27138): the device attends to what it holds, the CPU to the rest."""

import time
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.store import KVStore
from ..config import ScoutConfig
from ..kernels.ops import Ops
from ..types import BlockList, Lateness, Partial, Rope, Sifting
from .base import Attend, StepStats
from .choose import Choice, Chooser
from .far import Far, FarWork
from .limit import Thrift
from .observer import Attended, Chosen, Observer
from .predict import Predictor, source_layers
from .recall import Mover
from .rows import Plan, RowTable, sort_rows


class _Wanted(NamedTuple):
    """What a layer would attend to: of a choice, the valid blocks, and which of them are absent, bool [B, H, N] both.

    counts: int64 [2, B, H], of them.
    """

    choice: Choice
    valid: Tensor
    absent: Tensor
    counts: Tensor

    def of(self, rows: Tensor) -> "_Wanted":
        """The same for some rows, bool [B], alone."""
        mask = rows[:, None, None]
        return _Wanted(self.choice, self.valid & mask, self.absent & mask, self.counts * rows[:, None])


class ScoutAttention:
    """Decode attention over a store with slots."""

    def __init__(
        self,
        config: ScoutConfig,
        store: KVStore,
        ops: Ops,
        far: FarWork,
        scale: float,
        *,
        predictor: Predictor,
        chooser: Chooser,
        observer: Observer | None = None,
    ) -> None:
        assert store.slots is not None
        assert store.transfers is not None
        self._transfers = store.transfers
        self._config = config
        self._store = store
        self._slots = store.slots
        self._ops = ops
        self._scale = scale
        self._guards = config.guard is not None and config.on_miss == "compute"
        self.predictor = predictor
        self.chooser = chooser
        self._observer = observer
        self.far = far
        self._mover = Mover(config, store, store.slots, ops)
        self._thrift = Thrift(config, store)
        layers, rows = store.trusted.shape
        self._sources = source_layers(config, layers)
        self._has_scouts = torch.tensor([source != layer for layer, source in enumerate(self._sources)])
        self._targets = [[t for t in range(layers) if self._sources[t] == s != t] for s in range(layers)]
        self._table = RowTable(layers, rows, store.device)
        self._tally = torch.zeros((3, rows, store.heads), dtype=torch.int64, device=store.device)  # see `_seen`

    def plan(self, batch: int) -> Hashable:
        """See `Attention.plan`."""
        view = self._store.plan_step(batch)
        if self._config.on_miss == "fetch":
            self._store.side.join()  # layers will move blocks themselves
        self._began = time.perf_counter()
        self._fetched = 0
        self._closed = view.closed
        self._seen = self._tally[:, :batch]  # int64 [3, B, H]: blocks chosen, absent ones, whether guarded
        self.far.reset()
        self._mover.plan(view)
        self.chooser.begin(view)
        counts, budget = torch.tensor(view.counts), self._config.budget_blocks
        fits = torch.ones(batch, dtype=torch.bool) if budget is None else counts <= budget
        ahead = self._store.trusted[:, :batch] & self._has_scouts[:, None]
        # Asked of all ranks: a graph with their sums is one that all of them capture and replay, in the same steps.
        crowded = self._store.ranks.sum((~self._slots.complete(view.closed)).long()) > 0
        rows = sort_rows(crowded, fits, ahead, guarded=self._guards)
        scouted, true, asked = (tuple(of.any(1).tolist()) for of in (rows.scouted, rows.true, rows.asked))
        self._rows = self._table.put(rows)
        near = 1 + max(self._slots.quota[:batch])
        self._plan = Plan(batch, view.width, near, scouted, true, asked, bool(rows.roomy.any()))
        return None if self._config.on_miss == "fetch" else self._plan

    def begin(self, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        self._rope = rope
        self._ahead: dict[int, _Wanted] = {}  # by scouts, for layers to come
        self._held: dict[int, _Wanted] = {}  # of these, what the true query will attend to
        self._tally.zero_()
        self._store.begin_step()
        self._mover.begin()
        return self._attend

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        self._transfers.arrive(layer)
        wanted = self._truly_wanted(layer, q)
        self._look_ahead(layer, q, x, wanted)
        pool = store.near_pool
        near = self._ops.partial(q, pool.k[layer], pool.v[layer], self._near(layer, wanted), self._scale)
        far, guarded = self.far.take(layer, q), None
        if far is not None and layer in self._ahead and wanted is not None and self._guards:
            far, guarded = self._guard(layer, q, wanted, near, far)
        merged = near if far is None else self.far.join(near, far)
        if self._observer is not None:
            far_weight = (1 - (near.lse - merged.lse).exp()).clamp(min=0)
            self._observer.attended(layer, q, self.chooser, Attended(far_weight, guarded))
        return merged.out.to(q.dtype)

    def _truly_wanted(self, layer: int, q: Tensor) -> _Wanted | None:
        """What the true query wants, and whether it is absent; None where nobody asks."""
        rows = self._rows
        if not self._plan.asked[layer]:
            return None
        wanted = self._wanted(layer, q, rows.asked[layer])
        self._mover.note(layer, wanted.choice, rows.noted[layer], wanted.counts)
        return wanted

    def _wanted(self, layer: int, q: Tensor, rows: Tensor) -> _Wanted:
        """What queries q of a layer choose for some rows, bool [B], and which of it is absent."""
        choice = self.chooser.choose(layer, q)
        asked = (rows, self._rows.fits[0], self._thrift.least(q.shape[0]))
        slots = self._slots.of_blocks(layer, q.shape[0])
        always = self._thrift.always
        sifted = self._ops.sift(Sifting(choice.blocks, choice.wishes, self._closed, slots, asked, always))
        return _Wanted(choice, *sifted)

    def _look_ahead(self, layer: int, q: Tensor, x: Tensor, wanted: _Wanted | None) -> None:
        """Start what the scouts of later layers want, and what this layer wants where only its true query will do."""
        rows, plan = self._rows, self._plan
        for target in self._targets[layer]:
            if plan.scouted[target]:
                scout = self.predictor.predict(target, x, self._rope)
                ahead = self._wanted(target, scout, rows.scouted[target])
                if not self._guards:  # else the true query's wishes will be known
                    self._mover.note(target, ahead.choice, rows.scouted[target], ahead.counts)
                self._serve(target, scout, ahead, predicted=True)
        if layer in self._held:
            held = self._held.pop(layer)
            self.far.start(layer, q, held.choice.blocks, held.absent, predicted=False)
        if wanted is not None and plan.true[layer]:
            self._serve(layer, q, wanted.of(rows.true[layer]))

    def _serve(self, layer: int, q: Tensor, wanted: _Wanted, *, predicted: bool = False) -> None:
        """See to what is wanted and absent."""
        config, blocks, absent = self._config, wanted.choice.blocks, wanted.absent
        self._seen[:2].add_(wanted.counts)
        if self._observer is not None:
            resident = self._slots.resident(layer, slice(q.shape[0]))
            self._observer.chose(layer, q if predicted else None, Chosen(blocks, wanted.valid, resident))
        if predicted:
            self._ahead[layer] = wanted
        if config.on_miss == "fetch":
            self._fetched += self._mover.fetch(layer, blocks, absent)
        elif config.on_miss == "compute" and predicted and config.far_query == "true":
            self._held[layer] = wanted
        elif config.on_miss == "compute":
            self.far.start(layer, q, blocks, absent, predicted=predicted)

    def _near(self, layer: int, wanted: _Wanted | None) -> BlockList:
        """What the device attends to: every slot, or the chosen ones where no block is absent."""
        near = self._store.near(layer)
        if wanted is None or not self._plan.roomy:
            return near
        (roomy,) = self._rows.roomy
        chosen = wanted.of(roomy)
        self._seen[:2].add_(chosen.counts)
        return self._slots.keep(layer, near, chosen.choice.blocks, chosen.valid, roomy[:, None, None])

    def _guard(self, layer: int, q: Tensor, wanted: _Wanted, near: Partial, far: Far) -> tuple[Far, Tensor | None]:
        """The far part, with what a scout missed or spoilt computed now; for observers, which KV heads [B, H]."""
        limit, ahead = self._config.guard, self._ahead[layer]
        assert limit is not None
        mine, theirs = (wanted.choice.blocks, wanted.absent, wanted.choice.wishes), (ahead.choice.blocks, ahead.absent)
        doubt = far.doubt(self._ops, q, near)
        found = self._ops.find_late(Lateness(mine, theirs, doubt, self._rows.scouted[layer], limit))
        if not self._ops.deferred and not found.counts.any():
            return far, None
        self._seen[2].add_(found.counts[0])
        self._seen[:2].add_(found.counts[1])
        both = far.but(self._ops, found.spoilt, self.far.attend(layer, q, wanted.choice.blocks, found.late))
        return both, found.spoilt | found.late.any(-1) if self._observer is not None else None

    def end(self) -> StepStats:
        """See `Attention.end`."""
        chosen, far, guarded = self._seen.sum((1, 2)).tolist()  # there when the step's work is done
        self.far.settle()
        self._mover.seat(self._store.end_step())
        recalled = self._fetched if self._config.on_miss == "fetch" else self._mover.recall(self._pressure())
        self._transfers.send()
        self._thrift.learn(self._seen[1].sum(-1), self._seen[0].sum(-1))
        return StepStats(
            chosen_blocks=chosen,
            far_blocks=far,
            guarded_heads=guarded,
            hidden_s=self.far.hidden_s,
            unhidden_s=sum(self.far.waited_s),
            recalls=self._mover.recalls,
            recalled_bytes=recalled,
        )

    def _pressure(self) -> list[float]:
        """Of each layer, how many times longer than allowed it waited for the CPU."""
        waited, allowed = self.far.waited_s, self._config.wait_share
        if allowed is None:
            return [1.0] * len(waited)
        of_layer = (time.perf_counter() - self._began) / len(waited)
        return [seconds / max(allowed * of_layer, 1e-9) for seconds in waited]
