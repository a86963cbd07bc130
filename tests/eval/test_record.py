"""Recording choices: those of true queries and of scouts, step by step, of the steps that are measured."""

import json

import pytest
import torch

from scoutattention.attention.choose import Choice
from scoutattention.attention.observer import Attended, Chosen
from scoutattention.cli import main
from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.errors import ConfigError
from scoutattention.eval.fidelity.ablation import Variant
from scoutattention.eval.fidelity.recorder import Recorder, recorded_variants
from scoutattention.eval.fidelity.run import run
from scoutattention.eval.text import Text
from scoutattention.models.loader import load
from scoutattention.models.recording import load_recording

TEXT = Text("story", "Once upon a time there was a cache, and it did not fit. " * 5)
SMALL = ("--context", "192", "--steps", "3", "--block-size", "16", "--budget", "64")


def by_query(q):
    """Chooses blocks by the first number of the query."""
    blocks, wishes = torch.tensor([[[int(q[0, 0, 0, 0]), 2]]]), torch.arange(4.0)[None, None] / 8
    return Choice(blocks, wishes.gather(-1, blocks), torch.tensor([4]), torch.arange(4)[None, None], wishes)


def look(recorder, layer, true, scout=None):
    queries = [None if value is None else torch.full((1, 1, 1, 2), float(value)) for value in (true, scout)]
    resident = torch.tensor([[[True, False, True, layer == 1]]])
    recorder.chose(layer, queries[1], Chosen(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), resident))
    recorder.attended(layer, queries[0], by_query, Attended(torch.zeros(1, 1, 1)))


def test_steps_by_hand():
    recorder = Recorder()
    look(recorder, 0, true=3)
    look(recorder, 1, true=0, scout=1)
    look(recorder, 0, true=1)
    look(recorder, 1, true=3, scout=3)
    result = recorder.result(closed=3)
    assert result.true.blocks.tolist() == [[[[3, 2]], [[0, 2]]], [[[1, 2]], [[3, 2]]]]
    assert result.scouts.blocks.tolist() == [[[[3, 2]], [[1, 2]]], [[[1, 2]], [[3, 2]]]]
    assert result.true.wishes[0].tolist() == [[[0.375, 0.25]], [[0.0, 0.25]]]
    assert result.scouted.tolist() == [False, True]
    assert result.resident.tolist() == [[[True, False, True]]] * 2


def test_looking_changes_no_number(tiny_models):
    """The prompt is read once, so the variants of a run see the same text, recorded or not."""
    model, scout = (
        load(str(tiny_models["llama"])),
        ScoutConfig().changed(budget=64, block_size=16, true_query_layers=()),
    )
    variants = recorded_variants(Variant("scout", scout, "slots"), 192)
    recorders = {variant.name: Recorder() for variant in variants}
    results = [
        run(model, EngineConfig(), [TEXT], (192, 4), variants=variants, watch=lambda *told: None, also=also)
        for also in (None, recorders)
    ]
    assert [row.fidelity.kl for row in results[0]] == [row.fidelity.kl for row in results[1]]
    chosen = recorders["plain"].result(12)
    assert chosen.true.blocks.shape == (4, 3, 2, 3)
    assert 0 < float((chosen.true.blocks != chosen.scouts.blocks)[:, 1:].float().mean()) < 1
    assert torch.equal(chosen.true.blocks[:, 0], chosen.scouts.blocks[:, 0])  # the first layer has no scouts


def test_the_command_writes_a_file(tiny_models, tmp_path, capsys):
    (tmp_path / "story.txt").write_text(TEXT.text)
    file = tmp_path / "r.safetensors"
    args = ("--text", str(tmp_path / "story.txt"), *SMALL, "--record", str(file))
    assert main(["eval", "fidelity", str(tiny_models["llama"]), *args, "--json"]) == 0
    recording = load_recording(file)
    assert (recording.about.context, recording.about.budget, recording.about.block_size) == (192, 64, 16)
    assert recording.about.text == str(tmp_path / "story.txt")
    assert list(recording.runs) == ["plain", "calibrated"]
    assert recording.runs["plain"].true.blocks.shape == (3, 3, 2, 3)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["plain", "calibrated"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--context", "100"), "100 tokens are not a multiple of block_size=16"),
        (("--context", "64"), "within budget=64"),
        (("--lookahead", "0"), "lookahead=0 makes no scouts"),
        (("--device-memory", "all"), "device_memory='all' leaves no block absent"),
        (("--ablation", "predictor=plain"), "leave out --ablation predictor"),
        (("--ablate",), "leave out --ablation predictor=... and --ablate"),
        (("--text", "a.txt", "--text", "b.txt"), "--record takes one text, and there are 2"),
        (("--record", "/nowhere/r"), "there is no folder /nowhere"),
    ],
)
def test_mistakes_are_named(tiny_models, tmp_path, capsys, args, message):
    model = str(tiny_models["llama"])
    assert main(["eval", "fidelity", model, *SMALL, "--record", str(tmp_path / "r"), *args]) == 2
    assert message in capsys.readouterr().err


def test_where_everything_fits_there_is_nothing_to_record():
    with pytest.raises(ConfigError, match="every block fits the device"):
        Recorder().result(4)
