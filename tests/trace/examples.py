"""A timeline that tests share."""

from scoutattention.trace.span import Span
from scoutattention.trace.timeline import DECODE, DEVICE, FAR, LINK, SCHEDULER, WAIT, Arrow, Timeline, worker

STEP = Span(SCHEDULER, DECODE, None, 10.0, 10.010)
GIVE = Span(DEVICE, "hand over", 1, 10.001, 10.002)
NEAR = Span(DEVICE, "near", 1, 10.002, 10.005)
WAITED = Span(DEVICE, WAIT, 1, 10.005, 10.007)
WORK = (Span(worker(0), FAR, 1, 10.0015, 10.006), Span(worker(1), FAR, 1, 10.002, 10.007))
COPY = Span(LINK, "copy", None, 10.0, 10.001)
ARROWS = tuple(arrow for work in WORK for arrow in (Arrow(GIVE, work), Arrow(work, WAITED)))
TIMELINE = Timeline((STEP, GIVE, NEAR, WAITED, *WORK, COPY), ARROWS)
LATER = Span(SCHEDULER, DECODE, None, 11.0, 11.004)
"""Another step, in which nothing is far."""
