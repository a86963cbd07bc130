"""The guard: asks the true query what it would have chosen, and attends late to what a scout missed or spoilt."""

from torch import Tensor

from ..cache.store import KVStore
from ..kernels.ops import Ops
from ..types import GuardFinding, GuardRequest, Partial
from .choose import Wanted
from .far import Far, FarWork
from .step import ScoutStep


class Guard:
    """Checks the scout of every layer against the layer's true query, for each KV head by itself.

    A KV head is spoilt where the scout's error may weigh more than `limit` in the merge; blocks are missed where the
    true query wishes for more than `limit` that the scout did not choose. Both are attended to with the true query.
    """

    def __init__(self, limit: float, store: KVStore, ops: Ops, far: FarWork) -> None:
        """`limit`: the part of a KV head's attention, as `ScoutConfig.guard` says."""
        self._limit = limit
        self._store = store
        self._ops = ops
        self._far = far

    def check(
        self, step: ScoutStep, layer: int, q: Tensor, wanted: Wanted, ahead: Wanted, near: Partial, far: Far
    ) -> tuple[Far, GuardFinding | None]:
        """The far part with what the scout missed or spoilt, and what that was.

        wanted: of the true query q [B, H, G, D].   ahead: of the scout.   near, far: what was attended to.
        The finding is None where the host could see that nothing was missed or spoilt.
        """
        choice, counts = wanted.choice, step.tally.guarded[layer]
        finding = self._ops.find_late(
            GuardRequest(
                wanted=(choice.blocks, wanted.absent, choice.wishes),
                scouted=(ahead.choice.blocks, ahead.absent),
                scout_error=far.error(self._ops, q, near),
                rows=step.masks.scouted[layer],
                limit=self._limit,
                counts=counts,
            )
        )
        if not self._ops.deferred and not counts.any():
            return far, None
        late = self._far.attend(layer, q, self._store.select(choice.blocks, finding.late, step.batch))
        return far.with_late(self._ops, late, finding.spoilt), finding
