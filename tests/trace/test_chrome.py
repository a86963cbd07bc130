"""Files of timelines: what their viewers ask of them, what comes back, and what is refused."""

import json
import random

import pytest

from scoutattention.errors import ConfigError
from scoutattention.trace.chrome import from_json, to_json
from scoutattention.trace.span import Span
from scoutattention.trace.timeline import Arrow, Timeline

from .examples import GIVE, TIMELINE, WAITED, WORK


def events_of(text: str, kind: str) -> list[dict]:
    return [event for event in json.loads(text)["traceEvents"] if event["ph"] == kind]


def test_what_is_written_is_read():
    (name, back), *others = from_json(to_json({"scout": TIMELINE})).items()
    assert (name, others) == ("scout", [])
    assert len(back.spans) == len(TIMELINE.spans)
    for span, one in zip(TIMELINE.spans, back.spans, strict=True):
        assert (one.lane, one.name, one.layer) == (span.lane, span.name, span.layer)
        assert one.start_s == pytest.approx(span.start_s - 10.0, abs=2e-9)
        assert one.end_s == pytest.approx(span.end_s - 10.0, abs=2e-9)
    of_back = [(back.spans.index(arrow.start), back.spans.index(arrow.end)) for arrow in back.arrows]
    spans = TIMELINE.spans
    assert of_back == [(spans.index(arrow.start), spans.index(arrow.end)) for arrow in TIMELINE.arrows]


def test_viewers_find_names_and_microseconds():
    text = to_json({"scout": TIMELINE, "dense": Timeline((Span("device", "near", 0, 10.5, 11.0),))})
    names = {(one["pid"], one["tid"]): one["args"]["name"] for one in events_of(text, "M") if "name" in one["args"]}
    assert [names[1, 0], names[2, 0]] == ["scout", "dense"]
    assert [names[1, thread] for thread in range(1, 6)] == ["scheduler", "device", "link", "worker 1", "worker 2"]
    give, dense = (one for one in events_of(text, "X") if one["name"] == "hand over" or one["pid"] == 2)
    assert give == {"ph": "X", "name": "hand over", "pid": 1, "tid": 2, "ts": 1000, "dur": 1000, "args": {"layer": 1}}
    assert dense == {"ph": "X", "name": "near", "pid": 2, "tid": 1, "ts": 5e5, "dur": 5e5, "args": {"layer": 0}}


def test_arrows_never_point_back_in_time():
    text = to_json({"scout": TIMELINE})
    starts, ends = events_of(text, "s"), events_of(text, "f")
    assert [one["id"] for one in starts] == [one["id"] for one in ends]
    assert len({one["id"] for one in starts}) == len(TIMELINE.arrows)
    assert all(start["ts"] <= end["ts"] for start, end in zip(starts, ends, strict=True))
    spans = {(one["pid"], one["tid"]): [] for one in events_of(text, "X")}
    for one in events_of(text, "X"):
        spans[one["pid"], one["tid"]].append((one["ts"], one["ts"] + one["dur"]))
    for one in starts + ends:
        assert any(begin <= one["ts"] < end for begin, end in spans[one["pid"], one["tid"]]), "viewers need a slice"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("ELF", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("3", "no list of traceEvents"),
        ('{"traceEvents": 3}', "no list of traceEvents"),
        ("[1]", "no list of traceEvents"),
        ("[]", "no spans"),
        ('{"traceEvents": []}', "no spans"),
        ('[{"ph": "X"}]', "malformed"),
        ('[{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": "x", "dur": 1}]', "malformed"),
        ('[{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": 1, "dur": -1}]', "malformed"),
        ('[{"ph": "X", "name": "a", "pid": [], "tid": 1, "ts": 1, "dur": 1}]', "malformed"),
        ('[{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": NaN, "dur": 1}]', "malformed"),
        ('[{"ph": "M", "name": "thread_name", "pid": 1, "tid": 1}]', "malformed"),
    ],
)
def test_what_is_no_trace_is_refused(text, reason):
    with pytest.raises(ConfigError, match=reason):
        from_json(text)


def test_events_of_other_programs_are_left_out():
    mine = json.loads(to_json({"scout": TIMELINE}))["traceEvents"]
    others = [{"ph": "i", "name": "instant", "ts": 1}, {"ph": "C"}, {}, {"ph": "s", "id": 1, "pid": 1}]
    assert from_json(json.dumps(others + mine)) == from_json(json.dumps(mine))


def test_a_damaged_file_is_read_or_refused():
    text = to_json({"scout": TIMELINE})
    source = random.Random(3)
    values = ["null", "-1", '"x"', "{}", "[]", "1e999", "true", ""]
    read = 0
    for _ in range(600):
        place = source.randrange(len(text))
        damaged = text[:place] + source.choice(values) + text[place + source.randrange(12) :]
        try:
            from_json(damaged)
            read += 1
        except ConfigError:
            pass
    assert read < 600


def test_an_arrow_needs_both_ends():
    events = json.loads(to_json({"scout": Timeline((GIVE, WORK[0], WAITED), (Arrow(GIVE, WORK[0]),))}))["traceEvents"]
    assert len(from_json(json.dumps(events))["scout"].arrows) == 1
    assert not from_json(json.dumps([one for one in events if one["ph"] != "s"]))["scout"].arrows
    moved = [one | {"ts": 9e9} if one["ph"] == "f" else one for one in events]
    assert not from_json(json.dumps(moved))["scout"].arrows
