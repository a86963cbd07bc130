"""What every measurement shares."""

from scoutattention.bench.common import measure
from scoutattention.bench.common.measure import interleaved


def test_calls_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def taking(name, *seconds):
        left = list(seconds)

        def call():
            calls.append(name)
            now[0] += left.pop(0)

        return call

    assert interleaved([taking("a", 90, 1, 2, 6), taking("b", 90, 5, 4, 3)], 3) == [2, 4]
    assert calls == ["a", "b"] * 4
