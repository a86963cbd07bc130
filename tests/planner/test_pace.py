"""What `scout doctor --measure` finds out about the cores."""

from dataclasses import replace

import pytest

from scoutattention import ScoutConfig
from scoutattention.bench.decode import pace
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import Computer, Processor
from scoutattention.planner.planner import predict, work_of


@pytest.fixture(scope="module")
def measured():
    return pace.measure_pace()


def test_every_part_is_of_a_computer(measured):
    assert 1e8 < measured.flops < 1e13
    assert 1e-6 < measured.full.first < 1e-2
    assert all(0 <= number < 1e-2 for part in measured[1:] for number in part)
    assert measured.call.first > 0, "slots take calls of their own"


def test_parts_are_differences():
    assert list(pace._parts([1.0, 1.5, 3.0, 4.0])) == [1.0, 0.5, 2.0, 1.0]
    assert list(pace._parts([1.0, 0.9, 3.0, 2.0])) == [1.0, 0.0, 2.0, 0.0], "noise is no time"


def test_a_slow_core_makes_a_step_slow(measured):
    """A predicted step is longer by what its layers are."""
    known = read_model("smollm2-135m")
    work = work_of(known, ScoutConfig(), 4096)
    host = Processor(2, 16 << 30, 40e9, "a test's", measured=True, pace=measured)
    slow = replace(host, pace=measured._replace(full=measured.full._replace(first=measured.full.first + 1e-3)))
    fast, long = (predict("scout", work, Computer("a test's", one)).step_s for one in (host, slow))
    assert long - fast == pytest.approx(known.shape.num_layers * 1e-3)
