"""What is asked and how it is counted; then the whole of it, on engines, through the command."""

import json
import re

import pytest

from scoutattention import ConfigError, EngineConfig, PromptError, ScoutConfig
from scoutattention.cache.pool import PackedPool
from scoutattention.cli import main
from scoutattention.eval.retrieval.measure import (
    Cell,
    Grid,
    Pair,
    Row,
    found,
    heatmap,
    measure,
    open_pair,
    share_prompts,
    summarise,
)
from scoutattention.eval.retrieval.plot import draw_heatmaps
from scoutattention.eval.retrieval.tasks import TASKS, Puzzle
from scoutattention.models.loader import load

ROWS = [
    Row("single", 100, 0, 1.0, 0.5),
    Row("single", 100, 50, 0.5, 0.5),
    Row("vt", 100, 0, 0.0, 0.5),
    Row("vt", 200, 0, 0.25, 0.0),
    Row("common", 200, None, 0.0, 1.0),
]


def asked(capsys, model, *args):
    """The JSON object of `scout eval retrieval`."""
    assert main(["eval", "retrieval", str(model), "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_cells_are_every_combination():
    grid = Grid(lengths=(10, 20), depths=(0, 100), tasks=("single", "common"))
    assert list(grid.cells()) == [
        Cell("single", 10, 0),
        Cell("single", 10, 100),
        Cell("common", 10, None),
        Cell("single", 20, 0),
        Cell("single", 20, 100),
        Cell("common", 20, None),
    ]


def test_every_sample_is_another_puzzle():
    grid = Grid(lengths=(10, 20), depths=(0, 100), tasks=("single",), samples=3)
    answers = [puzzle.answers for cell in grid.cells() for puzzle in grid.puzzles(cell)]
    assert len(answers) == len(set(answers)) == 12
    assert answers == [puzzle.answers for cell in grid.cells() for puzzle in grid.puzzles(cell)]
    other = Grid(lengths=(10, 20), depths=(0, 100), tasks=("single",), samples=3, seed=1)
    assert not set(answers) & {puzzle.answers for cell in other.cells() for puzzle in other.puzzles(cell)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lengths": ()}, "lengths has 0 values and needs at least 1"),
        ({"lengths": (0, 5)}, "lengths=0 is below the least value 1"),
        ({"depths": (0, 101)}, "depths=0 to 101 is not within 0 to 100 percent"),
        ({"tasks": ("single", "qa")}, "tasks='qa' is not one of single, multikey"),
        ({"samples": 0}, "samples=0 is below the least value 1"),
    ],
)
def test_grids_are_checked(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Grid(**wrong)


def test_the_score_is_the_part_of_the_answers_that_was_found():
    puzzle = Puzzle(str, "", "", "", ("123", "ABC", "x y"), 1)
    assert found("it is 1234, then abc", puzzle) == pytest.approx(2 / 3)
    assert found("", puzzle) == 0


def test_summaries_and_heatmaps_are_means():
    summary = summarise(ROWS)
    assert summary["tasks"]["single"] == {"rows": 2, "full": 0.75, "scout": 0.5, "difference": -0.25}
    assert summary["all"] == pytest.approx({"rows": 5, "full": 0.35, "scout": 0.5, "difference": 0.15})
    assert summary["answerable"] == {"rows": 2, "full": 0.75, "scout": 0.5, "difference": -0.25}
    assert summarise(ROWS[2:3])["answerable"] == {"rows": 0, "full": None, "scout": None, "difference": None}
    assert heatmap(ROWS, "full") == {100: {0: 0.5, 50: 0.5}, 200: {0: 0.25, None: 0.0}}


def test_the_picture_shows_what_was_measured():
    full, scout, difference = draw_heatmaps(ROWS, "m").axes
    written = [[text.get_text() for text in axes.texts] for axes in (full, scout, difference)]
    assert written == [["50", "50", "25", "0"], ["50", "50", "0", "100"], ["0", "0", "-25", "100"]]
    assert [label.get_text() for label in full.get_xticklabels()] == ["0", "50", "all"]
    assert [label.get_text() for label in full.get_yticklabels()] == ["100", "200"]


def test_scores_stand_in_the_column_of_their_engine(monkeypatch):
    """Here an engine is how many of the answers it gives."""
    monkeypatch.setattr(
        "scoutattention.eval.retrieval.measure.answer", lambda n, _t, _i, puzzle: " ".join(puzzle.answers[:n])
    )
    pair = Pair(load("smollm2").tokenizer, full=4, scout=1)
    grid = Grid(lengths=(400,), depths=(50,), tasks=("multivalue",))
    assert measure(pair, grid) == [Row("multivalue", 400, 50, full=1.0, scout=0.25)]


def test_a_real_model_finds_a_code_both_ways():
    grid = Grid(lengths=(240,), depths=(50,), tasks=("single",))
    pair = open_pair(load("smollm2"), grid, ScoutConfig(budget=128), EngineConfig(device_memory="slots"))
    assert measure(pair, grid) == [Row("single", 240, 50, 1.0, 1.0)]
    assert pair.full.stats.steps.far_blocks == 0
    assert pair.scout.stats.near_blocks + pair.scout.stats.far_blocks < pair.full.stats.near_blocks
    pair.close()


class CountingRunner:
    """Reads a prompt as its sum, and replays what was recorded of another's."""

    def __init__(self):
        self.prompts, self.replayed = [], []

    def read(self, row, token_ids, record=None):
        yield 0
        self.prompts.append(token_ids)
        if record is not None:
            record.append(tuple(token_ids))
        return sum(token_ids)

    def replay(self, row, record):
        self.replayed += record


def test_a_prompt_is_read_once_for_both_engines():
    reader, follower = CountingRunner(), CountingRunner()
    share_prompts(reader, follower)
    for prompt in ([1, 2], [3, 4]):
        assert whole(reader.read(0, prompt)) == whole(follower.read(0, prompt)) == sum(prompt)
    assert whole(follower.read(0, [5])) == 5
    assert (reader.prompts, follower.prompts, follower.replayed) == ([[1, 2], [3, 4]], [[5]], [(1, 2), (3, 4)])


def whole(reading):
    """What a generator returns at its end."""
    try:
        while True:
            next(reading)
    except StopIteration as end:
        return end.value


def test_what_is_asked_does_not_depend_on_the_method(tiny_models):
    """Nothing is approximated here, so nothing may differ: both engines are asked the same."""
    grid = Grid(lengths=(1000,), depths=(100,), tasks=tuple(TASKS), samples=2)
    scout = ScoutConfig().changed(budget=None, predictor="oracle")
    pair = open_pair(load(str(tiny_models["llama"])), grid, scout, EngineConfig(device_memory=1 << 18))
    told: list[tuple[int, int]] = []
    rows = measure(pair, grid, lambda *progress: told.append(progress))
    assert [row.difference for row in rows] == [0.0] * 6
    assert pair.scout.stats.far_blocks > 0
    assert told == [(done, 12) for done in range(1, 13)]
    pair.close()


def test_the_full_cache_is_not_packed_where_the_method_s_is(tiny_models):
    grid = Grid(lengths=(700,), tasks=("single",))
    scout, machine = ScoutConfig(budget=128), EngineConfig(kv_dtype="int8", device_memory="slots")
    pair = open_pair(load(str(tiny_models["llama"])), grid, scout, machine)
    assert [isinstance(engine.store.pages.pool, PackedPool) for engine in (pair.full, pair.scout)] == [False, True]
    pair.close()


def test_too_long_for_the_model_is_refused(tiny_models):
    model = load(str(tiny_models["llama"]))
    with pytest.raises(
        PromptError, match="prompts of 4090 tokens with answers of 24 are longer than max_model_len=4096"
    ):
        open_pair(model, Grid(lengths=(700, 4090), tasks=("single",)), ScoutConfig(), EngineConfig())


def test_the_command_reports_rows_and_means(capsys, tiny_models, tmp_path):
    picture = tmp_path / "map.png"
    args = ("--lengths", "600,700", "--depths", "0,50", "--tasks", "single,multikey", "--budget", "96", "--seed", "3")
    report = asked(capsys, tiny_models["qwen3"], *args, "--samples", "2", "--plot", str(picture))
    assert [(row["task"], row["length"], row["depth"]) for row in report["rows"]] == [
        (task, length, depth) for length in (600, 700) for task in ("single", "multikey") for depth in (0, 50)
    ]
    assert all(row["difference"] == row["scout"] - row["full"] for row in report["rows"])
    assert report["summary"]["all"]["rows"] == 8
    assert report["grid"] == {
        "lengths": [600, 700],
        "depths": [0, 50],
        "tasks": ["single", "multikey"],
        "samples": 2,
        "seed": 3,
    }
    assert report["config"]["budget"] == 96
    assert 0 <= report["cpu_share"] <= 1
    assert report["calibration"] == "the prompt's own"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_tables_name_what_they_show(capsys, tiny_models):
    args = ["--lengths", "1200", "--depths", "25", "--tasks", "single,common", "--budget", "96"]
    assert main(["eval", "retrieval", str(tiny_models["llama"]), *args]) == 0
    out = capsys.readouterr().out
    for part in ("Full attention\n", "Scout\n", "Difference\n", "25 %", "all", "1,200", "CPU share"):
        assert re.search(part.replace("\n", " *\n"), out), part


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lengths", "1k"], "--lengths='1k' is not a list of numbers as in 1024,2048"),
        (["--depths", ""], "--depths='' is not a list of numbers as in 1024,2048"),
        (["--tasks", "qa"], "tasks='qa' is not one of"),
        (["--plot", "/no/where.png"], "cannot write --plot /no/where.png: there is no folder /no"),
        (["--budget", "10"], "budget=10 tokens is below 96"),
    ],
)
def test_wrong_arguments_are_one_line(capsys, args, message):
    assert main(["eval", "retrieval", "nothing", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"scout: {message}")
    assert err.count("\n") == 1
