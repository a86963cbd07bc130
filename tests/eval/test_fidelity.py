"""Divergence from full attention: replayed as well as computed, on tiny models; tests/engine has a real one."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from scoutattention.config import EngineConfig, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.errors import ConfigError, PromptError
from scoutattention.eval.fidelity.ablation import Variant
from scoutattention.eval.fidelity.measure import check_lengths, measure, read
from scoutattention.eval.fidelity.run import run
from scoutattention.eval.text import Text, code, first_tokens, mixed, prose
from scoutattention.models.loader import load

from ..attention.rig import SHAPE

MACHINE = EngineConfig(max_num_seqs=1)
CONTEXT, STEPS = 250, 8
SMALL = ScoutConfig().changed(budget=64, block_size=16, true_query_layers=())
TEXT = Text("text", "The quick brown fox jumps over the lazy dog, and then it rests. " * 5)


def ignore(stage, done, total):
    pass


@pytest.fixture(scope="module")
def model(tiny_models):
    return load(str(tiny_models["qwen3"]))


@pytest.fixture(scope="module")
def truth(model):
    return read(model.decoder, MACHINE, first_tokens(model.tokenizer, TEXT, CONTEXT + STEPS + 1), CONTEXT, ignore)


def logits_of(model, truth, scout, device_memory):
    engine = Engine(model.decoder, scout, EngineConfig(max_num_seqs=1, device_memory=device_memory))
    results = list(teacher_forced(engine, truth.tokens[:-1], CONTEXT))
    engine.close()
    return torch.stack([logits for logits, _ in results])


def test_a_replayed_prompt_decodes_as_a_computed_one(model, truth):
    """The numbers of a replay are those of an engine that has read the prompt itself, with torch's own formulas."""
    memory = 5 * model.decoder.shape.block_bytes(16)
    result = measure(model.decoder, MACHINE, truth, Variant("small", SMALL, memory), ignore)
    full, small = (logits_of(model, truth, *of) for of in ((ScoutConfig(budget=None), "all"), (SMALL, memory)))
    kl = kl_div(small.log_softmax(-1), full.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    targets = torch.tensor(truth.tokens[CONTEXT + 1 :])
    assert min(result.kl) > 1e-6
    assert result.kl == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)
    assert result.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3)
    assert float(kl.sort().values[-2]) <= result.kl_p95 <= float(kl.max()) * 1.001
    assert result.delta_nll == pytest.approx(
        float(cross_entropy(small, targets) - cross_entropy(full, targets)), abs=1e-5
    )
    assert result.top1_agreement == float((full.argmax(-1) == small.argmax(-1)).float().mean())


def test_what_the_device_holds(model, truth):
    """5 slots, the open block's too, of 17 blocks; keys2 digests of the 16 that are closed."""
    block = model.decoder.shape.block_bytes(16)
    result = measure(model.decoder, MACHINE, truth, Variant("small", SMALL, 5 * block), ignore)
    digests = 16 * 16 * result.digest_bytes_per_token
    assert result.device_bytes == 5 * block + digests
    assert result.device_share == pytest.approx((5 * block + digests) / (17 * block))
    assert 0 < result.cpu_share < 1
    assert 0 <= result.far_recall <= 1
    assert result.ms_per_step > 0


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_exact_digests_are_the_keys_of_the_one_pool(model, truth, kv_dtype):
    exact = Variant("exact", ScoutConfig().changed(budget=64, block_size=16, digest="exact"), "all")
    result = measure(model.decoder, replace(MACHINE, kv_dtype=kv_dtype), truth, exact, ignore)
    shape, blocks = model.decoder.shape, 16
    held = blocks * shape.page_bytes(16, kv_dtype) + shape.block_bytes(16)
    assert result.device_bytes == held
    assert result.device_share == held / ((blocks + 1) * shape.block_bytes(16))
    assert result.digest_bytes_per_token == model.decoder.shape.kv_bytes_per_token / 2


def test_a_budget_for_everything_loses_nothing(model, truth):
    result = measure(model.decoder, MACHINE, truth, Variant("ample", ScoutConfig(budget=512), "slots"), ignore)
    assert abs(result.kl_mean) < 1e-6
    assert abs(result.delta_nll) < 1e-5
    assert (result.top1_agreement, result.cpu_share, result.far_recall) == (1.0, 0.0, None)


def test_layers_are_all_there(model, truth):
    result = measure(
        model.decoder, MACHINE, truth, Variant("s", SMALL, 4 * model.decoder.shape.block_bytes(16)), ignore
    )
    layers = result.layers
    assert {len(values) for values in vars(layers).values()} == {3}
    assert layers.cosine[0] is None
    assert all(-1 <= cosine <= 1 for cosine in layers.cosine[1:])
    assert all(0 < w < 1 for w in layers.w)
    assert all(mean <= p95 for mean, p95 in zip(layers.w, layers.w_p95, strict=True))


def test_progress_names_text_and_stage(model):
    seen = []
    small = Variant("small", SMALL, "slots")
    run(model, MACHINE, [TEXT], (60, 3), variants=[small], watch=lambda *call: seen.append(call))
    assert [call for call in seen if call[1] == call[2]] == [
        ("text: reading", 60, 60),
        ("text: full attention", 3, 3),
        ("text: small", 3, 3),
    ]


@pytest.mark.parametrize(
    ("lengths", "machine", "message"),
    [
        ((0, 4), MACHINE, "context=0 is below the least value 1: raise --context"),
        ((10, 0), MACHINE, "steps=0 is below the least value 1: raise --steps"),
        ((200, 57), MACHINE, "257 tokens, above the model's limit of 256"),
        ((60, 5), EngineConfig(max_model_len=64), "65 tokens, above max_model_len of 64"),
    ],
)
def test_lengths_that_cannot_be(lengths, machine, message):
    with pytest.raises(ConfigError, match=message):
        check_lengths(SHAPE, machine, *lengths)


def test_a_short_text_is_refused_before_anything_is_computed(model):
    texts = [TEXT, Text("tiny.txt", "a few words")]
    with pytest.raises(PromptError, match=r"tiny\.txt has 11 tokens, and 68 are needed"):
        run(model, MACHINE, texts, (60, 7), variants=[], watch=pytest.fail)


def test_every_python_carries_prose_and_code():
    assert prose().text.count(" ") > 50_000
    assert code().text.count("def ") > 1_000


def test_the_mixed_text_is_the_ends_of_prose_and_code_in_turns():
    turns = mixed().text.splitlines(keepends=True)
    assert "".join(turns[:40]) == "".join(prose().text.splitlines(keepends=True)[-40:])
    assert "".join(turns[40:80]) == "".join(code().text.splitlines(keepends=True)[-40:])
    assert "".join(turns[80:120]) == "".join(prose().text.splitlines(keepends=True)[-80:-40])


def test_the_truth_has_no_packed_pages(model, truth):
    tokens = truth.tokens[:100]
    packed = read(model.decoder, EngineConfig(kv_dtype="int4"), tokens, 90, ignore)
    plain = read(model.decoder, EngineConfig(), tokens, 90, ignore)
    assert torch.equal(packed.log_probs, plain.log_probs)
