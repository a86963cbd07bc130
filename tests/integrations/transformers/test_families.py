"""Every family that scout serves, against transformers by itself and against the engine."""

import pytest
import torch

from scoutattention import LLM, SamplingParams, ScoutConfig, scout
from scoutattention.integrations.transformers import session as sessions
from scoutattention.integrations.transformers.model_pass import PromptPass
from scoutattention.integrations.transformers.query import ModuleQueries

from ...tiny import save
from .models import FAMILIES, answer, make, prompts

WHOLE = 4096


@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_of_the_whole_context_gives_the_same_tokens(family):
    model, given = make(family), prompts(171, 140)
    expected = answer(model, given)
    for memory in ("all", "slots"):
        with scout(model, budget=WHOLE, device_memory=memory):
            assert torch.equal(answer(model, given), expected)


@pytest.mark.parametrize("family", ["qwen3", "gpt-oss"])
def test_so_it_does_where_the_cpu_attends_to_some_blocks(family):
    model, given = make(family), prompts(300, 270)
    expected = answer(model, given)
    with scout(model, budget=WHOLE, device_memory="256KiB") as session:
        assert torch.equal(answer(model, given), expected)
        assert session.stats().cpu_share > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_of_the_probe_and_of_the_fast_path_are_the_true_ones(family, monkeypatch):
    model, given, seen = make(family), prompts(50), []

    class Watched(PromptPass):
        def begin(self, rope):
            self.rope = rope
            super().begin(rope)

        def attend(self, layer, heads, x):
            seen.append((layer, heads[0][0].transpose(0, 1), x[0], type(self.rope)(*(t[0] for t in self.rope))))
            return super().attend(layer, heads, x)

    monkeypatch.setattr(sessions, "PromptPass", Watched)
    with scout(model, budget=WHOLE) as session:
        answer(model, given, 2)
        served = session.served
        for lean in {False, served.lean}:
            queries = ModuleQueries(served, session._probe, lean=lean)
            for layer, true, x, rope in seen:
                made = queries.project_query(layer, x, rope)
                assert torch.allclose(made.flatten(1, 2), true, rtol=1e-5, atol=1e-5)
    assert len(seen) == served.shape.num_layers


def test_sliding_layers_are_left_to_the_library():
    model = make("gemma3")
    with scout(model) as session:
        assert session.served.numbers == (2, 5)
        assert answer(model, prompts(50), 2).shape == (1, 2)
        assert session.stats().kv_bytes_total == 2 * 2 * 2 * 16 * 4 * 64  # two layers, two blocks


@pytest.mark.parametrize("memory", ["all", "slots"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tokens_are_those_of_the_engine(family, memory, tmp_path):
    model, lengths = make(family, num_hidden_layers=4), (700, 650)
    save(model, tmp_path)
    # Exact, as digests of 2 bits choose otherwise where a key differs in its last bit.
    method = {"budget": 128, "ablation": ScoutConfig().changed(min_scout_cosine=-1.0, digest="exact").ablation}
    given = prompts(*lengths)
    ids = [row[-length:].tolist() for row, length in zip(given["input_ids"], lengths, strict=True)]
    with LLM(str(tmp_path), scout=ScoutConfig(**method), device_memory=memory, max_num_seqs=2) as llm:
        outputs = llm.generate(ids, SamplingParams(max_tokens=40, ignore_eos=True))
        share = llm.stats().cpu_share
    with scout(model, **method, device_memory=memory) as session:
        made = answer(model, given, 40)
        assert session.stats().cpu_share == pytest.approx(share, abs=0.01)
    assert made.tolist() == [output.token_ids for output in outputs]
    assert (share > 0) == (memory == "slots")
