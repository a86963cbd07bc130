"""Rotary positions of every kind against transformers: frequencies, logits of prompts, and decoding with a cache."""

import pytest
import torch
import transformers

from scoutattention import LLM, SamplingParams
from scoutattention.models.config import ModelConfig
from scoutattention.models.decoder import Rotary
from scoutattention.models.loader import load
from scoutattention.models.rope import inverse_frequencies

from ..tiny import save
from . import families
from .dense import prompt_logits

pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")

LENGTH = 64
PROMPT = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(1)).tolist()
"""Longer than LENGTH, the original length of the scalings."""
FACTORS = {"short_factor": [1.0 + i / 4 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
KINDS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH},
    "yarn-mscale": {"rope_type": "yarn", "factor": 8.0, "mscale": 1.3, "mscale_all_dim": 0.7, "beta_fast": 8},
    "yarn-attention": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.2, "truncate": False, "beta_slow": 2},
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": LENGTH, **FACTORS},
    "longrope-factor": {"rope_type": "longrope", "factor": 3.0, "original_max_position_embeddings": LENGTH, **FACTORS},
    "llama3": families.LLAMA3,
    "partial": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    "partial-ignored": {"rope_type": "default", "partial_rotary_factor": 0.5},
}
CASES = [("llama", kind) for kind in KINDS] + [
    ("mistral", "yarn"),
    ("qwen2", "yarn"),
    ("qwen2", "dynamic"),
    ("qwen3", "yarn"),
    ("qwen3", "longrope"),
    ("qwen3", "partial"),
]


def make(family, kind):
    settings = {"rope_theta": 10_000.0, **KINDS[kind]}
    grows = (
        settings["rope_type"] in ("linear", "dynamic", "yarn") and "original_max_position_embeddings" not in settings
    )
    positions = LENGTH if grows else 4 * LENGTH
    return families.make(family, rope_parameters=settings, head_dim=16, max_position_embeddings=positions)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pair(request, tmp_path_factory):
    """A model of transformers, and the folder that it is saved in."""
    model = make(*request.param)
    return model, save(model, tmp_path_factory.mktemp("rope"))


def fresh(folder):
    """The model as transformers loads it: it remembers the longest sequence that it has seen."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@torch.inference_mode()
def theirs(model, prompt, steps):
    """The logits after the prompt and after each of its own next tokens, and these tokens."""
    cache, tokens, logits, ids = None, [], [], prompt
    for _ in range(steps):
        seen = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        cache = seen.past_key_values
        logits.append(seen.logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        ids = tokens[-1:]
    return torch.stack(logits), tokens


def test_frequencies_are_those_of_transformers_to_the_bit(pair):
    model, folder = pair
    config = load(str(folder)).decoder.config
    assert torch.equal(inverse_frequencies(config.rope, config.shape.head_dim), model.model.rotary_emb.inv_freq)
    assert config.rope.attention_factor == pytest.approx(model.model.rotary_emb.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("length", [LENGTH // 2, len(PROMPT)])
def test_logits_of_prompts_are_those_of_transformers(pair, length):
    expected = fresh(pair[1])(torch.tensor([PROMPT[:length]])).logits[0]
    assert expected.std() > 0.1
    found = prompt_logits(load(str(pair[1])).decoder, PROMPT[:length])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [LENGTH - 3, len(PROMPT)])
def test_decoding_with_a_cache_is_that_of_transformers(pair, length):
    """The first prompt ends before the original length, and the answer beyond it."""
    _, tokens = theirs(fresh(pair[1]), PROMPT[:length], 12)
    llm = LLM(str(pair[1]), max_model_len=min(4096, 4 * LENGTH))
    try:
        assert llm.generate([PROMPT[:length]], SamplingParams(max_tokens=12, ignore_eos=True))[0].token_ids == tokens
    finally:
        llm.close()


def read(settings):
    raw = families.SIZES | {"architectures": ["LlamaForCausalLM"], "rope_parameters": settings}
    return ModelConfig.from_hf(raw, "float32")


def test_tables_of_single_positions_are_those_of_steps():
    """What the steps of sequences of different lengths get together is what each gets alone."""
    rope = read({**KINDS["dynamic"]}).rope
    rotary, positions = Rotary(rope, 16, torch.device("cpu")), torch.tensor([3, 4095, 4096, 9000])
    together = rotary.tables(positions)
    alone = [rotary.tables(positions[row : row + 1], int(positions[row]) + 1) for row in range(4)]
    assert torch.equal(together.cos, torch.cat([one.cos for one in alone]))
    assert torch.equal(together.sin, torch.cat([one.sin for one in alone]))
    assert not torch.equal(rotary.tables(positions, 9001).cos, together.cos)
