"""Replicas of vLLM with ScoutAttention behind Ray Serve LLM.

    python examples/cluster/ray_serve.py --replicas 2 --model /models/smollm2 --cpus 1

Ray starts the replicas on whatever machines are in its cluster, spreads requests over them, and starts a replica again
when it ends. It needs ray[serve], and the version of vLLM that Ray's own requirement names.
"""

import argparse
import json

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    """Read the command line, and serve until this program is ended."""
    parser = argparse.ArgumentParser(description="Replicas of vLLM with ScoutAttention behind Ray Serve LLM.")
    parser.add_argument("--model", required=True, help="a folder, or a name of Hugging Face")
    parser.add_argument("--replicas", type=int, default=2, help="how many replicas")
    parser.add_argument("--port", type=int, default=8000, help="port of the address")
    parser.add_argument("--cpus", type=float, default=1, help="cores that Ray counts for each replica")
    parser.add_argument("--machine-cpus", type=int, help="cores that Ray counts for this machine; those that it has")
    parser.add_argument("--scout", type=json.loads, default={"budget": 2048}, help="settings of ScoutAttention")
    parser.add_argument("--vllm", type=json.loads, default={}, help="more arguments of vLLM's engine, as JSON")
    options = parser.parse_args()
    config = LLMConfig(
        model_loading_config={"model_id": options.model, "model_source": options.model},
        deployment_config={"num_replicas": options.replicas},
        placement_group_config={"bundles": [{"CPU": options.cpus}]},
        engine_kwargs={"additional_config": {"scout": options.scout}, **options.vllm},
    )
    if options.machine_cpus is not None:
        ray.init(num_cpus=options.machine_cpus)
    serve.start(http_options={"port": options.port})
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)


if __name__ == "__main__":
    main()
