"""A plot of the GPU benchmark."""

from ..common import lines
from .cases import Result


def png(results: list[Result]) -> bytes:
    """For each context, tokens a second and milliseconds a step against the batch, a line for each engine."""
    return lines.png(results, "context", ("batch", "sequences"), _titles)


def _titles(context: int) -> dict[str, str]:
    return {
        "tokens_per_s": f"{context:,} tokens of context: decoded tokens a second",
        "ms_per_step": "milliseconds a step",
    }
