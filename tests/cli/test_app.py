import io
import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from scoutattention import EngineConfig, ModelNotFoundError, SamplingParams, ScoutConfig
from scoutattention.cli import main
from scoutattention.cli.actions.generate import JSON_STATS
from scoutattention.cli.output import PlainTable, show
from scoutattention.cli.settings import FIXED, OLD_FLAGS, settings_of
from scoutattention.config.fields import format_bytes

from .fake import STATS, FakeLLM

pytestmark = pytest.mark.usefixtures("fake_engine")


def asked(*args):
    """The fake engine after `scout generate m --prompt x` with `args`."""
    assert main(["generate", "m", "--prompt", "x", *args]) == 0
    return FakeLLM.made


def the_error(capsys, *args):
    """The one line on stderr of a command that fails with exit code 2."""
    assert main(list(args)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scout: ")
    assert err.count("\n") == 1
    return err


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", code], text=True, stderr=subprocess.PIPE, check=False, **options)


def test_text_goes_to_stdout_and_numbers_to_stderr(capsys):
    asked("--device", "cuda")
    out, err = capsys.readouterr()
    assert out == "Hi there\n"
    assert "25.0% of the chosen blocks" in err
    assert "4.0 KiB in full, 1.0 KiB on the device" in err


def test_on_a_cpu_slots_do_not_read_like_memory_saved(capsys):
    asked("--device-memory", "slots")
    err = capsys.readouterr().err
    assert "4.0 KiB, and 1.0 KiB of copies in slots: a CPU has one memory" in err
    assert "device" not in err


def test_json_is_one_object_and_nothing_else(capsys):
    asked("--json", "--budget", "512")
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["text", "token_ids", "finish_reason", *JSON_STATS, "peak_memory", "calibration", "config"]
    assert report["text"] == "Hi there"
    assert report["token_ids"] == [5, 6, 7]
    assert report["cpu_share"] == 0.25
    config = report["config"]
    assert config["model"] == "m"
    assert config["budget"] == 512
    assert config["ablation"]["true_query_layers"] is None
    assert set(config) == {"model"} | {field.name for cls in (ScoutConfig, EngineConfig) for field in fields(cls)}


def test_without_flags_the_settings_are_the_defaults():
    llm = asked()
    defaults = {field.name: field.default for field in fields(EngineConfig)} | {"max_num_seqs": FIXED["max_num_seqs"]}
    assert llm.options == {"scout": ScoutConfig(), **defaults}
    assert (llm.params, llm.chat, llm.prompt) == (SamplingParams(), None, "x")


def test_every_flag_reaches_its_setting():
    llm = asked(
        *("--budget", "2048", "--block-size", "16", "--sink-blocks", "2", "--recent-blocks", "3", "--lookahead", "2"),
        *("--guard", "off", "--max-cpu-share", "0.2"),
        *("--device-memory", "64MiB", "--host-memory", "1GiB", "--max-model-len", "4096"),
        *(
            "--dtype",
            "bfloat16",
            "--kv-dtype",
            "int8",
            *("--device", "cpu", "--kernels", "plain", "--no-graphs", "--tensor-parallel-size", "3"),
            "--workers",
            "1",
            "--torch-threads",
            "2",
            "--max-tokens",
            "7",
            "--temperature",
            "0.5",
        ),
        *(
            "--top-p",
            "0.9",
            "--seed",
            "3",
            "--calibration",
            "off",
            "--stop",
            "a b",
            "--stop",
            "c",
            "--rope-scaling",
            '{"rope_type": "linear", "factor": 4.0}',
            "--ignore-eos",
            "--no-chat",
        ),
    )
    blocks = {"budget": 2048, "block_size": 16, "sink_blocks": 2, "recent_blocks": 3}
    scout = ScoutConfig(**blocks, lookahead=2, calibration=None, guard=None, max_cpu_share=0.2)
    engine = {"max_model_len": 4096, "dtype": "bfloat16", "kv_dtype": "int8", "workers": 1}
    engine |= {"torch_threads": 2, "max_num_seqs": 1, "device": "cpu", "kernels": "plain", "graphs": False}
    engine |= {"tensor_parallel_size": 3, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    defaults = {field.name: field.default for field in fields(EngineConfig)}
    assert llm.options == defaults | {"scout": scout, "device_memory": 64 << 20, "host_memory": 1 << 30, **engine}
    assert llm.params == SamplingParams(7, 0.5, 0.9, seed=3, stop=("a b", "c"), ignore_eos=True)
    assert llm.chat is False


def test_words_for_all_and_none():
    llm = asked("--budget", "all", "--device-memory", "all", "--max-cpu-share", "off", "--chat")
    assert llm.options["scout"] == ScoutConfig(budget=None, max_cpu_share=None)
    assert llm.options["device_memory"] == "all"
    assert llm.chat is True


def test_environment_mirrors_flags_and_flags_win(monkeypatch):
    monkeypatch.setenv("SCOUT_BUDGET", "512")
    monkeypatch.setenv("SCOUT_GUARD", "0.5")
    monkeypatch.setenv("SCOUT_MAX_TOKENS", "9")
    llm = asked("--budget", "640")
    assert llm.options["scout"] == ScoutConfig(budget=640, guard=0.5)
    assert llm.params.max_tokens == 9


def test_dense_attends_to_everything_on_the_device():
    llm = asked("--dense")
    assert llm.options["scout"].budget is None
    assert llm.options["device_memory"] == "all"


@pytest.mark.parametrize("held", [1024, 4096])
def test_the_table_tells_of_the_device_where_it_holds_a_part_only(held, monkeypatch, capsys):
    monkeypatch.setattr(FakeLLM, "did", replace(STATS, kv_bytes_device=held))
    asked()
    err = capsys.readouterr().err
    assert "4.0 KiB" in err
    divided = ("1.0 KiB of copies in slots", "CPU share", "CPU time", "Recalled")
    assert [part in err for part in divided] == [held < 4096] * 4


def test_help_tells_what_happens_without_a_value_only_where_there_is_no_default(capsys):
    lines = {}
    for command in (("generate",), ("eval", "fidelity")):
        main([*command, "--help"])
        lines[command[0]] = next(line for line in capsys.readouterr().out.splitlines() if "--device-memory" in line)
    assert "Without it" in lines["generate"]
    assert "[default: slots]" in lines["eval"]
    assert "Without it" not in lines["eval"]


def test_help_shows_the_defaults_of_the_configuration(capsys):
    assert main(["generate", "--help-all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for cls in (ScoutConfig, EngineConfig, SamplingParams):
        for name, (field, about) in settings_of(cls).items():
            flag = name.replace("_", "-")
            shown = [line for line in lines if line.startswith(f"│ --{flag} ")]
            assert bool(shown) == (name not in FIXED), name
            default = {True: flag, False: f"no-{flag}"}[field.default] if field.type is bool else field.default
            default = about.none_word if default is None and about.none_word else default
            if shown and isinstance(default, int | float | str):
                assert f"[default: {default}]" in shown[0]


COMMANDS = [
    "generate",
    "chat",
    "serve",
    "calibrate",
    "plan",
    "eval fidelity",
    "eval retrieval",
    "bench decode",
    "bench gpu",
    "bench kernels",
    "bench serve",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_one_screen(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 50


@pytest.mark.parametrize("command", [*COMMANDS, "", "eval", "bench"])
def test_help_fits_a_narrow_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    for flag in ("--help", "--help-all"):
        main([*command.split(), flag])
        out = capsys.readouterr().out
        assert "…" not in out
        assert all(len(line) <= 80 for line in out.splitlines())


def test_help_begins_with_what_people_need_first(capsys):
    main(["generate", "--help"])
    out = capsys.readouterr().out
    needed = ("--prompt ", "--chat ", "--max-tokens ", "--temperature ", "--budget ", "--device-memory ")
    places = [out.index(f"│ {flag}") for flag in needed]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("command", "flag"), [("bench decode", "--largest"), ("bench gpu", "--no-kernels"), ("calibrate", "--dtype")]
)
def test_flags_that_few_people_need_are_in_help_all(capsys, command, flag):
    for help_flag, shown in (("--help", False), ("--help-all", True)):
        main([*command.split(), help_flag])
        assert (f"{flag} " in capsys.readouterr().out) == shown


def test_help_leaves_advanced_settings_to_help_all(capsys):
    seen = {}
    for flag in ("--help", "--help-all"):
        main(["generate", flag])
        seen[flag] = capsys.readouterr().out
    for cls in (ScoutConfig, EngineConfig, SamplingParams):
        for name, (_, about) in settings_of(cls).items():
            if name not in FIXED:
                flag = f"--{name.replace('_', '-')} "
                assert flag in seen["--help-all"]
                assert (flag in seen["--help"]) != about.advanced, name


@pytest.mark.parametrize("name", OLD_FLAGS)
def test_an_old_flag_or_variable_names_the_new_one(capsys, monkeypatch, name):
    flag = f"--{name.replace('_', '-')}"
    assert main(["generate", "m", "--prompt", "a", flag, "1"]) == 2
    assert f"there is no {flag} any more: {OLD_FLAGS[name]}" in capsys.readouterr().err
    monkeypatch.setenv(f"SCOUT_{name.upper()}", "1")
    assert main(["generate", "m", "--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert err == f"scout: SCOUT_{name.upper()} is no setting any more: {OLD_FLAGS[name]}\n"


@pytest.mark.parametrize(("wrong", "right"), [("BUDGETT", "BUDGET"), ("MAX_TOKEN", "MAX_TOKENS"), ("DENCE", "DENSE")])
def test_a_misspelt_variable_is_refused(capsys, monkeypatch, wrong, right):
    monkeypatch.setenv(f"SCOUT_{wrong}", "1")
    assert main(["generate", "m", "--prompt", "a"]) == 2
    err = capsys.readouterr().err
    assert err == f"scout: the environment variable SCOUT_{wrong} is no setting: did you mean SCOUT_{right}?\n"


def test_a_variable_of_another_program_is_left_alone(monkeypatch):
    monkeypatch.setenv("SCOUT_SUITE_PROFILE", "1")
    assert main(["--version"]) == 0


def test_a_wrong_value_of_the_environment_names_its_variable(capsys, monkeypatch):
    monkeypatch.setenv("SCOUT_MAX_TOKENS", "x")
    assert main(["generate", "m", "--prompt", "a"]) == 2
    assert "whole number; it comes from SCOUT_MAX_TOKENS in the environment" in capsys.readouterr().err
    assert main(["generate", "m", "--prompt", "a", "--max-tokens", "y"]) == 2
    assert "SCOUT_MAX_TOKENS" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no prompt was given: give one of --prompt, --prompt-file, --messages and -"),
        (["--prompt", "a", "-"], "more than one prompt"),
        (["--prompt", "a", "--prompt-file", "f"], "more than one prompt"),
        (["--prompt-file", "f", "-"], "--prompt-file and -"),
        (["hello"], "unexpected argument 'hello'"),
        (["--prompt", " "], "--prompt is empty"),
        (["--prompt", "a", "--max-tokens", "-1"], "max_tokens=-1 is below"),
        (["--prompt", "a", "--max-tokens", "x"], "Invalid value for '--max-tokens': it is not a whole number"),
        (["--prompt", "a", "--temperature", "x"], "Invalid value for '--temperature': it is not a number"),
        (["--prompt", "a", "--dtype", "bf16"], "Invalid value for '--dtype': 'bf16' is not one of 'auto'"),
        (["--messages", "nothing.json"], "scout: cannot read messages file nothing.json: No such file"),
        (["--prompt", "a", "--budget", "1.5"], "--budget='1.5'"),
        (["--prompt", "a", "--budget", "-64"], "budget=-64"),
        (["--prompt", "a", "--device-memory", "lots"], "'lots'"),
        (["--prompt", "a", "--device-memory", "-1GiB"], "'-1GiB'"),
        (["--prompt", "a", "--host-memory", "0"], "host_memory=0"),
        (["--prompt", "a", "--lookahead", "1000"], "lookahead=1000 is above the largest value 16"),
        (["--prompt", "a", "--guard", "2"], "guard=2.0 is above the largest value 1"),
        (["--prompt", "a", "--max-cpu-share", "3"], "max_cpu_share=3.0 is above the largest value 1"),
        (["--prompt", "a", "--rope-scaling", "yarn"], "--rope-scaling='yarn' is not a JSON object"),
        (["--prompt", "a", "--rope-scaling", "[" * 9999], "is not a JSON object"),
        (["--prompt", "a", "--guard", "some"], "--guard='some' is not a number or 'off'"),
        (["--prompt", "a", "--kernels", "fast"], "'auto', 'native', 'triton', 'cuda', 'plain'"),
        (["--prompt", "a", "--no-correct-far"], "there is no --no-correct-far any more: write `--ablation correct_far"),
        (["--prompt", "a", "--top-p", "0"], "top_p=0.0"),
        (["--prompt", "a", "--dense", "--budget", "512"], "leave out --budget"),
        (["--prompt", "a", "--dense", "--device-memory", "1GiB"], "leave out --device-memory"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_arguments_are_one_sentence(capsys, args, message):
    assert message in the_error(capsys, "generate", "m", *args)


def test_missing_model_and_unknown_command(capsys):
    assert "model" in the_error(capsys, "generate").lower()
    assert "'fly'" in the_error(capsys, "fly")


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "generate" in out + err
    assert "scout: " not in err


@pytest.mark.parametrize("args", [["-"], ["--prompt-file", "-"]])
def test_prompt_from_stdin(monkeypatch, args):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\r\n".encode())))
    assert main(["generate", "m", *args]) == 0
    assert FakeLLM.made.prompt == "naïve\r\n"


def test_prompt_from_file(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\n")
    assert main(["generate", "m", "--prompt-file", str(file)]) == 0
    assert FakeLLM.made.prompt == "naïve\n"


@pytest.mark.parametrize(("data", "message"), [(b"", "is empty"), (b"ab\xff", "is not UTF-8: byte 2 is 0xff")])
def test_bad_prompt_file(capsys, tmp_path, data, message):
    file = tmp_path / "prompt.txt"
    file.write_bytes(data)
    assert message in the_error(capsys, "generate", "m", "--prompt-file", str(file))


def test_prompt_file_that_cannot_be_read(capsys, tmp_path):
    assert "No such file" in the_error(capsys, "generate", "m", "--prompt-file", str(tmp_path / "absent"))
    assert "Is a directory" in the_error(capsys, "generate", "m", "--prompt-file", str(tmp_path))


def test_errors_of_the_engine_are_one_line_and_with_debug_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr(FakeLLM, "raises", ModelNotFoundError("no model named m"))
    assert the_error(capsys, "generate", "m", "--prompt", "x") == "scout: no model named m\n"
    assert main(["generate", "m", "--prompt", "x", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("scout: no model named m\n")


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(FakeLLM, "raises", KeyboardInterrupt())
    assert main(["generate", "m", "--prompt", "x"]) == 130
    assert capsys.readouterr() == ("Hi", "scout: interrupted\n")


def test_ctrl_c_during_imports_is_one_line():
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "import builtins; real = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "from scoutattention.cli import main\n"
        "sys.exit(main(['--help']))"
    )
    run = run_python(code)
    assert (run.returncode, run.stderr) == (130, "scout: interrupted\n")


@pytest.mark.parametrize("command", ["--version", "--help", "doctor"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_quiet(monkeypatch, command, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = f"import sys; from scoutattention.cli import main; sys.exit(main(['{command}']))"
    run = run_python(code, stdout=write_end)
    os.close(write_end)
    assert (run.returncode, run.stderr) == (1, "")


def test_help_doctor_and_wrong_arguments_do_not_load_torch():
    code = (
        "import os, sys, scoutattention\n"
        "from scoutattention.cli import main\n"
        "helps = ['--help'], ['generate', '--help'], ['serve', '--help']\n"
        "codes = [main(a) for a in (*helps, ['generate', 'm'], ['--version'])]\n"
        "main(['doctor'])\n"
        "assert codes == [0, 0, 0, 2, 0], codes\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'\n"
        "loaded = {'torch', 'transformers', 'tokenizers', 'fastapi'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = run_python(code, env=environment, stdout=subprocess.DEVNULL)
    assert run.returncode == 0, run.stderr


def test_a_real_model_answers_a_prompt_from_a_pipe_and_loads_no_more_than_it_needs(tiny_models):
    args = ["generate", str(tiny_models["llama"]), "-", "--json", "--ignore-eos", "--max-tokens", "3", "--budget", "96"]
    args += ["--device-memory", "slots"]
    code = (
        "import gc, sys\n"
        "from scoutattention.cli import main\n"
        f"assert main({args!r}) == 0\n"
        "assert 'torch._dynamo' not in sys.modules, 'it takes 1.5 s and 160 MiB'\n"
        "assert gc.isenabled()\n"
        "assert gc.get_freeze_count() > 100_000, 'modules are searched for garbage'\n"
    )
    run = run_python(code, input="a long story " * 20, stdout=subprocess.PIPE)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert (report["prompt_tokens"], report["new_tokens"], len(report["token_ids"])) == (260, 3, 3)
    assert report["kv_bytes_device"] < report["kv_bytes_total"]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("scout 0.")


def test_doctor_json_names_what_was_looked_at(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"cores", "kernels", "memory", "GPU", "packages", "threads"} <= set(report)
    assert set(report["cores"]) == {"name", "value", "advice", "status"}


def test_doctor_table_shows_the_same(capsys):
    assert main(["doctor"]) == 0
    assert "OMP_WAIT_POLICY=PASSIVE" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 40, "3.0 TiB")])
def test_format_bytes(count, text):
    assert format_bytes(count) == text


def test_a_table_is_as_wide_as_it_is_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = PlainTable(*(f"a column named {number}" for number in range(20)))
    table.add_row(*(f"a value of row {number}" for number in range(20)))
    show(table)
    assert "a value of row 0   a value of row 1 " in capsys.readouterr().out
