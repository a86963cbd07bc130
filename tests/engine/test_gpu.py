"""What only a GPU can show of the engine: captured steps, copies beside them, and prompts in its own kernels."""

from contextlib import contextmanager

import pytest
import torch

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.kernels.reference_prompt import causal
from scoutattention.runtime.streams import SideStream

from ..models import families
from ..models.formats.gguf_files import mixed, write
from ..runtime.test_graphs import FAR, METHODS, answers
from .test_generate import DENSE, GREEDY, PROMPT, far_llm

pytestmark = pytest.mark.gpu
TWO = [PROMPT, PROMPT[:61]]
MANY = SamplingParams(max_tokens=48, ignore_eos=True)


@pytest.fixture(autouse=True)
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")


@METHODS
def test_captured_steps_give_the_tokens_and_the_counts_of_eager_ones(tiny_models, options):
    made = []
    for graphs in (False, True):
        llm = far_llm(str(tiny_models["qwen3"]), FAR.changed(**options), 5, 2, device="cuda", graphs=graphs)
        tokens, steps = answers(llm, None), llm.stats().steps
        made.append((tokens, steps.chosen_blocks, steps.far_blocks, steps.guarded_heads, steps.recalls))
        assert bool(graphs) == (llm.engine.runner._graphs is not None)
        assert not graphs or llm.engine.runner._graphs._captured
        llm.close()
    assert made[0] == made[1]
    assert made[0][2] > 0


@pytest.mark.parametrize("budget", [None, 40])
def test_captured_steps_where_everything_is_resident(tiny_models, budget):
    scout, made = ScoutConfig(budget=budget, block_size=8), []
    for graphs in (False, True):
        sizes = {"max_num_seqs": 2, "device_memory": "all"}
        llm = LLM(str(tiny_models["llama"]), scout=scout, device="cuda", graphs=graphs, **sizes)
        made.append((answers(llm, None), llm.stats().steps.chosen_blocks))
        llm.close()
    assert made[0] == made[1]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("budget", [None, 40])
def test_recall_beside_steps_gives_the_tokens_of_recall_between_them(tiny_models, monkeypatch, budget, graphs):
    """Copies on the steps' own stream cannot be late, and none of them is read too early."""
    scout = ScoutConfig().changed(budget=budget, block_size=8, recall_interval=1, recall_target=None)
    path, made = str(tiny_models["qwen3"]), []
    for _ in range(2):
        llm = far_llm(path, scout, 5, 2, device="cuda", graphs=graphs)
        made.append([out.token_ids for out in llm.generate(TWO, MANY)])
        recalled = llm.stats().recalled_bytes
        llm.close()
        assert recalled > 0 or budget is None
        monkeypatch.setattr(SideStream, "after", in_line)
        for name in ("mark", "wait"):
            monkeypatch.setattr(SideStream, name, lambda self, index: None)
    assert made[0] == made[1]


@contextmanager
def in_line(side: SideStream, *tensors: torch.Tensor):
    yield


def test_the_cpu_and_the_gpu_give_the_same_tokens(tiny_models):
    path = str(tiny_models["llama"])
    expected = LLM(path, scout=DENSE).generate(PROMPT, GREEDY)[0].token_ids
    for kernels in ("plain", "triton"):
        scout = ScoutConfig().changed(budget=160, block_size=8, true_query_layers=())
        llm = far_llm(path, scout, 5, device="cuda", kernels=kernels)
        assert llm.generate(PROMPT, GREEDY)[0].token_ids == expected
        assert llm.stats().cpu_share > 0


def test_a_gguf_file_answers_on_a_gpu_as_on_a_cpu(tmp_path):
    model = families.make("llama")
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    expected = LLM(path, scout=DENSE).generate(PROMPT, GREEDY)[0].token_ids
    scout = ScoutConfig().changed(budget=160, block_size=8, true_query_layers=())
    llm = far_llm(path, scout, 5, device="cuda")
    assert llm.generate(PROMPT, GREEDY)[0].token_ids == expected


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize(("T", "H", "G", "D"), [(1, 2, 3, 64), (33, 1, 7, 128), (600, 4, 4, 128), (257, 2, 1, 80)])
def test_the_attention_of_a_prompt(T, H, G, D, dtype, limit):
    torch.manual_seed(0)
    q, k, v = torch.randn(T, H, G, D).to(dtype), *torch.randn(2, T, H, D).to(dtype)
    got = causal(q.cuda(), k.cuda(), v.cuda(), D**-0.5).cpu().double()
    want = causal(q.double(), k.double(), v.double(), D**-0.5)
    assert (got - want).norm() <= limit * want.norm()
    for last in {1, T // 3 or 1, T}:
        got = causal(q[-last:].cuda(), k.cuda(), v.cuda(), D**-0.5).cpu().double()
        assert (got - want[-last:]).norm() <= limit * want[-last:].norm()
