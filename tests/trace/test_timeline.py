"""Timelines: steps, and what they hid and waited for."""

import pytest

from scoutattention.trace.timeline import Timeline, far_time, stage_seconds

from .examples import ARROWS, LATER, STEP, TIMELINE, WAITED, WORK


def test_lanes_are_in_the_order_of_a_picture():
    assert TIMELINE.lanes() == ["scheduler", "device", "link", "worker 1", "worker 2"]


def test_a_part_is_what_began_in_a_step():
    both = Timeline((LATER, *TIMELINE.spans), ARROWS)
    assert both.steps() == [STEP, LATER]
    assert both.part(STEP) == TIMELINE
    assert both.part(LATER) == Timeline((LATER,))


def test_time_before_a_wait_is_hidden():
    times = far_time(TIMELINE)
    assert times.hidden_s == pytest.approx(10.005 - 10.0015)
    assert times.waited_s == pytest.approx(0.002)


def test_work_that_ended_before_its_wait_is_hidden_to_its_end():
    early = Timeline((WORK[0], WAITED), ARROWS[1:2])
    assert far_time(early).hidden_s == pytest.approx(10.005 - 10.0015)
    late = Timeline(tuple(span for span in TIMELINE.spans if span not in WORK))
    assert far_time(late).hidden_s == 0
    assert far_time(late).waited_s == pytest.approx(0.002)


def test_stages_of_the_device_add_up():
    assert stage_seconds(TIMELINE) == pytest.approx({"near": 0.003, "wait far": 0.002, "hand over": 0.001})
