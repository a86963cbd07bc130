"""`vllm serve` with the plugin: it answers, tells what scout did among its metrics, and refuses in one sentence."""

import json
import subprocess

import pytest

from scoutattention.models.resolve import resolve

from .expand import expand_gguf
from .server import PYTHON, ROOT, complete, environment, free_port, get, running, serve, wait_until_healthy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="vLLM has an environment of its own: run make test-vllm"),
]
SCOUT = {"budget": 128, "device_memory": "slots"}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return expand_gguf(resolve("smollm2"), tmp_path_factory.mktemp("smollm2"))


def test_a_server_answers_and_tells_what_scout_did(smollm2, tmp_path):
    port, log = free_port(), tmp_path / "log"
    command = [*serve(smollm2, "--max-model-len", "1024", scout=SCOUT), "--port", str(port)]
    text = (ROOT / "docs" / "how-it-works.md").read_text()[:2500]
    with running(command, log) as process:
        wait_until_healthy(port, process, log)
        answer = json.loads(complete(port, text, 12))
        told = dict(line.rsplit(" ", 1) for line in get(port, "/metrics").splitlines() if not line.startswith("#"))
    assert answer["usage"]["completion_tokens"] == 12
    ours = {name.partition("{")[0]: float(value) for name, value in told.items() if name.startswith("scout:")}
    assert ours["scout:blocks_far_total"] > 0
    assert ours["scout:blocks_resident_hits_total"] > ours["scout:blocks_far_total"]
    assert ours["scout:recalls_total"] > 0
    (labels,) = {name.partition("{")[2] for name in told if name.startswith("scout:")}
    assert labels == f'engine="0",model_name="{smollm2}",rank="0"}}'
    vllm = {name.partition("{")[0]: float(value) for name, value in told.items() if name.startswith("vllm:")}
    assert vllm["vllm:generation_tokens_total"] == 12


@pytest.mark.parametrize(
    ("options", "scout", "message"),
    [
        (["--enable-prefix-caching"], SCOUT, "vLLM's enable_prefix_caching=True does not run with scout"),
        ([], {"budgt": 1}, "scout in vLLM has no setting 'budgt': write budget"),
        (["--max-model-len", "8192"], {"host_memory": "64MiB"}, "scout's host pool has"),
        (["--pipeline-parallel-size", "2"], SCOUT, "vLLM's pipeline_parallel_size=2 does not run with scout"),
    ],
)
def test_a_server_that_cannot_run_says_one_sentence(smollm2, options, scout, message):
    done = subprocess.run(
        serve(smollm2, *options, scout=scout), capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"scout: {message}")
    assert "Starting to load model" not in done.stdout + done.stderr


CONFIGURED = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
arguments = EngineArgs(sys.argv[1], dtype="float32", max_num_seqs=2, additional_config=json.loads(sys.argv[2]))
config = arguments.create_engine_config()
told = {
    "worker": config.parallel_config.worker_cls,
    "eager": config.model_config.enforce_eager,
    "prefix": config.cache_config.enable_prefix_caching,
    "hash": config.compute_hash(),
    "loaded": sorted(name for name in sys.modules if name.startswith("scoutattention.")),
}
print("TOLD", json.dumps(told))
"""


def configured(model, additional, **more):
    """What vLLM makes of its arguments."""
    done = subprocess.run(
        [PYTHON, "-c", CONFIGURED, str(model), json.dumps(additional)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment() | more,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.partition("TOLD ")[2])


def test_without_settings_vllm_is_what_it_is_without_the_plugin(smollm2):
    absent = configured(smollm2, {}, VLLM_PLUGINS="none")
    present = configured(smollm2, {})
    assert absent.pop("loaded") == []
    assert [name.removeprefix("scoutattention.") for name in present.pop("loaded")] == [
        "errors",
        "integrations",
        "integrations.vllm",
        "integrations.vllm.entry",
    ]
    assert present == absent
    assert configured(smollm2, {"scout": SCOUT})["worker"] != absent["worker"]
