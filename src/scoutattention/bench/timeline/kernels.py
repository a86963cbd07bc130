"""What a GPU did, from the profiler of PyTorch: the lanes of the device and of the link, in captured steps too."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...trace.span import Span
from ...trace.timeline import DEVICE, LINK, WAIT
from ..common.profiler import Event, short_name

NEAR, PRODUCT = "near", "product"
STAGES = {
    "take": WAIT,
    "append": "append",
    "partial": NEAR,
    "combine": NEAR,
    "join": "merge",
    "merge": "merge",
    "correct_kernel": "merge",
    "scout_error": "guard",
    "score": "choose",
    "top": "choose",
    "project": "choose",
    "product": PRODUCT,
    "dims": "scout",
    "correction": "scout",
    "split": "hand over",
    "list": "hand over",
    "stage": "hand over",
    "recall": "recall",
    "wanted": "recall",
    "count": "recall",
    "follow": "recall",
    "swiglu": "mlp",
}
"""Beginnings of the names of this project's kernels, and their stages."""


def spans_of(events: Iterable[Event]) -> list[Span]:
    """The kernels and copies of a GPU as spans of its lane and of the link's, without layers."""
    return [_span(event) for event in events]


def with_layers(spans: Iterable[Span], layers: int) -> list[Span]:
    """The spans of one step, in the order of time; where every layer has a stage equally often, it is counted which.

    One product more than that is the head's, which comes last.
    """
    by_name: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_s):
        by_name[span.lane, span.name].append(span)
    counted: list[Span] = []
    for (_, name), alike in by_name.items():
        own = len(alike) - 1 if name == PRODUCT and len(alike) % layers == 1 else len(alike)
        for place, span in enumerate(alike):
            layer = None if own % layers or place >= own else place * layers // own
            counted.append(replace(span, layer=layer))
    return sorted(counted, key=lambda span: span.start_s)


def with_waits(spans: Iterable[Span], waited_s: Mapping[int, float]) -> list[Span]:
    """The spans of one step, with waits where near attention itself takes far results: they are the end of its kernel.

    waited_s: of each layer that took far results, the seconds that it waited for them, perhaps 0: then the wait has no
    length, and arrows still end there. A layer with a kernel that only waits stays as it is.
    """
    whole = list(spans)
    without = waited_s.keys() - {span.layer for span in whole if span.name == WAIT}
    cut: list[Span] = []
    for span in whole:
        if span.lane == DEVICE and span.name == NEAR and span.layer in without:
            without.discard(span.layer)  # the first kernel of a layer takes; the second one combines splits
            middle = max(span.start_s, span.end_s - waited_s[span.layer])
            cut += replace(span, end_s=middle), replace(span, name=WAIT, start_s=middle)
        else:
            cut.append(span)
    return cut


def _span(event: Event) -> Span:
    times = event.start / 1e6, event.end / 1e6
    if event.copies:
        return Span(LINK, "copy", None, *times)
    name = short_name(event.name)
    stage = next((stage for begin, stage in STAGES.items() if name.lstrip("_").startswith(begin)), name)
    return Span(DEVICE, stage, None, *times)
