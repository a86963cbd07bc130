"""A layer's parts put together, by the single operations of any implementation."""

from ..types import GuardRequest, PageSelection, Partial
from .ops import JoinRequest, Ops


def join(ops: Ops, what: JoinRequest) -> Partial:
    """What a layer has attended to near, far, and late, as `JoinRequest` says; fills the guard's counts.

    Returns out in the dtype of q, and lse.
    """
    q, near, far, scout, scale, guard = what
    if far.mean_key is not None:
        assert scout is not None
        far = ops.corrected(far, q, scout, scale)
    if guard is not None:
        error = q.new_zeros(q.shape[:2]).float() if scout is None else ops.scout_error(far, near, q, scout)
        finding = ops.find_late(GuardRequest(guard.wanted, guard.scouted, error, guard.rows, guard.limit, guard.counts))
        if ops.deferred or guard.counts.any():
            (k, v), blocks = guard.pool, guard.wanted[0]
            pages = ops.page_list(PageSelection(guard.table, blocks, finding.late, k.shape[2]))
            far = ops.merge(far, ops.partial(q, k, v, pages, scale), without=finding.spoilt)
    merged = ops.merge(near, far)
    return Partial(merged.out.to(q.dtype), merged.lse)
