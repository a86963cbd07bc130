"""What one setting does to a plan."""

import json
from dataclasses import replace

import pytest

from scoutattention import ScoutConfig
from scoutattention.cli import main
from scoutattention.models.shapes.known import read_model
from scoutattention.planner.computers import find_computer
from scoutattention.planner.explore import explore
from scoutattention.planner.planner import work_of

WORK = work_of(read_model("qwen3-8b"), ScoutConfig(), 32768)
CARD = find_computer("rtx-4090")


def shares(scout, layers, slots):
    """Of a recording in which recall and slots halve what is absent, and layers differ."""
    share = (0.04 if scout.ablation.recall_interval else 0.2) / slots
    return [[share * (1 + layer % 2) / 1.5 for layer in range(layers)] for _ in range(4)]


def explored(work=WORK, batch=4, recorded=shares):
    return {(one.setting, one.value): one for one in explore(work, CARD, batch, recorded)}


def test_every_setting_has_the_value_that_is_planned_with():
    found = explored()
    usual = {setting: value for (setting, value), one in found.items() if one.usual}
    assert usual == {
        "lookahead": "1",
        "budget": "1024",
        "digest": "two-stage",
        "slots": "2 x budget",
        "recall": "every 8 steps",
    }
    assert len({one.step_s for one in found.values() if one.usual}) == 1


def test_each_setting_does_what_it_is_for():
    found = explored()
    assert found["lookahead", "0"].idle > found["lookahead", "1"].idle >= found["lookahead", "4"].idle
    assert found["budget", "4096"].step_s > found["budget", "1024"].step_s
    assert found["digest", "keys2"].step_s > found["digest", "two-stage"].step_s
    assert found["digest", "minmax"].device < found["digest", "two-stage"].device
    one, two, four = (found["slots", f"{slots} x budget"] for slots in (1, 2, 4))
    assert one.device < two.device < four.device
    assert one.absent == pytest.approx(2 * two.absent)
    assert one.far_s > two.far_s > four.far_s
    never = found["recall", "never"]
    assert never.absent == pytest.approx(0.2)
    assert never.cpu_share == pytest.approx(0.085), "the limit"


def test_without_a_recording_slots_and_recall_are_left_out():
    assert {setting for setting, _ in explored(recorded=None)} == {"lookahead", "budget", "digest"}


def test_the_most_sequences_that_fit_are_tried_and_none_may_fit():
    found = explored(batch=None)
    assert found["slots", "1 x budget"].batch > found["slots", "4 x budget"].batch > 1
    long = replace(WORK.shape, max_positions=1 << 20)
    assert {one.batch for one in explored(WORK._replace(context=1 << 20, shape=long)).values()} == {0}


def test_the_command_prints_a_table_for_each_context(capsys):
    args = ["plan", "qwen3-8b", "--hardware", "rtx-4090", "--context", "8192,1048576", "--explore"]
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "qwen3-8b on rtx-4090, 8,192 tokens: one setting changed at a time (* as planned)" in out
    assert "two-stage *" in out
    assert "Slots and recall need --drift FILE" in " ".join(out.split())
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["8192", "1048576"]
    assert found["8192"][0]["tokens_per_s"] > 0
