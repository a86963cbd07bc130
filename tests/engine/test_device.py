"""The engine on the kernels of a device and on its stream.

Without a GPU, Triton's interpreter runs the kernels, and this thread is the stream.
"""

from collections.abc import Iterator

import pytest
import torch

from scoutattention import LLM, CapacityError, ConfigError, KernelError, SamplingParams, ScoutConfig
from scoutattention.attention.far import WorkerTransport
from scoutattention.attention.far_stream import StreamTransport
from scoutattention.config import EngineConfig
from scoutattention.engine import device
from scoutattention.engine.device import find_device, make_ops, make_workers
from scoutattention.engine.scheduler import Sequence
from scoutattention.kernels.triton import ops as triton_ops
from scoutattention.runtime.handover import FlagTable
from scoutattention.runtime.workers import Workers

from .test_generate import PROMPT, far_llm

PROMPTS = [PROMPT, PROMPT[:61]]
ON_CPU, ON_GPU = ("native", "plain", "triton"), ("plain", "triton")
FEW = SamplingParams(max_tokens=4, ignore_eos=True)
LONG = SamplingParams(max_tokens=12, ignore_eos=True)


def answers(llm: LLM) -> list[list[int]]:
    return [out.token_ids for out in llm.generate(PROMPTS, FEW)]


@pytest.mark.parametrize(
    "options",
    [
        {"digest": "minmax", "guard": 0.001, "true_query_layers": ()},
        {"digest": "keys2", "pooling": "max"},
        {"digest": "exact", "far_query": "true", "guard": None},
        {"digest": "minmax", "on_miss": "fetch", "lookahead": 0},
    ],
)
def test_any_kernels_give_the_same_tokens(tiny_models, options, device):
    if device == "cuda" and options["digest"] == "exact":
        options = options | {"digest": "keys2"}  # a GPU does not read all keys of host pages
    scout = ScoutConfig().changed(**{"budget": 40, "block_size": 8, "recall_interval": 2, **options})
    blocks = 5 if scout.ablation.on_miss == "fetch" else 3
    made = {}
    for kernels in ON_CPU if device == "cpu" else ON_GPU:
        llm = far_llm(str(tiny_models["qwen3"]), scout, blocks, sequences=2, kernels=kernels, device=device)
        tokens, steps = answers(llm), llm.stats().steps
        made[kernels] = tokens, steps.far_blocks, steps.chosen_blocks, steps.recalls
        llm.close()
    assert made["plain"] == made["triton"]
    assert device == "cuda" or made["native"] == made["plain"]
    assert made["plain"][1] > 0 or scout.ablation.on_miss == "fetch"


def decisions(llm: LLM) -> Iterator[tuple[list[torch.Tensor], list[list[int]]]]:
    """What is decided in each step, on whatever device: who has which slot, and what is yet to be copied; tokens."""
    sequences = [Sequence(n, p, LONG, len(p) + LONG.max_tokens, llm.tokenizer) for n, p in enumerate(PROMPTS)]
    for sequence in sequences:
        llm.engine.add(sequence)
    store = llm.engine.store
    while llm.engine.busy:
        llm.engine.step()
        slots, listed = store.slots, store.transfers._listed[0]
        state = (slots.content, slots.slot_of, slots.near_length, listed.page, torch.tensor(store.closed))
        yield [each.cpu().clone() for each in state], [one.output_ids[:] for one in sequences]


def test_the_device_decides_what_the_reference_decides(tiny_models, device):
    """Step by step: slots, blocks to be copied, and tokens, while blocks close and sequences come and go."""
    scout = ScoutConfig().changed(
        budget=40, block_size=8, recall_interval=1, digest="minmax", guard=0.001, true_query_layers=()
    )
    llms = [
        far_llm(str(tiny_models["qwen3"]), scout, 5, sequences=2, kernels=kernels, device=device)
        for kernels in ("plain", "triton")
    ]
    for number, (reference, mine) in enumerate(zip(*(decisions(llm) for llm in llms), strict=True)):
        assert reference[1] == mine[1], number
        assert all(torch.equal(*pair) for pair in zip(reference[0], mine[0], strict=True)), number
    assert llms[0].stats().steps.recalls == llms[1].stats().steps.recalls > 8
    assert llms[0].stats().recalled_bytes == llms[1].stats().recalled_bytes > 0


@pytest.mark.parametrize("budget", [None, 24])
def test_any_kernels_give_the_same_tokens_where_everything_is_resident(tiny_models, budget, device):
    scout, made = ScoutConfig(budget=budget, block_size=8), []
    for where, kernels in (("cpu", "native"), (device, "triton")):
        sizes = {"device_memory": "all", "max_num_seqs": 2}
        made.append(answers(LLM(str(tiny_models["llama"]), scout=scout, kernels=kernels, device=where, **sizes)))
    assert made[0] == made[1]


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_stream_starts_and_awaits_the_cpu(tiny_models, stream_device, kv_dtype):
    scout = ScoutConfig().changed(
        budget=40, block_size=8, recall_interval=2, guard=0.001, digest="minmax", true_query_layers=()
    )
    llms = [
        far_llm(str(tiny_models["qwen3"]), scout, 3, 2, kernels=kernels, kv_dtype=kv_dtype, device=stream_device)
        for kernels in ("plain", "triton")
    ]
    assert all(isinstance(llm.engine.runner.attention.parts.far.transport, StreamTransport) for llm in llms)
    assert answers(llms[0]) == answers(llms[1])
    steps = llms[1].stats().steps
    assert steps.far_blocks > 0
    assert steps.guarded_heads > 0
    assert steps.hidden_s + steps.unhidden_s > 0


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"far_query": "true"}], ids=str)
def test_device_kernels_take_activations_of_half_precision(tiny_models, stream_device, options):
    """As they are on a GPU: nothing on the way has widened them."""
    far = {"budget": 40, "block_size": 8, "recall_interval": 2, "guard": 0.001, "true_query_layers": ()}
    scout = ScoutConfig().changed(**far, digest="minmax", **options)
    llm = far_llm(str(tiny_models["qwen3"]), scout, 3, 2, kernels="triton", dtype="bfloat16", device=stream_device)
    assert [len(tokens) for tokens in answers(llm)] == [FEW.max_tokens] * len(PROMPTS)
    assert llm.stats().steps.far_blocks > 0
    assert llm.stats().steps.guarded_heads > 0


def test_streamed_and_threaded_far_work_give_the_same_tokens(tiny_models, device, request):
    scout = ScoutConfig().changed(budget=40, block_size=8, recall_interval=2, digest="minmax")
    path = str(tiny_models["qwen3"])
    threaded = far_llm(path, scout, 3, 2, kernels="plain")
    expected = answers(threaded)
    assert isinstance(threaded.engine.runner.attention.parts.far.transport, WorkerTransport)
    streamed = far_llm(path, scout, 3, 2, kernels="plain", device=request.getfixturevalue("stream_device"))
    assert isinstance(streamed.engine.runner.attention.parts.far.transport, StreamTransport)
    assert answers(streamed) == expected


def test_a_cpu_that_is_late_fails_the_step_and_not_the_engine(tiny_models, stream_device, monkeypatch):
    monkeypatch.setattr(device, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(device, "Workers", lambda threads: Workers(threads, delay_s=0.4))
    scout = ScoutConfig(budget=40, block_size=8)
    llm = far_llm(str(tiny_models["qwen3"]), scout, 3, 2, kernels="plain", device=stream_device)
    message = r"CPU: layer \d, (true|scout) call 1 of \d+ pages failed: \d+ of \d+ tasks were left, .*, 0\.05 s after"
    with pytest.raises(KernelError, match=message):
        llm.generate(PROMPTS, FEW)
    assert not llm.engine.busy
    assert llm.engine.store.pages.available() == llm.engine.store.pages.pool.capacity


def test_after_a_step_that_the_cpu_did_not_see_the_engine_goes_on(tiny_models, stream_device, monkeypatch):
    monkeypatch.setattr(device, "LONGEST_WAIT_S", 1.0)
    scout = ScoutConfig(budget=40, block_size=8)
    llm = far_llm(str(tiny_models["qwen3"]), scout, 3, 2, kernels="plain", device=stream_device)
    expected = answers(llm)
    with monkeypatch.context() as patch:
        patch.setattr(FlagTable, "begin", FlagTable.take_late)
        with pytest.raises(KernelError, match="failed: the CPU had not seen the call, 1 s"):
            llm.generate(PROMPTS, FEW)
    assert answers(llm) == expected


def test_a_prompt_that_the_device_has_no_memory_for_fails_alone(tiny_models, monkeypatch):
    llm = far_llm(str(tiny_models["llama"]), ScoutConfig(budget=40, block_size=8), 3, 2)
    expected = llm.generate([PROMPT, PROMPT[:30]], FEW)[0].token_ids
    read = llm.engine.runner.read

    def failing(row, ids, **options):
        reading = read(row, ids, **options)
        yield next(reading)
        if len(ids) < len(PROMPT):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return (yield from reading)

    monkeypatch.setattr(llm.engine.runner, "read", failing)
    running, refused = (Sequence(n, p, FEW, len(p) + 4, llm.tokenizer) for n, p in enumerate((PROMPT, PROMPT[:30])))
    llm.engine.add(running)
    llm.engine.add(refused)
    while llm.engine.busy:
        llm.engine.step()
    assert (refused.finish_reason, type(refused.ready.error)) == ("error", CapacityError)
    assert "too small for reading a prompt of 30 tokens: lower device_memory" in str(refused.ready.error)
    assert running.output_ids == expected
    assert llm.engine.store.pages.available() == llm.engine.store.pages.pool.capacity


def test_a_device_that_is_lost_is_one_sentence(tiny_models, monkeypatch):
    llm = far_llm(str(tiny_models["llama"]), ScoutConfig(budget=40, block_size=8), 3, 2)

    def decode(*args, **options):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure\nand many more lines")

    monkeypatch.setattr(llm.engine.runner, "decode", decode)
    with pytest.raises(KernelError, match=r"failed decoding 2 sequences: CUDA error: unspecified launch failure: see"):
        llm.generate(PROMPTS, FEW)


def test_kernels_that_do_not_run_there_are_refused(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    with Workers(1) as workers:
        with pytest.raises(ConfigError, match="set kernels to 'auto'"):
            make_ops(EngineConfig(kernels="native"), gpu, workers)
        with pytest.raises(ConfigError, match="TRITON_INTERPRET, which is for CPUs, is set: unset it"):
            make_ops(EngineConfig(), gpu, workers)
        monkeypatch.setattr(triton_ops, "INTERPRETED", False)
        with pytest.raises(ConfigError, match="is not set: set it to 1, or kernels to 'native'"):
            make_ops(EngineConfig(kernels="triton"), cpu, workers)


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device='cuda' needs a GPU, and PyTorch .* finds none: `scout doctor`"):
        find_device("cuda")


@pytest.fixture
def gpus(monkeypatch) -> list[tuple[int, int]]:
    """The compute capabilities of GPUs that seem to be there."""
    seem, current = [(9, 0), (8, 0), (9, 0)], [0]
    for name, fake in {
        "is_available": lambda: True,
        "device_count": lambda: len(seem),
        "init": lambda: None,
        "current_device": lambda: current[0],
        "set_device": lambda index: current.__setitem__(0, index),
        "get_device_capability": lambda index: seem[index],
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seem


def test_a_rank_has_the_gpu_of_its_number(gpus):
    assert find_device("cuda", 2, 3) == torch.device("cuda", 2)
    assert find_device("cuda") == torch.device("cuda", 2), "the current one"
    assert find_device("cpu", 1, 2) == torch.device("cpu")


def test_a_gpu_without_bfloat16_is_one_sentence_on_every_rank(gpus):
    gpus[1] = (7, 5)
    assert find_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"GPU 1 has compute capability 7\.5, and its bfloat16 needs 8\.0"):
        find_device("cuda", 0, 2)


def test_too_few_gpus_are_one_sentence(gpus):
    with pytest.raises(
        ConfigError, match=r"tensor_parallel_size=4 on .* finds 3: set tensor_parallel_size to 3 or less"
    ):
        find_device("cuda", 0, 4)


@pytest.mark.parametrize(("on_gpu", "threads"), [(False, 3), (True, 1)])
def test_workers_beside_a_gpu_leave_cores_to_it(monkeypatch, on_gpu, threads):
    made = []
    monkeypatch.setattr(device, "Workers", made.append)
    make_workers(EngineConfig(), 3, on_gpu=on_gpu)
    make_workers(EngineConfig(workers=2), 3, on_gpu=on_gpu)
    make_workers(EngineConfig(), 1, on_gpu=on_gpu)
    assert made == [threads, 2, 1]
