"""Mutated files of a model: each ends in one sentence, or in what transformers makes of the same file."""

import json
import warnings

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from scoutattention.errors import ScoutError
from scoutattention.models.config import ModelConfig
from scoutattention.models.loader import load
from scoutattention.models.rope import inverse_frequencies
from scoutattention.models.text import Tokenizer

from ..tiny import save
from . import families
from .mutate import mutations

FEW, MANY = 100, 1000
"""Mutations of a file: in `make test`, and with the slow tests."""
LLAMA3 = families.LLAMA3
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.0] * 8}
SCALINGS = [None, {}, YARN, LLAMA3, LONG, {"type": "linear", "factor": 2}, {"type": "dynamic", "factor": 2.0}, "yarn"]
KNOWN = {
    "rope_scaling": SCALINGS,
    "rope_parameters": [*SCALINGS, {"rope_type": "default", "rope_theta": 500.0}, {"full_attention": YARN}],
    "rope_theta": [500.0, 1e6, 0, None, "1e4"],
    "rope_type": ["default", "yarn", "linear", None, "su"],
    "type": ["linear", "yarn", 3],
    "factor": [2.0, 4, "2", None],
    "attention_factor": [0.5, 1, None],
    "mscale": [0.7],
    "mscale_all_dim": [1.3],
    "beta_fast": [8, None],
    "truncate": [False, None],
    "partial_rotary_factor": [1.0, 0.5, 0],
    "original_max_position_embeddings": [32, 512, None, 1.5],
    "sliding_window": [16, 8192, None, True],
    "use_sliding_window": [True, False, "no"],
    "max_window_layers": [1, 3, 28],
    "layer_types": [["full_attention"] * 3, ["sliding_attention"] * 3, ["full_attention"], None],
    "head_dim": [None, 8, 16, 32],
    "architectures": [None, [], ["LlamaForCausalLM"], ["Qwen2ForCausalLM"]],
    "model_type": ["llama", "mistral", "qwen2", "qwen3", None],
    "attention_bias": [True, 1],
    "mlp_bias": [True],
    "hidden_act": ["gelu", "swish"],
    "tie_word_embeddings": [True, False, "yes"],
    "quantization_config": [None, {"quant_method": "fp8"}],
    "dtype": ["float32", "torch.bfloat16", 16],
    "torch_dtype": ["bfloat16"],
    "eos_token_id": [[1, 2], "2", None],
}
FAMILIES = ["llama-linear", "mistral", "qwen2", "qwen3"]


def document(family):
    """What transformers writes for a tiny model."""
    name, options = families.FAMILIES[family]
    raw = getattr(transformers, f"{name}Config")(**families.SIZES | options).to_dict()
    return json.loads(json.dumps({**raw, "architectures": [f"{name}ForCausalLM"]}, default=str))


def sentence_or(read):
    """What `read` gives, or None where it refuses in one sentence."""
    try:
        return read()
    except ScoutError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 600
    return None


def ours(raw):
    """The configuration, or None where it is refused in one sentence."""
    return sentence_or(lambda: ModelConfig.from_hf(raw, "float32"))


def theirs(raw):
    """The configuration and the rotary module of transformers, or None where it makes none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = transformers.AutoConfig.for_model(**raw)
            return config, LlamaRotaryEmbedding(config)
    except Exception:  # it raises anything at all
        return None


def assert_same(config, expected, what):
    theirs_, rotary = expected
    shape = config.shape
    assert (shape.num_layers, shape.hidden_size) == (theirs_.num_hidden_layers, theirs_.hidden_size), what
    assert (shape.num_query_heads, shape.num_kv_heads) == (theirs_.num_attention_heads, theirs_.num_key_value_heads), (
        what
    )
    assert (shape.vocab_size, shape.intermediate_size) == (theirs_.vocab_size, theirs_.intermediate_size), what
    assert shape.max_positions >= theirs_.max_position_embeddings, what
    assert config.rms_norm_eps == theirs_.rms_norm_eps, what
    assert config.tie_word_embeddings == theirs_.tie_word_embeddings, what
    assert config.architecture == f"{type(theirs_).__name__.removesuffix('Config')}ForCausalLM", what
    if config.architecture == "MistralForCausalLM":
        assert (theirs_.sliding_window or shape.max_positions) >= shape.max_positions, what
    elif config.architecture != "LlamaForCausalLM":
        window = theirs_.sliding_window or shape.max_positions  # without one, its layers that slide cannot be run
        assert set(theirs_.layer_types) == {"full_attention"} or window >= shape.max_positions, what
    assert theirs_.hidden_act in ("silu", "swish"), what
    if config.architecture in ("LlamaForCausalLM", "Qwen3ForCausalLM"):
        assert config.qkv_bias == config.output_bias == theirs_.attention_bias, what
    assert torch.equal(inverse_frequencies(config.rope, shape.head_dim), rotary.inv_freq), what
    assert config.rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12), what


def check_configs(family, count, seed):
    """Returns how many were read by both."""
    both = 0
    for what, changed in mutations(document(family), count, seed, KNOWN):
        raw = json.loads(json.dumps(changed))
        if not isinstance(raw, dict):
            continue
        config = ours(raw)
        expected = None if config is None else theirs(raw)
        if expected is not None:
            both += 1
            assert_same(config, expected, what)
    return both


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mutated_config_is_refused_or_read_as_by_transformers(family):
    assert check_configs(family, FEW, 1) > FEW // 10


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_many_mutated_configs_are_refused_or_read_as_by_transformers(family):
    assert check_configs(family, MANY, 2) > MANY // 10


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return save(families.make("qwen3"), tmp_path_factory.mktemp("sharded"), max_shard_size="60KB")


def check_index(folder, count, seed):
    """Every index is refused, or gives the same weights: there are no others in the folder."""
    path = folder / "model.safetensors.index.json"
    plain, before = path.read_text(), load(str(folder)).decoder.fingerprint
    try:
        for what, changed in mutations(json.loads(plain), count, seed, {"weight_map": [None, {}, {"a": 1}, ["a"]]}):
            path.write_text(json.dumps(changed))
            loaded = sentence_or(lambda: load(str(folder)))
            assert loaded is None or loaded.decoder.fingerprint == before, what
    finally:
        path.write_text(plain)


def check_generation(folder, count, seed):
    """Every generation_config.json is refused, or names ids that end an answer."""
    document = {"bos_token_id": 254, "eos_token_id": [255, 3], "temperature": 0.6, "transformers_version": "5.0.0"}
    path = folder / "generation_config.json"
    plain = path.read_text()
    try:
        for what, changed in mutations(document, count, seed, {"eos_token_id": [None, 7, [7, 8], "7", 7.5, [[7]]]}):
            path.write_text(json.dumps(changed))
            tokenizer = sentence_or(lambda: Tokenizer.from_directory(folder))
            raw = json.loads(path.read_text())
            if tokenizer is not None:
                ends = raw.get("eos_token_id")
                ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
                assert {one for one in ends if one is not None} <= tokenizer.eos_token_ids, what
    finally:
        path.write_text(plain)


@pytest.mark.parametrize("check", [check_index, check_generation])
def test_a_mutated_file_beside_the_config_is_refused_or_read_right(sharded, check):
    check(sharded, FEW, 3)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_index, check_generation])
def test_many_mutated_files_beside_the_config_are_refused_or_read_right(sharded, check):
    check(sharded, MANY, 4)
