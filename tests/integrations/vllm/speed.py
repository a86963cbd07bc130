"""Decoding in vLLM with the plugin and without it, in turns: so many steps of each.

The plugin runs with its default, one memory ("all"), and with slots.

SCOUT_VLLM_PYTHON=.venv-vllm-0.32.0/bin/python .venv/bin/python -m tests.integrations.vllm.speed
"""

import argparse
import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from scoutattention.models.resolve import resolve
from scoutattention.models.text import Tokenizer

from .expand import expand_gguf

ROOT = Path(__file__).parents[3]
ROOM = 512
"""Tokens of an answer at most."""
WAITING = "OMP_WAIT_POLICY"
"""The plugin sets it for vLLM's workers. Here the worker is in the process that asks for it, which is too late."""


class Paced:
    """A process of `paced`.   loaded, read: seconds of loading the model, and of reading the prompts."""

    def __init__(self, python, llm, prompts, environment=()):
        self.process = subprocess.Popen(
            [python, "-m", "tests.integrations.vllm.paced"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != WAITING},
        )
        question = {"llm": llm, "prompts": prompts, "tokens": ROOM, "environment": dict(environment)}
        self.loaded, self.read = self.ask(json.dumps(question))
        self.ask("4")  # what is made once

    def ask(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(self.process.communicate()[1][-3000:])
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.process.communicate(timeout=60)  # it ends with its input
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def compare(python, model, prompts, budget, *, dtype, rounds, steps, compiled):
    """Milliseconds of steps, by engine; and what each took before that."""
    longest = max(map(len, prompts)) + ROOM
    common = {
        "model": str(model),
        "dtype": dtype,
        "seed": 0,
        "max_model_len": longest,
        "max_num_seqs": len(prompts),
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "gpu_memory_utilization": 0.4,
    }
    stock = common | {"enable_prefix_caching": False}
    engines = {"vllm, compiled": (stock, {})} if compiled else {}
    engines["vllm"] = (stock | {"enforce_eager": True}, {})
    for memory in ("all", "slots"):
        scout = {"budget": budget, "device_memory": memory}
        engines[f"scout, {memory}"] = (common | {"additional_config": {"scout": scout}}, {WAITING: "PASSIVE"})
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(Paced(python, llm, prompts, {"VLLM_CPU_KVCACHE_SPACE": "2"} | environment))
            for name, (llm, environment) in engines.items()
        }
        times = {name: [] for name in engines}
        for _ in range(rounds):
            for name, one in running.items():
                times[name] += [1e3 * seconds for seconds in one.ask(str(steps))]
        return times, {name: (one.loaded, one.read) for name, one in running.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--context", type=int, default=7168, help="tokens of each prompt")
    parser.add_argument("--batch", type=int, default=4, help="prompts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of each engine in a round")
    parser.add_argument("--dtype", default="float32", help="of weights and of keys and values")
    parser.add_argument("--compiled", action="store_true", help="vLLM as it comes too: it compiles the model")
    parser.add_argument("--budget", type=int, default=1024, help="tokens that are attended to")
    options = parser.parse_args()
    text = "".join(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))
    with tempfile.TemporaryDirectory() as directory:
        model = expand_gguf(resolve("smollm2"), Path(directory))
        ids = Tokenizer.from_directory(model).encode(text)
        prompts = [ids[97 * number :][: options.context] for number in range(options.batch)]
        times, before = compare(
            os.environ["SCOUT_VLLM_PYTHON"],
            model,
            prompts,
            options.budget,
            dtype=options.dtype,
            rounds=options.rounds,
            steps=options.steps,
            compiled=options.compiled,
        )
    sizes = f"{options.batch} prompts of {options.context} tokens"
    print(f"smollm2, {options.dtype}, {sizes}, budget {options.budget}")
    print(f"{'':16} {'ms a step':>10} {'quickest':>9} {'tokens/s':>9} {'prompt tokens/s':>16}")
    for name, each in times.items():
        typical, read = median(each), options.batch * options.context / before[name][1]
        print(f"{name:16} {typical:10.1f} {min(each):9.1f} {1e3 * options.batch / typical:9.1f} {read:16.0f}")
    typical = {name: median(each) for name, each in times.items()}
    for name, ours in typical.items():
        if name.startswith("scout"):
            print(f"{name}: {typical['vllm'] / ours:.2f} times the tokens a second of vLLM without the plugin")


if __name__ == "__main__":
    main()
