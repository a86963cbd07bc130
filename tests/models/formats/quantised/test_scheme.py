import pytest

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.file_fields import Entries
from scoutattention.models.formats.quantised.scheme import read_scheme

from .checkpoints import AWQ, CASES, FP8, GPTQ, compressed


def read(config):
    return read_scheme(Entries({"quantization_config": config}, "config.json"))


def weights(**changes):
    return {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True} | changes


def packed(form="pack-quantized", other=None, **changes):
    return compressed(form, weights(**changes), **(other or {}))


def activations(kind):
    config = packed()
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": kind, "dynamic": True}
    return config


TWO_GROUPS = packed()
TWO_GROUPS["config_groups"] |= {"group_1": {"weights": weights(num_bits=8)}}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'.*supported are gptq, awq"),
        ({"bits": 4}, "an unnamed method"),
        (GPTQ | {"bits": 3}, "bits=3.*4 and 8 bits are"),
        (GPTQ | {"bits": 2}, "bits=2"),
        (GPTQ | {"group_size": 16}, "group_size=16.*multiples of 32"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        (GPTQ | {"format": "bitblas"}, "format='bitblas'"),
        (GPTQ | {"dynamic": {r"+:.*down.*": {"bits": 8}}}, "dynamic=an object.*same bits"),
        (AWQ | {"bits": 8}, "bits=8.*4 bits are"),
        (AWQ | {"version": "gemv"}, "version='gemv'.*gemm"),
        (AWQ | {"zero_point": False}, "zero_point=false"),
        (FP8 | {"fmt": "e5m2"}, "fmt='e5m2'"),
        (FP8 | {"activation_scheme": "tensor"}, "activation_scheme='tensor'"),
        (packed("marlin-24"), "format='marlin-24'"),
        (packed("nvfp4-pack-quantized"), "format='nvfp4-pack-quantized'"),
        (packed(num_bits=2), "num_bits=2"),
        (packed("int-quantized"), "num_bits=4.*8 bits are"),
        (packed(type="float"), "type='float'"),
        (packed(strategy="tensor_group"), "strategy='tensor_group'"),
        (packed(num_bits=8, symmetric=False), "symmetric=false.*4 bits"),
        (packed(other={"kv_cache_scheme": {"num_bits": 8}}), "kv_cache_scheme.*--kv-dtype"),
        (packed(other={"sparsity_config": {"format": "sparse-24-bitmask"}}), "format='sparse-24-bitmask'"),
        (packed(other={"transform_config": {"config_groups": {}}}), "transform_config"),
        (activations("int"), "input_activations=an object"),
        (TWO_GROUPS, "config_groups.*2 groups"),
    ],
)
def test_what_is_not_supported_is_named(config, named):
    with pytest.raises(UnsupportedModelError, match=named) as error:
        read(config)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (GPTQ | {"bits": "four"}, "bits='four'.*positive whole number"),
        (GPTQ | {"group_size": -2}, "group_size=-2"),
        (GPTQ | {"sym": 1}, "sym=1.*true or false"),
        (FP8 | {"weight_block_size": [128]}, "weight_block_size=a list"),
        (AWQ | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert='lm_head'"),
        (packed(other={"ignore": ["re:*"]}), "ignore=a list.*re:\\* is none"),
        (GPTQ | {"dynamic": {"-:*": {}}}, "dynamic=an object.*\\* is none"),
        (packed(other={"config_groups": {}}), "config_groups=an object"),
        (packed(other={"config_groups": {"group_0": {"weights": None}}}), "weights=null"),
    ],
)
def test_what_is_malformed_is_named(config, named):
    with pytest.raises(ModelFileError, match=named):
        read(config)


@pytest.mark.parametrize("name", CASES)
def test_what_is_supported_is_read(name):
    assert read(CASES[name][0]).method == CASES[name][0]["quant_method"]


def test_activations_in_8_bit_floats_do_not_matter():
    config = packed("float-quantized", num_bits=8, type="float", strategy="channel", group_size=None)
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8, "type": "float", "dynamic": True}
    assert read(config).layout == "float8"


@pytest.mark.parametrize(
    ("entry", "module", "kept"),
    [
        ("lm_head", "lm_head", True),
        ("model.layers.1", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1", "model.layers.11.mlp.up_proj", False),
        ("up_proj", "model.layers.1.mlp.up_proj", True),
        ("re:.*self_attn.*", "model.layers.1.self_attn.q_proj", True),
        ("re:.*self_attn.*", "model.layers.1.mlp.up_proj", False),
    ],
)
def test_lists_of_modules_are_read_as_names_and_expressions(entry, module, kept):
    assert read(packed(other={"ignore": [entry]})).keeps(module) == (entry if kept else None)
    if not entry.startswith("re:"):
        assert read(FP8 | {"ignored_layers": [entry]}).keeps(module) == (entry if kept else None)


def test_rules_of_gptq_leave_modules_out():
    scheme = read(GPTQ | {"dynamic": {r"-:.*\.down_proj": {}}})
    assert scheme.keeps("model.layers.0.mlp.down_proj")
    assert not scheme.keeps("model.layers.0.mlp.up_proj")
