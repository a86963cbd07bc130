"""A span: what one lane of a timeline did, and when."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One stage of one layer.

    lane: who worked: "device", "worker 1", "link", "scheduler".   name: the stage.   layer: None outside of layers.
    start_s, end_s: seconds of a clock that all spans of a timeline share.
    """

    lane: str
    name: str
    layer: int | None
    start_s: float
    end_s: float
