"""vLLM in a process of its own that decodes when it is told: reads a question, then numbers of steps, as lines.

It answers each line with one of JSON: seconds of loading and of prompts, and then seconds of each step.
"""

import json
import os
import sys
import time

from .asked import ENVIRONMENT, RUNNER


def main():
    question, out = json.loads(sys.stdin.readline()), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # vLLM writes there too
    runner = {} if "additional_config" in question["llm"] else RUNNER
    os.environ.update(ENVIRONMENT | runner | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | question["environment"])
    from vllm import LLM, SamplingParams  # noqa: PLC0415  # behind the environment

    clock, began = time.perf_counter, time.perf_counter()
    engine = LLM(**question["llm"]).llm_engine
    loaded = clock() - began
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=question["tokens"], detokenize=False)
    for name, ids in enumerate(question["prompts"]):
        engine.add_request(str(name), {"prompt_token_ids": ids}, params)
    waiting = set(map(str, range(len(question["prompts"]))))
    while waiting:
        waiting -= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
    print(json.dumps([loaded, clock() - began - loaded]), file=out)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = clock()
            engine.step()
            times.append(clock() - began)
        print(json.dumps(times), file=out)


if __name__ == "__main__":
    main()
