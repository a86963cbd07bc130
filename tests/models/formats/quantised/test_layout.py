from contextlib import closing

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from scoutattention import EngineConfig, ScoutConfig
from scoutattention.engine.engine import Engine
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.kernels.reference_stored import expand
from scoutattention.models.loader import load
from scoutattention.runtime.stored import StoredKind, StoredMatrix

from ...dense import prompt_logits
from .checkpoints import CASES, write, write_expanded

EXACT = [name for name in CASES if "zeros" not in name and "awq" not in name]
KINDS = {"4": StoredKind.Q4_0, "zeros": StoredKind.Q4_1, "8": StoredKind.Q8_0}


def kind_of(name):
    if "float8" in name or "fp8" in name:
        return None
    return KINDS["8" if "8" in name or name == "packed-rows" else "zeros" if "zeros" in name or "awq" in name else "4"]


def numbers_of(weight):
    return expand(weight, slice(None), torch.float32) if isinstance(weight, StoredMatrix) else weight


@pytest.mark.parametrize("name", CASES)
def test_matrices_stand_for_the_numbers_of_their_definition(name, tmp_path):
    expected = write(tmp_path, name)
    layer = load(str(tmp_path), "float32").decoder.weights.layers[1]
    for weight, names in ((layer.qkv, ["q_proj", "k_proj", "v_proj"]), (layer.output, ["o_proj"])):
        exact = torch.cat([expected[f"model.layers.1.self_attn.{part}.weight"] for part in names])
        if name in EXACT:
            assert torch.equal(numbers_of(weight), exact)
        else:  # the least number of a block is rounded to float16, to 11 bits of up to 16 scales
            assert (numbers_of(weight) - exact).abs().max() < 2**-11 * exact.abs().max()
        kinds = {part.kind for part in weight.parts} if isinstance(weight, StoredMatrix) else {None}
        assert kinds == {kind_of(name)}


@pytest.mark.parametrize("name", CASES)
def test_next_tokens_are_as_likely_as_with_the_weights_expanded(name, tmp_path):
    numbers = write(tmp_path / "a", name, family="qwen2")
    expanded = load(str(write_expanded(tmp_path / "b", numbers, "qwen2")), "float32").decoder
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 250, 7]
    true = prompt_logits(expanded, tokens).log_softmax(-1)
    found = prompt_logits(load(str(tmp_path / "a"), "float32").decoder, tokens).log_softmax(-1)
    assert (true.exp() * (true - found)).sum(-1).max() <= 1e-5


@pytest.mark.parametrize("kernels", ["native", "plain"])
@pytest.mark.parametrize("name", ["awq", "gptq-order", "gptq-8"])
def test_an_engine_predicts_what_it_does_with_the_weights_expanded(name, kernels, tmp_path):
    numbers = write(tmp_path / "a", name)
    paths = (write_expanded(tmp_path / "b", numbers), tmp_path / "a")
    true, found = (next_tokens(load(str(path), "float32").decoder, kernels) for path in paths)
    assert (true.exp() * (true - found)).sum(-1).max() <= 1e-4


def next_tokens(decoder, kernels):
    settings = EngineConfig(max_num_seqs=1, kernels=kernels)
    with closing(Engine(decoder, ScoutConfig(budget=None, block_size=8), settings)) as engine:
        tokens = [(7 * number) % 250 for number in range(60)]
        return torch.stack([step for step, _ in teacher_forced(engine, tokens, 40)]).log_softmax(-1)


def test_weights_in_float16_are_expanded_for_prompts(tmp_path):
    numbers = write(tmp_path / "a", "awq")
    paths = (write_expanded(tmp_path / "b", numbers), tmp_path / "a")
    true, found = (next_tokens(load(str(path), "float16").decoder, "native") for path in paths)
    assert (true.exp() * (true - found)).sum(-1).max() <= 1e-4


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("packed", "int8", "float8"))])
def test_the_definition_is_that_of_compressed_tensors(name, tmp_path):
    numbers = write(tmp_path, name)
    about = CASES[name][0]
    args = QuantizationArgs(**about["config_groups"]["group_0"]["weights"])
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(about["format"])
    module = "model.layers.0.mlp.down_proj"
    parts = {
        key.removeprefix(f"{module}."): tensor
        for key, tensor in load_file(tmp_path / "model.safetensors").items()
        if key.startswith(module)
    }
    parts["weight_scale"] = parts["weight_scale"].float()
    found = compressor.decompress(parts, scheme)["weight"]
    assert torch.allclose(found.float(), numbers[f"{module}.weight"], rtol=1e-6)


def test_blocks_of_8_bit_floats_are_those_of_transformers(tmp_path):
    numbers = write(tmp_path, "fp8-blocks")
    tensors, module = load_file(tmp_path / "model.safetensors"), "model.layers.0.mlp.down_proj"
    weight, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale_inv"]
    found = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    assert torch.equal(found, numbers[f"{module}.weight"])
