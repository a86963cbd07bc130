"""One run of vLLM in a process of its own: what it was asked, and what it answered, as JSON.

python -m tests.integrations.vllm.asked < question > answer
"""

import json
import os
import sys

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


FAR = "scout:blocks_far_total"
RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Without the plugin, which sets it: then vLLM runs as it does with the plugin."""


def main():
    question, out = json.load(sys.stdin), os.dup(1)
    os.dup2(2, 1)  # vLLM writes there too
    runner = {} if "additional_config" in question["llm"] else RUNNER
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} if question["watched"] else {}
    os.environ.update(ENVIRONMENT | runner | one_process | question["environment"])
    from prometheus_client import REGISTRY  # noqa: PLC0415  # behind the environment
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    stock = {} if "additional_config" in question["llm"] else {"enable_prefix_caching": False, "enforce_eager": True}
    common = {
        "dtype": "float32",
        "seed": 0,
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.3,
        "disable_log_stats": True,
    }
    llm = LLM(skip_tokenizer_init=True, **(common | stock | question["llm"]))
    seen = watch(llm.llm_engine.engine_core.engine_core.scheduler) if question["watched"] else {}
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=question["tokens"], detokenize=False)
    answers = []
    for prompts in question["batches"]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        answers.append([list(output.outputs[0].token_ids) for output in outputs])
    far = sum(sample.value for metric in REGISTRY.collect() for sample in metric.samples if sample.name == FAR)
    peaks = {name: max(each) for name, each in seen.items()}
    os.write(out, json.dumps({"answers": answers, "far": far} | peaks).encode())


def watch(scheduler):
    """What every step saw, in lists that grow: requests that ran at once, and vLLM's blocks of the one with most."""
    schedule, seen = scheduler.schedule, {"running": [0], "blocks": [0]}

    def watched(*args):
        out = schedule(*args)
        seen["running"].append(len(scheduler.running))
        for request in scheduler.running:
            held = scheduler.kv_cache_manager.get_block_ids(request.request_id)
            seen["blocks"].append(max(map(len, held)))
        return out

    scheduler.schedule = watched
    return seen


if __name__ == "__main__":
    main()
