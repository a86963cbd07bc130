"""Teacher forcing: known tokens through the very engine that generates, to compare what it predicts."""

from collections.abc import Callable, Iterator

from torch import Tensor

from ..attention.step import StepStats
from ..errors import ConfigError, PromptError
from .engine import Engine
from .runner import Progress
from .sampler import NOT_FINITE, not_finite


def teacher_forced(
    engine: Engine, token_ids: list[int], context: int, progress: Progress | None = None
) -> Iterator[tuple[Tensor, StepStats]]:
    """Prefill `context` tokens of an idle engine, then feed the rest one by one; see `fed`."""
    return fed(engine, token_ids, context, lambda: engine.runner.prefill(0, token_ids[:context], progress))


def fed(
    engine: Engine, token_ids: list[int], context: int, fill: Callable[[], object]
) -> Iterator[tuple[Tensor, StepStats]]:
    """Feed the tokens after the first `context`, for which `fill` makes the cache in row 0 of an idle engine.

    Yields for each fed token the next-token logits, float32 [vocab], and what the step did.
    Raises PromptError where the tokens leave nothing to feed, or are more than `max_model_len`, ConfigError where ranks
    share the model: the others would not be fed, ModelError where logits are not finite.
    """
    assert not engine.busy
    if engine.ranks.size > 1:
        raise ConfigError(f"{engine.ranks.size} ranks cannot be fed known tokens: set tensor_parallel_size to 1")
    if not 0 < context < len(token_ids) <= engine.plan.max_len:
        raise PromptError(
            f"a context of {context} of {len(token_ids)} tokens must leave at least 1 to feed, and all must be within "
            f"max_model_len={engine.plan.max_len}"
        )
    quota = engine.plan.quota(1, len(token_ids))
    engine.store.admit(0, engine.plan.blocks(len(token_ids)), quota)
    try:
        fill()
        for position in range(context, len(token_ids)):
            logits, step, (token,) = engine.runner.decode([token_ids[position]], [position])
            if token == NOT_FINITE:
                raise not_finite(engine.runner.decoder.shape.dtype)
            yield logits[0].cpu(), step
    finally:
        engine.store.release(0)
