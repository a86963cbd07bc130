"""A plot of decode results."""

from ..common import lines
from .measure import Result


def png(results: list[Result]) -> bytes:
    """For each batch size, tokens a second and memory against the context's length, a line for each engine."""
    return lines.png(results, "batch", ("context", "context, tokens"), _titles)


def _titles(batch: int) -> dict[str, str]:
    name = f"{batch} sequence{'s' if batch > 1 else ''}"
    return {"tokens_per_s": f"{name}: decoded tokens a second", "rss_mib": f"{name}: MiB of the process"}
