"""A decode step of ScoutAttention (arXiv 2603.27138): the device attends to what it holds, the CPU to the rest."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.store import KVStore, StepView
from ..config import ScoutConfig
from ..kernels.cpu import Workers
from ..kernels.sift import find_late, sift
from ..types import BlockList, Partial, Rope
from .base import Attend, StepStats
from .choose import Choice, Chooser
from .far import Far, FarWork
from .mover import Mover
from .observe import Attended, Chosen, Observer
from .predict import Predictor, source_layers
from .thrift import Thrift


@dataclass(frozen=True)
class _Rows:
    """What each sequence of a step needs, bool [L, B] (fits, roomy: [B]), and for which layers any does.

    scouted: has absent blocks and more blocks than the budget: a scout chooses ahead, the CPU attends ahead.
    true: the same, but its scouts are not to be trusted in this layer, so the true query does both; or it has absent
        blocks and chooses them all, so that with the true query the result is exact.
    fits: has no more blocks than the budget.
    roomy: has every block in a slot, and more blocks than the budget: the true query chooses among the slots.
    The rest have every block in a slot and attend to them all.
    asked: the true query is asked for its choice.   noted: and recall goes by it.
    """

    scouted: Tensor
    true: Tensor
    fits: Tensor
    roomy: Tensor
    asked: Tensor
    noted: Tensor
    any_scouted: list[bool]
    any_true: list[bool]
    any_asked: list[bool]
    any_roomy: bool


class _Wanted(NamedTuple):
    """What a layer would attend to: a choice, and which of its valid blocks are absent, bool [B, H, N].

    counts: int64 [2, B], of its valid and of its absent blocks.
    """

    choice: Choice
    absent: Tensor
    counts: Tensor

    def of(self, rows: Tensor) -> "_Wanted":
        """The same for some rows, bool [B], alone."""
        mask = rows[:, None, None]
        return _Wanted(self.choice._replace(valid=self.choice.valid & mask), self.absent & mask, self.counts * rows)


class ScoutAttention:
    """Decode attention over a store with slots."""

    def __init__(
        self,
        config: ScoutConfig,
        store: KVStore,
        workers: Workers,
        scale: float,
        *,
        predictor: Predictor,
        chooser: Chooser,
        observer: Observer | None = None,
    ) -> None:
        assert store.slots is not None
        self._config = config
        self._store = store
        self._slots = store.slots
        self._workers = workers
        self._scale = scale
        self._guards = config.guard is not None and config.on_miss == "compute"
        self.predictor = predictor
        self.chooser = chooser
        self._observer = observer
        self.far = FarWork(store, workers, scale, correct=config.correct_far)
        self._mover = Mover(config, store, store.slots, workers)
        self._thrift = Thrift(config, store)
        layers = store.pages.pool.k.shape[0]
        self._sources = source_layers(config, layers)
        self._has_scouts = torch.tensor([source != layer for layer, source in enumerate(self._sources)])
        self._targets = [[t for t in range(layers) if self._sources[t] == s != t] for s in range(layers)]

    def begin(self, batch: int, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        view = self._store.begin_step(batch)
        self._rope = rope
        self._rows = self._plan(view)
        self._ahead: dict[int, _Wanted] = {}  # by scouts, for layers to come
        self._held: dict[int, _Wanted] = {}  # of these, what the true query will attend to
        self._fetched = self._guarded_heads = 0
        self._closed = view.closed
        self._counts = torch.zeros(2, batch, dtype=torch.int64)  # blocks chosen, and absent ones
        self._began = time.perf_counter()
        self.far.reset()
        self._mover.begin(view)
        self.chooser.begin(view)
        return self._attend

    def _plan(self, view: StepView) -> _Rows:
        budget = self._config.budget_blocks
        crowded = ~self._slots.complete(view.closed)
        fits = torch.ones_like(crowded) if budget is None else view.closed <= budget
        ahead = self._store.trusted[:, : view.batch] & self._has_scouts[:, None]
        scouted, true, roomy = crowded & ~fits & ahead, crowded & (fits | ~ahead), ~crowded & ~fits
        asked = true | roomy | (scouted & self._guards)
        return _Rows(
            scouted=scouted,
            true=true,
            fits=fits,
            roomy=roomy,
            asked=asked,
            noted=asked & ~fits,
            any_scouted=scouted.any(1).tolist(),
            any_true=true.any(1).tolist(),
            any_asked=asked.any(1).tolist(),
            any_roomy=bool(roomy.any()),
        )

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        wanted = self._truly_wanted(layer, q)
        self._look_ahead(layer, q, x, wanted)
        pool = store.near_pool
        near = self._workers.partial(q, pool.k[layer], pool.v[layer], self._near(layer, wanted), self._scale)
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
        if not rows.any_asked[layer]:
            return None
        wanted = self._wanted(layer, q, rows.asked[layer])
        self._mover.note(layer, wanted.choice, rows.noted[layer], wanted.counts)
        return wanted

    def _wanted(self, layer: int, q: Tensor, rows: Tensor) -> _Wanted:
        """What queries q of a layer choose for some rows, bool [B], and which of it is absent."""
        choice = self.chooser.choose(layer, q)
        asked = (rows, self._rows.fits, self._thrift.least(q.shape[0]))
        slots = self._slots.of_blocks(layer, q.shape[0])
        always = self._thrift.always
        sifted = sift(self._workers, choice.blocks, choice.wishes, self._closed, slots=slots, rows=asked, always=always)
        return _Wanted(choice._replace(valid=sifted.valid), sifted.absent, sifted.counts)

    def _look_ahead(self, layer: int, q: Tensor, x: Tensor, wanted: _Wanted | None) -> None:
        """Start what the scouts of later layers want, and what this layer wants where only its true query will do."""
        rows = self._rows
        for target in self._targets[layer]:
            if rows.any_scouted[target]:
                scout = self.predictor.predict(target, x, self._rope)
                ahead = self._wanted(target, scout, rows.scouted[target])
                if not self._guards:  # else the true query's wishes will be known
                    self._mover.note(target, ahead.choice, rows.scouted[target], ahead.counts)
                self._serve(target, scout, ahead, predicted=True)
        if layer in self._held:
            held = self._held.pop(layer)
            self.far.start(layer, q, held.choice.blocks, held.absent, predicted=False)
        if wanted is not None and rows.any_true[layer]:
            self._serve(layer, q, wanted.of(rows.true[layer]))

    def _serve(self, layer: int, q: Tensor, wanted: _Wanted, *, predicted: bool = False) -> None:
        """See to what is wanted and absent."""
        config, blocks, absent = self._config, wanted.choice.blocks, wanted.absent
        self._counts += wanted.counts
        if self._observer is not None:
            resident = self._slots.resident(layer, q.shape[0])
            self._observer.chose(layer, q if predicted else None, Chosen(blocks, wanted.choice.valid, resident))
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
        if wanted is None or not self._rows.any_roomy:
            return near
        chosen = wanted.of(self._rows.roomy)
        self._counts += chosen.counts
        return self._slots.keep(layer, near, chosen.choice.blocks, chosen.choice.valid, self._rows.roomy[:, None, None])

    def _guard(self, layer: int, q: Tensor, wanted: _Wanted, near: Partial, far: Far) -> tuple[Far, Tensor | None]:
        """The far part, with what a scout missed or spoilt computed now; in which KV heads, bool [B, H], if in any."""
        limit, ahead = self._config.guard, self._ahead[layer]
        assert limit is not None
        mine, theirs = (wanted.choice.blocks, wanted.absent, wanted.choice.wishes), (ahead.choice.blocks, ahead.absent)
        doubt = far.doubt(self._workers, q, near)
        found = find_late(self._workers, mine, theirs, doubt, rows=self._rows.scouted[layer], limit=limit)
        heads = int(found.counts[0].sum())
        if not heads:
            return far, None
        self._guarded_heads += heads
        self._counts += found.counts[1]
        both = far.but(self._workers, found.spoilt, self.far.attend(layer, q, wanted.choice.blocks, found.late))
        return both, found.spoilt | found.late.any(-1)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        recalled = self._fetched
        if self._config.on_miss != "fetch":
            recalled += self._mover.recall(self._pressure())
        chosen, far = self._counts
        self._thrift.learn(far, chosen)
        self._mover.seat(self._store.end_step())
        return StepStats(
            chosen_blocks=int(chosen.sum()),
            far_blocks=int(far.sum()),
            guarded_heads=self._guarded_heads,
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
