"""`scout plan`, and `scout doctor --measure`, which it may go by."""

import json
import math
import shlex
from dataclasses import asdict, replace

import pytest

from scoutattention import EngineConfig, ScoutConfig
from scoutattention.cli import main
from scoutattention.cli.actions import doctor
from scoutattention.cli.server import serve
from scoutattention.hardware.measure import FILE, Measured, PerSequence, store, stored
from scoutattention.models.shapes.known import shape_config
from scoutattention.planner.cpu_costs import PACE
from scoutattention.trace.chrome import from_json
from scoutattention.trace.timeline import far_time

from ..cli.fake import FakeLLM

pytestmark = pytest.mark.usefixtures("fake_engine")
ON_A_CARD = ("plan", "qwen3-8b", "--hardware", "rtx-4090", "--context", "8192,65536")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "scoutattention"


def planned(capsys, *args):
    """The JSON of a plan."""
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def the_error(capsys, *args):
    """The one line on stderr of a command that fails with exit code 2."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_a_plan_is_a_table_and_sentences(capsys):
    assert main(list(ON_A_CARD)) == 0
    out = capsys.readouterr().out
    assert (
        "qwen3-8b in bfloat16, 15.3 GiB of weights, on rtx-4090: 24.0 GiB of GPU memory at 1,008 GB/s, 8 cores" in out
    )
    assert "2.7 GiB of GPU memory missing" in out
    assert "Scout pays from batch" in out
    assert "scout is faster from contexts of about 4,096 tokens on" in out
    assert "The model itself takes 40,960 tokens" in out
    assert "scout generate MODEL --prompt-file FILE --device cuda --max-model-len 8192 --dense" in out


def test_json_has_what_the_table_has(capsys):
    plan = planned(capsys, *ON_A_CARD, "--batch", "2,4", "--budget", "2048")
    assert plan["scout"]["budget"] == 2048
    assert {(row["context"], row["batch"]) for row in plan["rows"] if row["design"] == "full"} == {
        *((8192, 2), (8192, 4)),
        (65536, 0),
    }
    assert plan["break_even"][1]["context"] == 65536
    assert len(plan["recommended"]) == len(plan["alone"]) == 2


def test_what_is_recommended_can_be_pasted(capsys, tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(serve, "load_action", lambda _: type("Action", (), {"serve": lambda *a: served.append(a)}))
    monkeypatch.setattr(serve, "refuse_without_server", lambda: None)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Hello")
    plan = planned(capsys, *ON_A_CARD, "--budget", "2048", "--guard", "off")
    commands = [one["command"] for one in (*plan["recommended"], *plan["alone"])]
    for command in commands:
        words = shlex.split(command.replace("FILE", str(prompt)))
        assert words[0] == "scout"
        assert main(words[1:]) == 0
    assert len(served) == len([command for command in commands if " serve " in command]) == 2
    assert served[1][1].scout.budget == 2048
    assert FakeLLM.made.options["scout"].guard is None
    assert FakeLLM.made.options["rope_scaling"]["factor"] == 2.0


@pytest.mark.parametrize(("model", "context", "factor"), [("qwen3-8b", 49152, 2.0), ("qwen2.5-7b", 131072, 4.0)])
def test_yarn_stretches_the_length_that_the_models_card_gives(model, context, factor, capsys):
    """Qwen3's config.json has 40,960 positions, and its card stretches 32,768."""
    plan = planned(capsys, "plan", model, "--hardware", "l40s", "--context", str(context))
    (words,) = [shlex.split(one["command"]) for one in plan["alone"]]
    scaling = json.loads(words[words.index("--rope-scaling") + 1])
    assert scaling == {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 32768}
    inside = planned(capsys, "plan", model, "--hardware", "l40s", "--context", "32768")
    assert "--rope-scaling" not in inside["alone"][0]["command"]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct", "QWEN3-8B"])
@pytest.mark.parametrize("hardware", ["RTX4090", "rtx 4090", "NVIDIA GeForce RTX 4090"])
def test_names_may_be_spelled_as_on_the_hub_and_by_a_driver(name, hardware, capsys):
    plan = planned(capsys, "plan", name, "--hardware", hardware, "--context", "8192")
    assert plan["computer"]["name"] == "rtx-4090"
    command = plan["recommended"][0]["command"]
    assert f"scout serve {name if '/' in name else 'MODEL'} " in command


def config_json(folder, **more):
    """The config.json of a model of Qwen3-8B's sizes."""
    (folder / "config.json").write_text(json.dumps({**shape_config("qwen3-8b"), **more}))
    return str(folder / "config.json")


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
ON_A_CPU = ("--hardware", "desktop", "--context", "8192")


def needed(capsys, model, *args):
    """GiB of host memory of one sequence of a plan, and the command for it."""
    plan = planned(capsys, "plan", model, *args, "--batch", "1")
    (row, *_), (alone,) = plan["rows"], plan["alone"]
    return row["host"] / (1 << 30), row["step_s"], alone["command"]


def test_quantised_weights_stay_so_on_a_cpu(tmp_path, capsys):
    plain, slow, _ = needed(capsys, config_json(tmp_path), *ON_A_CPU)
    awq, fast, command = needed(capsys, config_json(tmp_path, quantization_config=AWQ), *ON_A_CPU)
    assert plain - awq == pytest.approx(8.9, abs=0.1), "6.95 billion of 8.19 in 5 bits instead of 16"
    assert slow > 1.8 * fast
    assert "--weights" not in command
    int4, _, command = needed(capsys, config_json(tmp_path), *ON_A_CPU, "--weights", "int4", "--dtype", "float16")
    assert int4 < awq
    assert "--dtype float16 --weights int4" in command
    assert "config.json has quantised ones" in the_error(
        capsys, "plan", config_json(tmp_path, quantization_config=AWQ), *ON_A_CPU, "--weights", "int4"
    )


def test_a_gpu_gets_quantised_weights_expanded(tmp_path, capsys):
    assert main(["plan", config_json(tmp_path, quantization_config=AWQ), "--hardware", "l4", "--context", "8192"]) == 0
    assert "15.3 GiB of weights" in capsys.readouterr().out


def test_the_model_of_a_gguf_file_is_planned_for(capsys):
    assert main(["plan", "smollm2", *ON_A_CPU]) == 0
    out = capsys.readouterr().out
    assert "smollm2 in float32, 93.8 MiB of weights, on desktop" in out
    assert "scout generate smollm2 --prompt-file FILE" in out
    assert "smollm2-135m" not in out
    assert "SmolLM2-135M-Instruct.Q4_1.gguf has quantised ones" in the_error(
        capsys, "plan", "smollm2", *ON_A_CPU, "--weights", "int8"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 28},
            "sliding_window=4096 of config",
        ),
        ({"hidden_act": "gelu"}, "only 'silu' is"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised with 'bitsandbytes'"),
    ],
)
def test_a_model_that_the_engine_refuses_gets_no_plan(entries, message, tmp_path, capsys):
    assert message in the_error(capsys, "plan", config_json(tmp_path, **entries), *ON_A_CPU)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("qwen3-9b", "--hardware", "rtx-4090"), "'qwen3-8b' is the nearest; give one of"),
        (("Qwen/Qwen3-9B", "--hardware", "rtx-4090"), "'qwen3-8b' is the nearest; give one of"),
        (("Qwen/Qwen3-8B-AWQ", "--hardware", "rtx-4090"), "'qwen3-8b' is the nearest; give one of"),
        (("llama3.1", "--hardware", "rtx-4090"), "'llama-3.1-8b', 'llama-3.1-70b' are the nearest;"),
        (("nope/config.json",), "there is no file nope/config.json"),
        (("qwen3-8b", "--hardware", "l4", "--plot", "p.svg"), "--plot writes .png files, and p.svg ends with .svg"),
        (("qwen3-8b", "--hardware", "h101-sxm"), "'h100-sxm' is the nearest; give one of"),
        (("qwen3-8b", "--hardware", "H100"), "'h100-sxm', 'h100-pcie', 'h100-nvl', 'h100-16-cores' are the nearest;"),
        (
            ("qwen3-8b", "--hardware", "rtx-4090+epic-7763"),
            "no host 'epic-7763': 'epyc-7763' is the nearest; give one of",
        ),
        (("qwen3-8b", "--hardware", "rtx-4091+desktop"), "no card 'rtx-4091': 'rtx-4090' is the nearest"),
        (("qwen3-8b", "--hardware", "l4", "--weights", "int8"), "--weights int8 is for a CPU, and l4 has a GPU"),
        (("qwen3-8b", "--hardware", "l4", "--context", "-8"), "--context='-8' is not a list of numbers"),
        (("qwen3-8b", "--hardware", "desktop", "--explore"), "--explore is for a GPU, and desktop has none"),
        (
            ("qwen3-8b", "--hardware", "l4", "--explore", "--batch", "1,2"),
            "leave --plot, --trace and a second --batch out",
        ),
        (("llama-3.1-70b", "--hardware", "rtx-4090"), "108.0 GiB are missing"),
        (("qwen3-8b", "--hardware", "l4", "--context", "0"), "--context='0': 0 is below the least value 1"),
        (("qwen3-8b", "--hardware", "l4", "--budget", "32"), "budget=32 tokens is below 96"),
        (("qwen3-8b", "--hardware", "l4", "--budget", "all"), "--budget all is full attention"),
        (("qwen3-8b", "--hardware", "l4", "--ablation", "pooling=max"), "the planner knows the costs of candidates"),
        (("qwen3-8b",), "this computer was not measured yet: run `scout doctor --measure`"),
    ],
)
def test_what_is_wrong_is_one_sentence(args, message, capsys, folder):
    assert message in the_error(capsys, "plan", *args)


def test_a_config_json_is_a_shape(capsys, tmp_path, tiny_models):
    plan = planned(capsys, "plan", str(tiny_models["qwen3"]), "--hardware", "desktop", "--context", "64")
    assert (
        plan["model"]["shape"]["num_layers"]
        == json.loads((tiny_models["qwen3"] / "config.json").read_text())["num_hidden_layers"]
    )
    (tmp_path / "config.json").write_text('{"architectures": ["MixtralForCausalLM"]}')
    assert "architecture='MixtralForCausalLM', which is not supported" in the_error(
        capsys, "plan", str(tmp_path / "config.json")
    )


def test_what_was_measured_is_planned_with(capsys, folder, monkeypatch):
    monkeypatch.setattr(doctor, "READ_BYTES", 1 << 20)
    main(["doctor", "--measure", "--json"])
    checks = json.loads(capsys.readouterr().out)
    check, kept = checks["memory speed"], stored(folder)
    assert str(folder / FILE) in check["advice"]
    assert f"{kept.cores} threads read {kept.reads / 1e9:.0f} GB/s" == check["value"]
    assert f"{kept.pace.full.first * 1e6:.0f} µs" in checks["core speed"]["value"]
    computer = planned(capsys, "plan", "smollm2-135m")["computer"]
    assert (computer["host"]["bandwidth"], computer["host"]["pace"]) == (kept.reads, asdict(kept.pace))


def test_a_measurement_that_is_none_is_refused(capsys, folder):
    store(folder, Measured("x", 2, -1.0, PACE, ""))
    assert "is no measurement: it says that 2 cores read -1.0 bytes" in the_error(capsys, "plan", "qwen3-8b")
    for wrong in (replace(PACE, flops=0), replace(PACE, slots=PerSequence(math.inf, 0.0))):
        store(folder, Measured("x", 2, 1e10, wrong, ""))
        assert "is no measurement: it says that " in the_error(capsys, "plan", "qwen3-8b")
    store(folder, Measured("x", 2, 1e10, PACE, ""))
    for wrong in (
        None,
        [1, 2],
        {"flops": 1},
        asdict(PACE) | {"full": 1},
        asdict(PACE) | {"full": {"first": "1", "more": 2}},
    ):
        (folder / FILE).write_text(json.dumps(json.loads((folder / FILE).read_text()) | {"pace": wrong}))
        assert "is no measurement: entries are missing or of another kind" in the_error(capsys, "plan", "qwen3-8b")
    assert "run `scout doctor --measure` again" in the_error(capsys, "plan", "qwen3-8b")


def test_a_measurement_that_cannot_be_kept_says_so(capsys, tmp_path, monkeypatch):
    (tmp_path / "scoutattention").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "READ_BYTES", 1 << 20)
    assert "make room there, or set XDG_CACHE_HOME" in the_error(capsys, "doctor", "--measure")


def test_a_plot_is_drawn(tmp_path):
    file = tmp_path / "plan.png"
    assert main([*ON_A_CARD, "--batch", "1", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_simulated_step_can_be_drawn(tmp_path, capsys):
    """Of each design in the first context; `scout trace` adds up what the simulator did."""
    file = tmp_path / "trace.json"
    assert main([*ON_A_CARD, "--trace", str(file)]) == 0
    timelines = from_json(file.read_text())
    assert list(timelines) == ["full", "compute", "fetch-ahead", "scout"]
    (step,) = timelines["scout"].steps()
    assert step.end_s - step.start_s == pytest.approx(36.5e-3, rel=0.01)
    assert far_time(timelines["scout"]).waited_s == pytest.approx(0.01 * step.end_s, abs=3e-4)
    assert far_time(timelines["scout"]).hidden_s == pytest.approx(36 * 0.28e-3, rel=0.1)
    assert far_time(timelines["compute"]).waited_s > 4e-3
    html = tmp_path / "step.html"
    assert main(["trace", str(file), "--html", str(html)]) == 0
    assert html.stat().st_size > 1000


def test_auto_reaches_the_engine_and_says_what_it_chose(capsys, monkeypatch):
    monkeypatch.setattr(FakeLLM, "scout", ScoutConfig(budget=None), raising=False)
    monkeypatch.setattr(FakeLLM, "engine_config", EngineConfig(device_memory="all"), raising=False)
    assert main(["generate", "m", "--prompt", "x", "--auto"]) == 0
    assert FakeLLM.made.options["scout"] == "auto"
    assert "full attention: it is faster here" in capsys.readouterr().err
    assert main(["generate", "m", "--prompt", "x", "--auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["budget"] is None


@pytest.mark.parametrize(
    "args", [("--dense",), ("--budget", "2048"), ("--device-memory", "8GiB"), ("--lookahead", "2"), ("--guard", "off")]
)
@pytest.mark.parametrize("command", [("generate", "m", "--prompt", "x"), ("serve", "m")])
def test_auto_excludes_what_it_chooses(args, command, capsys, monkeypatch):
    monkeypatch.setattr(serve, "refuse_without_server", lambda: None)
    assert f"so it excludes {args[0]}" in the_error(capsys, *command, "--auto", *args)
