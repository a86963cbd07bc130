"""Pictures of a decode step."""

import math
import re

import pytest

from scoutattention.errors import ConfigError
from scoutattention.trace.html import nice_step, to_html
from scoutattention.trace.picture import COLOURS, OTHERS, draw_step
from scoutattention.trace.span import Span
from scoutattention.trace.timeline import Timeline

from .examples import ARROWS, LATER, NEAR, TIMELINE

TWO = Timeline((*TIMELINE.spans, LATER), ARROWS)


def test_a_step_is_drawn_from_its_beginning():
    picture = draw_step({"scout": TWO}, 1)
    assert picture.titles == (
        "decode step 1 of 2: 10 ms. CPU attention to far blocks: 3.5 ms hidden behind other work, 2 ms waited for.",
    )
    assert picture.rows == ("scheduler", "device", "link", "worker 1", "worker 2")
    near = next(bar for bar in picture.bars if bar.text.startswith("near, layer 1: 3 ms"))
    assert (near.row, near.colour) == (1, COLOURS["near"])
    assert (near.start_ms, near.end_ms) == pytest.approx((2, 5))
    assert len(picture.lines) == len(ARROWS)
    assert all(line.from_ms <= line.to_ms for line in picture.lines)
    assert picture.layers == pytest.approx({1: 1.0})
    assert picture.end_ms == pytest.approx(10)


def test_without_a_number_the_median_step_is_drawn():
    third = Span("scheduler", "decode", None, 12.0, 12.005)
    picture = draw_step({"scout": Timeline((*TWO.spans, third), ARROWS)})
    assert picture.titles[0].startswith("decode step 3 of 3: 5 ms.")


def test_two_timelines_are_one_below_the_other():
    picture = draw_step({"scout": TIMELINE, "simulated": TWO, "other": Timeline((NEAR,))}, 2)
    assert [title.partition(",")[0] for title in picture.titles] == ["simulated"]
    picture = draw_step({"scout": TIMELINE, "simulated": TWO}, 1)
    assert [title.partition(",")[0] for title in picture.titles] == ["scout", "simulated"]
    assert picture.rows[4:6] == ("scout: worker 2", "simulated: scheduler")
    assert max(bar.row for bar in picture.bars) == 9


def test_a_stage_of_another_program_has_a_colour_of_its_own():
    strange = Span("device", "gemm", None, 10.008, 10.009)
    picture = draw_step({"scout": Timeline((*TIMELINE.spans, strange), ARROWS)})
    assert picture.legend["gemm"] == OTHERS[0]
    assert list(picture.legend)[-1] == "gemm"


@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_step_that_is_not_there_is_refused(number):
    with pytest.raises(ConfigError, match=rf"--step {number} is outside 1\.\.2, the decode steps of the file"):
        draw_step({"scout": TWO}, number)


def test_a_trace_without_a_step_is_refused():
    with pytest.raises(ConfigError, match='no decode step: a span "decode" of the lane "scheduler"'):
        draw_step({"scout": Timeline((NEAR,))})


def test_the_page_needs_no_other_file():
    name = "<script>&"
    page = to_html(draw_step({name: TIMELINE, "b": TIMELINE}))
    assert "<script" not in page
    assert "&lt;script&gt;&amp;: device" in page
    outside = [link for link in re.findall(r"(?:src|href|url|import)\W+\S+|https?://\S+", page) if "w3.org" not in link]
    assert not outside
    assert page.count("<rect") == 2 * len(TIMELINE.spans)
    assert "far, layer 1: 4.5 ms, from 1.500 ms" in page


@pytest.mark.parametrize("length", [1e-6, 0.3, 1, 7, 10, 36.2, 99.9, 12345])
def test_ticks_are_round_and_few(length):
    step = nice_step(length, 12)
    assert 4 <= length / step <= 12 + 1e-6
    digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert round(digit, 6) in (1, 2, 5, 10)
