"""What `scout doctor --measure` finds out about the cores."""

from dataclasses import astuple, replace

import pytest

from scoutattention import ScoutConfig
from scoutattention.bench.decode import pace
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import Computer, Processor
from scoutattention.planner.cpu_costs import PACE, REAL
from scoutattention.planner.planner import predict, work_of

KNOWN = read_model("smollm2-135m")
LAYERS = KNOWN.shape.num_layers


@pytest.fixture(scope="module")
def measured():
    return pace.measure_pace()


def test_every_part_is_of_a_computer(measured):
    assert 1e8 < measured.flops < 1e13
    assert 0 < measured.full.first < 1e-2
    assert all(0 <= number < 1e-1 for part in astuple(measured)[1:] for number in part)


def test_parts_are_differences(monkeypatch):
    """Steps of 4 and 20 layers, with one sequence and with four."""

    def steps(layers):
        return [[10 * each + layers * each for each in (1.0, 1.5, 3.0, 4.0)], [16 + layers * 1.3] * 4]

    monkeypatch.setattr(pace, "_model_steps", steps)
    monkeypatch.setattr(pace, "_flops", lambda: 5.0)
    found = pace.measure_pace()
    assert found.flops == 5.0
    assert (found.step.first, found.step.more) == pytest.approx((10.0, 2.0))
    assert [first for first, _ in astuple(found)[2:]] == pytest.approx([1.0, 0.5, 2.0, 1.0])
    assert [more for _, more in astuple(found)[2:]] == pytest.approx([0.1, 0.0, 0.0, 0.0]), "less than nothing is noise"


@pytest.mark.parametrize(
    ("part", "times", "design"),
    [
        ("step", 1, "full"),
        ("full", LAYERS, "full"),
        ("choice", LAYERS * REAL, "scout"),
        ("slots", LAYERS * REAL, "scout-slots"),
        ("scout", LAYERS * REAL, "scout-slots"),
    ],
)
def test_a_slow_part_makes_a_step_longer(part, times, design):
    """With slots without far blocks, so that nothing is waited for."""
    work = work_of(KNOWN, ScoutConfig(), 8192)._replace(drift=0.0)
    slow = replace(PACE, **{part: replace(getattr(PACE, part), first=getattr(PACE, part).first + 1e-3)})
    hosts = (Processor(2, 16 << 30, 40e9, "a test's", measured=True, pace=pace) for pace in (PACE, slow))
    fast, long = (predict(design, work, Computer("a test's", host)).step_s for host in hosts)
    assert long - fast == pytest.approx(times * 1e-3, rel=1e-3)
