"""The examples of docs/server.md."""

import json
import re
from pathlib import Path

import pytest

from scoutattention.cli import main

from .conftest import serving
from .fake import FakeEngine

PAGE = (Path(__file__).parents[2] / "docs/server.md").read_text()


def test_the_bodies_of_the_examples_are_answered():
    bodies = re.findall(r"(/v1/[\w/]+) .*\\\n +-d '(.*)'", PAGE)
    assert len(bodies) == 2
    with serving(FakeEngine(), model="smollm2") as client:
        for path, body in bodies:
            assert client.post(path, content=body).status_code == 200, body
        assert json.loads(bodies[0][1])["model"] == "smollm2"


def test_the_python_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with serving(FakeEngine(), model="smollm2") as client:
        exec(code.replace("http://127.0.0.1:8000", str(client.base_url)), {})
    assert capsys.readouterr().out == "Hi there!"


def test_all_paths_and_metrics_are_there(client):
    described = client.get("/openapi.json").json()["paths"]
    table = PAGE[PAGE.index("## Paths") : PAGE.index("## What requests")]
    for path in re.findall(r"`(?:GET |POST )?(/[\w/.]+)`", table):
        assert path in described or client.get(path).status_code == 200, path


def test_the_table_has_the_metrics_that_there_are(client):
    client.post_json("/v1/completions", prompt="One")
    told = client.get("/metrics").text
    known = set(re.findall(r"^# TYPE (\S+) (?!gauge\Z)", told, re.M)) - set(
        re.findall(r"^# TYPE (\S+_created) ", told, re.M)
    )
    assert set(re.findall(r"`((?:vllm|scout):\w+)`", PAGE)) == known


@pytest.mark.parametrize("command", ["serve", "bench serve"])
def test_all_flags_are_there(command, capsys):
    main([*command.split(), "--help-all"])
    known = capsys.readouterr().out
    sections = {"serve": ("## Start", "## Paths"), "bench serve": ("## Load", None)}
    begin, end = sections[command]
    part = PAGE[PAGE.index(begin) : PAGE.index(end) if end else None]
    for flag in re.findall(r"(--[a-z][a-z-]+)", part):
        assert flag in known, flag


def test_fields_are_read(client):
    part = PAGE[PAGE.index("## What requests") : PAGE.index("The defaults are")]
    schemas = client.get("/openapi.json").json()["paths"]
    known = json.dumps([schemas[path]["post"]["requestBody"] for path in ("/v1/completions", "/v1/chat/completions")])
    known += json.dumps(client.get("/openapi.json").json()["components"])
    for field in re.findall(r"`([a-z_]+)`", part):
        assert f'"{field}"' in known, field
