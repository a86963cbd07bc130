"""The pictures of --plot and --html. Only these flags load this module, because matplotlib is an extra."""

from ...bench.plot import decode_png, gpu_png, serve_png, timeline_png
from ...eval.fidelity.plot import png as fidelity_png
from ...eval.retrieval.plot import png as retrieval_png

__all__ = ["decode_png", "fidelity_png", "gpu_png", "retrieval_png", "serve_png", "timeline_png"]
