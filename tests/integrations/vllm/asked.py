"""One run of vLLM in a process of its own: what it was asked, and what it answered, as JSON.

python -m tests.integrations.vllm.asked < question > answer
"""

import json
import os
import sys

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def main():
    question, out = json.load(sys.stdin), os.dup(1)
    os.dup2(2, 1)  # vLLM writes there too
    os.environ.update(ENVIRONMENT | question.get("environment", {}))
    from vllm import LLM, SamplingParams  # noqa: PLC0415  # behind the environment

    stock = {} if "additional_config" in question["llm"] else {"enable_prefix_caching": False, "enforce_eager": True}
    common = {
        "dtype": "float32",
        "seed": 0,
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.3,
        "disable_log_stats": True,
    }
    llm = LLM(skip_tokenizer_init=True, **(common | stock | question["llm"]))
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=question["tokens"], detokenize=False)
    answers = []
    for prompts in question["batches"]:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        answers.append([list(output.outputs[0].token_ids) for output in outputs])
    stats = llm.collective_rpc("scout_stats") if "additional_config" in question["llm"] else None
    os.write(out, json.dumps({"answers": answers, "stats": stats}).encode())


if __name__ == "__main__":
    main()
