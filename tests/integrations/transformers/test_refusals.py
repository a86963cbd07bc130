"""What scout does not run with is refused by name before anything runs, and leaves the model as it was."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import transformers
from transformers import DynamicCache, GenerationConfig

from scoutattention import ConfigError, PromptError, UnsupportedModelError, scout
from scoutattention.integrations.transformers import entry

from ...models.families import SIZES
from .models import answer, as_cache, make, prompts, state


@pytest.fixture(scope="module")
def model():
    return make("llama")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 2}, "num_beams=2 .*beam search"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams=3 .*beam search"),
        ({"assistant_model": make("llama")}, "assistant_model=LlamaForCausalLM .*assisted decoding"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens=2 .*assisted decoding"),
        ({"cache_implementation": "static"}, "cache_implementation='static' .*its own cache"),
        ({"past_key_values": DynamicCache()}, "past_key_values=DynamicCache .*its own cache"),
        ({"use_cache": False}, "use_cache=False .*scout is a cache"),
        ({"prefill_chunk_size": 16}, "prefill_chunk_size=16 .*layer by layer"),
        ({"custom_generate": lambda model, **_: None}, "custom_generate=function"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5 .*second sequence"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 .*contrastive"),
        ({"output_attentions": True}, "output_attentions=True .*no matrix"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_generation_modes(model, arguments, message):
    runs = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    with scout(model):
        inside = state(model)
        with pytest.raises(ConfigError, match=f"generate with {message}.*; leave {'|'.join(arguments)}|num_beams out"):
            model.generate(**prompts(40), **arguments)
        assert state(model) == inside
    handle.remove()
    assert not runs


def test_continuous_batching(model):
    with scout(model), pytest.raises(ConfigError, match="generate_batch and continuous batching do not run with scout"):
        model.generate_batch([[5, 6, 7]])


def test_an_adapter_that_comes_inside():
    model = make("llama")
    with scout(model):
        attention = model.model.layers[1].self_attn
        own, attention.q_proj = attention.q_proj, torch.nn.Sequential(attention.q_proj)
        with pytest.raises(
            UnsupportedModelError, match=r"query projection of LlamaForCausalLM is not a plain nn.Linear"
        ):
            answer(model, prompts(40))
        attention.q_proj = own
        assert answer(model, prompts(40)).shape == (1, 20)


def test_a_mode_of_the_models_own_generation_config(model):
    with scout(model):
        model.generation_config.num_beams = 4
        with pytest.raises(ConfigError, match="num_beams=4"):
            answer(model, prompts(40))
        model.generation_config.num_beams = None
        assert answer(model, prompts(40)).shape == (1, 20)


def test_a_cache_that_the_models_own_generation_config_names_is_not_used(model):
    expected, before = answer(model, prompts(40)), model.generation_config
    model.generation_config = GenerationConfig(cache_implementation="static", max_new_tokens=20)
    with scout(model, budget=None):
        assert torch.equal(answer(model, prompts(40), past_key_values=None), expected)
    assert model.generation_config.cache_implementation == "static"
    model.generation_config = before


def test_padding_elsewhere_than_on_the_left(model):
    given = prompts(40, 30)
    right = {name: value.flip(1) for name, value in given.items()}
    with scout(model):
        with pytest.raises(PromptError, match=r"prompt 2 of the batch has padding behind .*pad on the left"):
            answer(model, right)
        given["attention_mask"][0] = 0
        with pytest.raises(PromptError, match="prompt 1 of the batch is empty"):
            answer(model, given)


def test_empty_batches(model):
    for shape, message in (((1, 0), "1 prompt of 0 tokens"), ((2, 0), "2 prompts of 0"), ((0, 3), "0 prompts of 3")):
        with scout(model), pytest.raises(PromptError, match=f"the batch has {message}.*: give at least 1 prompt of 1"):
            model.generate(torch.zeros(shape, dtype=torch.int64), max_new_tokens=2)
    with scout(model) as session, torch.no_grad(), pytest.raises(PromptError, match="the batch has 1 prompt of 0 tok"):
        model(torch.zeros((1, 0), dtype=torch.int64), **as_cache(model, session.new_cache(max_length=8)))


@pytest.mark.parametrize(
    ("length", "message"),
    [(0, "max_length=0 is below the least value 1"), ("x", "max_length='x' is of type str: give a whole number")],
)
def test_lengths_of_a_new_cache(model, length, message):
    with scout(model) as session, pytest.raises(ConfigError, match=message):
        session.new_cache(max_length=length)


def test_models(model):
    def made(name, **options):
        config = getattr(transformers, f"{name}Config")(**SIZES | options)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()

    with pytest.raises(ConfigError, match="takes a model of transformers, and here is a str"):
        scout("smollm2")
    for name in ("Gemma2", "Gemma"):
        with pytest.raises(UnsupportedModelError, match=f"{name}ForCausalLM .* not among the causal models .* llama"):
            scout(made(name))
    with pytest.raises(UnsupportedModelError, match=r"LlamaModel \(model_type 'llama'\) is not among"):
        scout(model.model)
    with pytest.raises(UnsupportedModelError, match="every layer of MistralForCausalLM has a sliding window"):
        scout(made("Mistral", sliding_window=32))
    with pytest.raises(ConfigError, match=r"in torch.float64, and scout knows float32, bfloat16, float16"):
        scout(make("llama").double())
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is on meta"):
        scout(make("llama").to("meta"))
    lora = make("llama")
    lora.model.layers[1].self_attn.q_proj = torch.nn.Sequential(lora.model.layers[1].self_attn.q_proj)
    with pytest.raises(UnsupportedModelError, match=r"query projection of LlamaForCausalLM is not a plain nn.Linear"):
        scout(lora)


def test_training_mode():
    model = make("llama").train()
    with pytest.raises(ConfigError, match=r"is in training mode, .*: call model.eval\(\)"):
        scout(model)
    with scout(model.eval()):
        model.train()
        with pytest.raises(ConfigError, match="is in training mode"):
            answer(model, prompts(40))


def test_compiled_models():
    model = make("llama")
    with pytest.raises(ConfigError, match="takes a model of transformers, and here is a OptimizedModule"):
        scout(torch.compile(model))
    before = state(model)
    session = scout(model)
    model.model.layers[1].compile()
    with pytest.raises(ConfigError, match=r"was compiled with model.compile\(\)"):
        scout(model)
    with pytest.raises(ConfigError, match=r"was compiled with model.compile\(\)"), session:
        pass
    assert state(model) == before
    model.model.layers[1]._compiled_call_impl = None
    with session:
        model.compile()
        with pytest.raises(ConfigError, match=r"was compiled with model.compile\(\)"):
            answer(model, prompts(40))


def test_offloaded_weights():
    model = make("llama")
    model.model.layers[2].to("meta")
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is on cpu, meta, and scout needs it on one"):
        scout(model)


def test_settings(model):
    with pytest.raises(ConfigError, match="scout has no setting 'bugdet': write budget"):
        scout(model, bugdet=2048)
    with pytest.raises(ConfigError, match="scout has no setting 'max_num_seqs': known are budget, "):
        scout(model, max_num_seqs=2)
    with pytest.raises(ConfigError, match="budget=3 tokens is below"):
        scout(model, budget=3)
    with pytest.raises(ConfigError, match="host_memory"):
        scout(model, host_memory=0)
    with pytest.raises(ConfigError, match="workers=1000 is outside"), scout(model, workers=1000):
        pass


@pytest.mark.parametrize("installed", ["5.16.1", "6.0.0", "4.57.3"])
def test_versions(model, installed, monkeypatch):
    monkeypatch.setattr(entry, "version", lambda _: installed)
    with pytest.raises(
        ConfigError, match=f"transformers {installed} is installed, and scout knows 5.17 or newer, below"
    ):
        scout(model)


def test_the_oldest_version_is_installed_with_the_extra_and_tested():
    root, (major, minor) = Path(__file__).parents[3], entry.OLDEST
    assert (
        f'transformers = ["transformers>={major}.{minor},<{entry.BELOW[0]}"]' in (root / "pyproject.toml").read_text()
    )
    assert f"transformers=={major}.{minor}.0 " in (root / "Makefile").read_text()
    page = (root / "docs/integrations/transformers.md").read_text()
    assert f"transformers {major}.{minor} or newer, below {entry.BELOW[0]}" in page


def test_a_missing_library(model, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(entry, "version", missing)
    with pytest.raises(ConfigError, match=r"it is missing: pip install 'scout-attention\[transformers\]'"):
        scout(model)
