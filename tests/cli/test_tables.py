"""The table of every command in narrow terminals: no number is cut, none is left out, and no path is broken."""

import re
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from scoutattention import Stats
from scoutattention.attention.step import StepStats
from scoutattention.bench.decode.measure import Measured as DecodeMeasured
from scoutattention.bench.decode.measure import Result as DecodeResult
from scoutattention.bench.gpu.cases import Kernel, LeftOut, Measured, Result
from scoutattention.bench.kernels.native import Timing
from scoutattention.bench.kernels.problems import Case
from scoutattention.bench.kernels.stored import WeightCase, WeightTiming
from scoutattention.cli import main, output
from scoutattention.cli.actions import calibrate, decode, fidelity, generate, gpu, kernels, retrieval
from scoutattention.cli.output import PlainTable, busy, loading, progress, show
from scoutattention.config import ScoutConfig
from scoutattention.engine.calibrate import Fit, LayerScore, Score
from scoutattention.eval.fidelity.ablation import ROWS, Variant
from scoutattention.eval.fidelity.layers import Layers
from scoutattention.eval.fidelity.measure import Fidelity
from scoutattention.eval.fidelity.report import Measured as FidelityMeasured
from scoutattention.eval.retrieval.measure import Row
from scoutattention.models import loader

LAYERS = Layers([None], [None], [0.0], [None], [0.0], [0.0])
ONE = Fidelity(
    0.5321, 1.0907, -0.1234, 0.747, 0.085, 118.0, 0.803, 0.112, 1152.0, 7e9, 0.25, 1507.0, [], [], LAYERS, ""
)
PATH = Path("/home/somebody/.cache/scoutattention/calibrations") / f"{'0123456789abcdef' * 4}-ahead1.safetensors"
TEXT = "/home/somebody/my[long]texts/and/more/of/them.txt"


def fidelity_table():
    texts = ("python-topics", TEXT)
    item = [FidelityMeasured(text, Variant(row.name, ScoutConfig(), None), ONE) for text in texts for row in ROWS]
    fidelity._print([replace(one, fidelity=replace(ONE, calibration=PATH.name)) for one in item])


def calibrate_table():
    scores = [LayerScore(layer, Score(0.8123, 0.5123), Score(0.9123, 0.4123), kept=layer > 2) for layer in range(30)]
    calibrate._print(Fit(1, None, scores), PATH)


def decode_table():
    result = DecodeResult(
        "llama.cpp-converted", "bfloat16", "float16", PATH.name, 131072, 16, 1024, *[12345.6] * 5, 0.995
    )
    show(decode._table([DecodeMeasured([result], {})]))


def gpu_table():
    result = Result("transformers-offloaded", 131072, 256, 64, 12345.67, 12345.6, 0.99, 123.45, 123.45, 7e10, 0.123)
    left = LeftOut(
        "scout-plain", 131072, 256, "memory: 12345678 blocks are more than the 1234567 that the device has left"
    )
    show(
        gpu._table(Measured([result], [left], 3), "random weights; choices: those of a recording", {result.engine: 1e5})
    )
    launched = (
        Kernel("void at::native::vectorized_elementwise_kernel<4, at::native::BFloat16>", 1.25, 1024.0, copies=False),
    )
    show(*gpu.profile_table(result._replace(kernels=launched), 36))


def kernels_table():
    case = Case("partial_attention", "avx512-vnni", "bfloat16", 128, 8, "contiguous", 16)
    kernels._print([Timing(case, 1.2e-3, 0.5, 123.4, 200.0, 9.5, 4.5)])
    kernels._print_weights([WeightTiming(WeightCase("IQ4_XS", 16, "avx512vnni", 128), 1.2e-3, 0.5, 123.4, 200.0)])


def retrieval_tables():
    rows = [Row("multivalue", length, depth, 1.0, 0.95) for length in (1024, 131072) for depth in range(0, 101, 5)]
    show(*(retrieval._heatmap(rows, *item) for item in retrieval.MAPS.items()), retrieval._summary(rows, 0.085))


def generate_table():
    steps = StepStats(chosen_blocks=1000, far_blocks=85, hidden_s=12.3, unhidden_s=4.5, recalled_bytes=10**10)
    stats = Stats(131072, 256, 99.5, 12.5, 255, 99.5, 1, 0, 10**11, 10**10, steps)
    for device in ("cuda", "cpu"):
        show(generate.stats_table(replace(stats, device=device)))


TABLES = {
    fidelity_table: ["0.5321", "-0.1234", "1.0907", "118.0", "1,152", "1507", TEXT, PATH.name],
    calibrate_table: ["0.812", "0.912", "0.512", "0.412", "not kept", str(PATH)],
    decode_table: ["131,072", "12345.6", "12346", "12,346", "100%", "llama.cpp-converted", PATH.name],
    gpu_table: ["131,072", "12345.67", "123.45 ms", "65.2 GiB", "12.3%", "100,000", "12345678", "1024.0"],
    kernels_table: ["avx512-vnni", "contiguous", "123.4", "62%", "19.00x", "9.00x", "1e-03"],
    retrieval_tables: ["131,072", "-5", "95", "8.5%"],
    generate_table: ["131,072", "20.4", "93.1 GiB", "9.3 GiB", "12.30", "4.50"],
    lambda: main(["doctor"]): ["cores", "OMP_WAIT_POLICY=PASSIVE"],
}


@pytest.fixture
def terminal(monkeypatch, capsys):
    """Runs a function in a terminal of some columns: what it shows, without colours."""

    def run(function, width):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        function()
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().out)

    return run


@pytest.mark.parametrize("width", [120, 80, 60, 30])
@pytest.mark.parametrize("table", TABLES)
def test_nothing_is_cut(terminal, table, width):
    out = terminal(table, width)
    assert "…" not in out
    lines = out.splitlines()
    for seen in TABLES[table]:
        assert seen in out, (seen, out)
    too_wide = [line for line in lines if len(line.rstrip()) > width]
    assert all(len(max(line.split(), key=len)) > width - 30 for line in too_wide), "only paths are wider"


def test_every_number_of_a_part_stands_beside_its_row(terminal):
    table = PlainTable("Name", *(f"Number {column}" for column in range(9)), title="A title")
    for row in ("one", "two"):
        table.add_row(row, *(f"{row}-{column}" for column in range(9)))
    out = terminal(lambda: show(table), 40)
    assert out.count("one ") == out.count("two ") > 1
    assert all(f"{row}-{column}" in out for row in ("one", "two") for column in range(9))
    assert out.count("A title") == 1


def test_a_name_in_brackets_is_no_markup(terminal):
    table = PlainTable("Name", title="[/bold] of it")
    table.add_row("[red]x[/blue]")
    table.caption = "[/]"
    out = terminal(lambda: show(table), 80)
    assert [text in out for text in ("[/bold] of it", "[red]x[/blue]", "[/]")] == [True] * 3


@pytest.mark.parametrize("up", [progress, lambda: busy("Loading")])
@pytest.mark.parametrize("moving", [False, True])
def test_warnings_come_after_a_bar_as_one_line(monkeypatch, capsys, up, moving):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: moving, raising=False)
    with up() as watch:
        for _ in range(2):
            warnings.warn("old\nwith a second line", UserWarning, stacklevel=1)
        assert "old" not in capsys.readouterr().err
        assert callable(watch)
    assert re.search(r"(^|\r|K|\n)scout: warning: old\n$", capsys.readouterr().err)


@pytest.mark.parametrize("moving", [False, True])
def test_a_model_that_is_loaded_tells_how_far(monkeypatch, tiny_models, caplog, capsys, moving):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: moving, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(output, "TOLD_S", 0.0)
    said = []
    with loading("tiny", said.append):
        loader.load(str(tiny_models["llama"]))
    lines = [f"Loading tiny: {layer} of 3 layers are read" for layer in (1, 2, 3)]
    assert said == ([] if moving else lines)
    assert ("Loading tiny" in capsys.readouterr().err) == moving
    loader.load(str(tiny_models["llama"]))
    assert (said[3:], caplog.records) == ([], [])


def test_a_bar_tells_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress(" tokens") as watch:
        watch("Reading the prompt", 100, 1000)
        time.sleep(0.2)
        watch("Reading the prompt", 500, 1000)
    err = capsys.readouterr().err
    assert re.search(r"Reading the prompt: +50%.*500/1000 00:00, \d[\d.k]* tokens/s, 00:00 left", err), err


def test_a_terminal_that_cannot_move_has_no_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    with busy("Loading"), progress() as watch:
        watch("Reading the prompt", 1, 2)
    assert capsys.readouterr().err == ""


def test_a_command_to_be_pasted_is_one_line(terminal):
    shown = terminal(lambda: main(["plan", "qwen3-8b", "--hardware", "rtx-4090", "--context", "65536"]), 80)
    commands = [line for line in shown.splitlines() if "scout serve" in line or "scout generate" in line]
    assert commands
    assert all(line.startswith(output.INDENT) and line.endswith("}'") for line in commands), "the last flag is whole"
