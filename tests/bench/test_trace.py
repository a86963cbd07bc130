"""Traces: what their viewers ask of a file, and that one of `scout generate` shows what the engine did."""

import json

from scoutattention.bench.decode.job import Span
from scoutattention.bench.decode.trace import trace
from scoutattention.cli import main
from scoutattention.models.loader import load

FAR = Span("far", 2.0, 0.5, thread="workers", layer=3)


def events_of(text: str, kind: str) -> list[dict]:
    return [event for event in json.loads(text)["traceEvents"] if event["ph"] == kind]


def test_processes_and_threads_are_named_and_spans_are_in_microseconds():
    text = trace({"scout": [FAR, Span("step", 1.0, 2.0)], "dense": [Span("step", 4.0, 1.0)]})
    names = {(event["pid"], event["tid"], event["name"]): event["args"]["name"] for event in events_of(text, "M")}
    assert names == {
        (1, 0, "process_name"): "scout",
        (1, 0, "thread_name"): "main",
        (1, 1, "thread_name"): "workers",
        (2, 0, "process_name"): "dense",
        (2, 0, "thread_name"): "main",
    }
    step, far, dense = events_of(text, "X")
    assert step == {"name": "step", "ph": "X", "pid": 1, "tid": 0, "ts": 1e6, "dur": 2e6}
    assert far == {"name": "far", "ph": "X", "pid": 1, "tid": 1, "ts": 2e6, "dur": 5e5, "args": {"layer": 3}}
    assert (dense["pid"], dense["tid"]) == (2, 0)


def test_jobs_that_overlap_are_on_tracks_of_their_own():
    spans = [FAR._replace(start=start) for start in (2.0, 2.6, 2.4, 2.5)]
    tracks = {event["ts"] / 1e6: event["tid"] for event in events_of(trace({"scout": spans}), "X")}
    assert tracks == {2.0: 1, 2.4: 2, 2.5: 1, 2.6: 3}


def test_a_generation_is_traced(tiny_models, tmp_path, capsys):
    path, file = str(tiny_models["llama"]), tmp_path / "t.json"
    memory = ("--device-memory", str(5 * load(path).decoder.shape.block_bytes(8)))
    method = ("--budget", "48", "--block-size", "8", *memory)
    prompt = ("--prompt", "a b c d " * 40, "--max-tokens", "12", "--ignore-eos")
    assert main(["generate", path, *prompt, *method, "--trace", str(file)]) == 0
    spans = sorted(events_of(file.read_text(), "X"), key=lambda event: (event["ts"], -event["dur"]))
    ends = {track: [float("inf")] for track in {span["tid"] for span in spans}}
    for span in spans:
        around = ends[span["tid"]]
        while around[-1] <= span["ts"]:
            around.pop()
        assert span["ts"] + span["dur"] <= around[-1] + 1e-3, "spans of a track nest"
        around.append(span["ts"] + span["dur"])
    layers = [span for span in spans if span["name"] == "layer"]
    far = [span for span in spans if span["name"] == "far attention"]
    assert far
    assert all(span["tid"] > 0 and any(meets(span, layer) for layer in layers) for span in far)


def meets(one: dict, other: dict) -> bool:
    return one["ts"] < other["ts"] + other["dur"] and other["ts"] < one["ts"] + one["dur"]


def test_a_trace_needs_a_folder_before_a_model_is_loaded(capsys):
    assert main(["generate", "nowhere", "--prompt", "x", "--trace", "/nowhere/t.json"]) == 2
    assert "cannot write --trace /nowhere/t.json: there is no folder /nowhere" in capsys.readouterr().err
