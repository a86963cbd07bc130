import gc
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoutattention.errors import ModelFileError, UnsupportedModelError
from scoutattention.models.loader import load

from ..tiny import save
from . import families
from .dense import prompt_logits

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return save(families.make("llama"), tmp_path)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_sharded_checkpoint_is_the_same_model(folder, tmp_path):
    sharded = save(families.make("llama"), tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    tokens = list(range(20))
    assert torch.equal(
        prompt_logits(load(str(sharded)).decoder, tokens), prompt_logits(load(str(folder)).decoder, tokens)
    )


def test_tied_embeddings_are_stored_once(tmp_path):
    tied = load(str(save(families.make("llama-tied"), tmp_path))).decoder.weights
    assert tied.head.data_ptr() == tied.embedding.data_ptr()


def test_name_and_directory_are_kept(folder):
    model = load(str(folder))
    assert (model.name, model.directory) == (str(folder), folder)
    assert model.tokenizer.eos_token_ids == model.decoder.config.eos_token_ids == {255}


@pytest.mark.parametrize(
    ("asked", "written", "stored", "expected"),
    [
        ("auto", "bfloat16", torch.float32, "bfloat16"),
        ("auto", None, torch.float16, "float16"),
        ("float32", "bfloat16", torch.bfloat16, "float32"),
    ],
)
def test_dtype_is_the_asked_one_then_the_configs_then_the_tensors(folder, asked, written, stored, expected):
    edit_json(folder / "config.json", dtype=written)
    edit_weights(folder, lambda tensors: tensors.update({k: v.to(stored) for k, v in tensors.items()}))
    decoder = load(str(folder), asked).decoder
    assert decoder.shape.dtype == expected
    assert decoder.weights.layers[0].qkv.dtype == decoder.weights.embedding.dtype == getattr(torch, expected)


def test_tensors_that_follow_from_the_config_are_ignored(folder):
    edit_weights(
        folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    assert load(str(folder)).decoder.shape.num_layers == 3


def test_tensors_without_a_use_are_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}))
    with pytest.raises(UnsupportedModelError, match=r"1 tensors that LlamaForCausalLM does not use.*q_norm"):
        load(str(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(ModelFileError, match=re.escape(file)):
        load(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[1]", b"\xff\xfe\x00"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_malformed_file_is_named(folder, file, content):
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelFileError, match=re.escape(file)):
        load(str(folder))


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_truncated_weights_are_named(folder, kept):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(ModelFileError, match=rf"{WEIGHTS} is truncated"):
        load(str(folder))


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(ModelFileError, match=r"no tensor model\.layers\.2\.mlp\.up_proj\.weight"):
        load(str(folder))


def test_a_tensor_of_another_shape_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight has shape \[65\].*\[64\]"):
        load(str(folder))


def test_a_missing_shard_is_named(tmp_path):
    folder = save(families.make("llama"), tmp_path, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelFileError, match=shard.name):
        load(str(folder))


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": []}'])
def test_a_malformed_index_is_named(folder, index):
    (folder / INDEX).write_text(index)
    with pytest.raises(ModelFileError, match=re.escape(INDEX)):
        load(str(folder))


def test_a_loaded_model_has_its_weights_in_memory_and_lets_go_of_the_file(tiny_models):
    model = load(str(tiny_models["llama"]))
    gc.collect()
    assert str(tiny_models["llama"]) not in Path("/proc/self/maps").read_text()
    assert model.decoder.weights.embedding.isfinite().all()
