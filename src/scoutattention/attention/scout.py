"""A decode step of ScoutAttention (arXiv 2603.27138): the device attends to what it holds, the CPU to the rest."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.store import KVStore, StepView
from ..config import ScoutConfig
from ..kernels.cpu import Workers
from ..types import BlockList, Partial, Rope
from .base import Attend, StepStats
from .choose import Chooser
from .far import Far, FarWork
from .mover import Mover
from .observe import Attended, Chosen, Observer
from .predict import Predictor, source_layers


@dataclass(frozen=True)
class _Rows:
    """What each sequence of a step needs, bool [L, B, 1, 1] (fits, roomy: [B, 1, 1]), and for which layers any does.

    scouted: has absent blocks and more blocks than the budget: a scout chooses ahead, the CPU attends ahead.
    true: the same, but its scouts are not to be trusted in this layer, so the true query does both; or it has absent
        blocks and chooses them all, so that with the true query the result is exact.
    fits: has no more blocks than the budget.
    roomy: has every block in a slot, and more blocks than the budget: the true query chooses among the slots.
    The rest have every block in a slot and attend to them all.
    """

    scouted: Tensor
    true: Tensor
    fits: Tensor
    roomy: Tensor
    any_scouted: list[bool]
    any_true: list[bool]
    any_roomy: bool


class _Wanted(NamedTuple):
    """What some rows of a layer chose: blocks [B, H, N], which of them count, and which of those are absent."""

    blocks: Tensor
    valid: Tensor
    absent: Tensor


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
        self.predictor = predictor
        self.chooser = chooser
        self._observer = observer
        self.far = FarWork(store, workers, scale, correct=config.correct_far)
        self._mover = Mover(config, store, store.slots)
        layers = store.pages.pool.k.shape[0]
        self._sources = source_layers(config, layers)
        self._has_scouts = torch.tensor([source != layer for layer, source in enumerate(self._sources)])
        self._targets = [[t for t in range(layers) if self._sources[t] == s != t] for s in range(layers)]

    def begin(self, batch: int, rope: Rope) -> Attend:
        """See `Attention.begin`."""
        view = self._store.begin_step(batch)
        self._rope = rope
        self._rows = self._plan(view)
        self._held: dict[int, _Wanted] = {}  # chosen ahead, to be attended with the true query
        self._fetched = self._chosen_blocks = self._far_blocks = self._guarded_heads = 0
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
        return _Rows(
            scouted=scouted[..., None, None],
            true=true[..., None, None],
            fits=fits[..., None, None],
            roomy=roomy[..., None, None],
            any_scouted=scouted.any(1).tolist(),
            any_true=true.any(1).tolist(),
            any_roomy=bool(roomy.any()),
        )

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        store = self._store
        store.append(layer, k, v)
        self._look_ahead(layer, q, x)
        pool = store.near_pool
        near = self._workers.partial(q, pool.k[layer], pool.v[layer], self._near(layer, q), self._scale)
        far = self.far.take(layer, q)
        doubtful = None if far is None else self._doubtful(layer, q, near, far)
        if far is not None and doubtful is not None:
            far = far.but(doubtful, self._again(layer, q, doubtful))
        merged = near if far is None else self.far.join(near, far)
        if self._observer is not None:
            far_weight = (1 - (near.lse - merged.lse).exp()).clamp(min=0)
            self._observer.attended(layer, q, self.chooser, Attended(far_weight, doubtful))
        return merged.out.to(q.dtype)

    def _doubtful(self, layer: int, q: Tensor, near: Partial, far: Far) -> Tensor | None:
        """KV heads, bool [B, H], whose scouts may have spoilt more than the guard allows; None where none's have."""
        if self._config.guard is None or far.scout is None:
            return None
        doubt = far.doubt(self._workers, q, near)
        doubtful = ~(doubt <= self._config.guard) & self._rows.scouted[layer, :, :, 0]  # so is what is no number
        return doubtful if doubtful.any() else None

    def _again(self, layer: int, q: Tensor, heads: Tensor) -> Partial:
        """The far part of some KV heads, bool [B, H], chosen and attended with the true query."""
        self._guarded_heads += int(heads.sum())
        wanted = self._choose(layer, q, heads[..., None])
        return self.far.attend(layer, q, wanted.blocks, wanted.absent)

    def _near(self, layer: int, q: Tensor) -> BlockList:
        """What the device attends to: every slot, or the chosen ones where no block is absent."""
        near = self._store.near(layer)
        if not self._rows.any_roomy:
            return near
        wanted = self._choose(layer, q, self._rows.roomy)
        return self._slots.keep(layer, near, wanted.blocks, wanted.valid, self._rows.roomy)

    def _look_ahead(self, layer: int, q: Tensor, x: Tensor) -> None:
        """Choose for later layers with scouts made here, and for this layer where only its true query will do."""
        rows = self._rows
        for target in self._targets[layer]:
            if rows.any_scouted[target]:
                scout = self.predictor.predict(target, x, self._rope)
                self._serve(target, scout, rows.scouted[target], predicted=True)
        if layer in self._held:
            held = self._held.pop(layer)
            self.far.start(layer, q, held.blocks, held.absent, predicted=False)
        if rows.any_true[layer]:
            self._serve(layer, q, rows.true[layer])

    def _choose(self, layer: int, q: Tensor, rows: Tensor) -> _Wanted:
        """Choose blocks for some rows, or some of their heads, of a layer, and note which of them are absent."""
        choice = self.chooser.choose(layer, q)
        choice = choice._replace(valid=choice.valid & rows)
        absent = self._slots.absent(layer, choice.blocks) & choice.valid
        self._mover.note(layer, choice, rows & ~self._rows.fits, absent)
        self._chosen_blocks += int(choice.valid.sum())
        self._far_blocks += int(absent.sum())
        return _Wanted(choice.blocks, choice.valid, absent)

    def _serve(self, layer: int, q: Tensor, rows: Tensor, *, predicted: bool = False) -> None:
        """Choose blocks for some rows of a layer, and see to those that are absent."""
        config = self._config
        blocks, valid, absent = wanted = self._choose(layer, q, rows)
        if self._observer is not None:
            resident = self._slots.resident(layer, q.shape[0])
            self._observer.chose(layer, q if predicted else None, Chosen(blocks, valid, resident))
        if config.on_miss == "fetch":
            self._fetched += self._mover.fetch(layer, blocks, absent)
        elif config.on_miss == "compute" and predicted and config.far_query == "true":
            self._held[layer] = wanted
        elif config.on_miss == "compute":
            self.far.start(layer, q, blocks, absent, predicted=predicted)

    def end(self) -> StepStats:
        """See `Attention.end`."""
        recalled = self._fetched
        if self._config.on_miss != "fetch":
            recalled += self._mover.recall(self._pressure())
        self._mover.seat(self._store.end_step())
        return StepStats(
            chosen_blocks=self._chosen_blocks,
            far_blocks=self._far_blocks,
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
