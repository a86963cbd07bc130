import gc
import json
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from scoutattention.errors import CapacityError, ModelFileError, UnsupportedModelError
from scoutattention.models.formats import safetensors
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


def test_shards_may_lie_in_folders_below(folder):
    before = load(str(folder)).decoder.fingerprint
    (folder / "below").mkdir()
    (folder / WEIGHTS).rename(folder / "below/a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "below/a.safetensors"}}))
    assert load(str(folder)).decoder.fingerprint == before


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_names_without_the_outer_model_are_the_same_as_in_transformers(family, tmp_path):
    folder = save(families.make(family), tmp_path)
    tokens = list(range(20))
    before = prompt_logits(load(str(folder)).decoder, tokens)
    save_file({k.removeprefix("model."): v for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    edit_json(folder / "config.json", architectures=["LlamaModel"])
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([tokens])).logits[0]
    after = prompt_logits(load(str(folder)).decoder, tokens)
    assert torch.equal(after, before)
    torch.testing.assert_close(after, expected, atol=1e-4, rtol=0)


def test_a_tensor_with_and_without_the_outer_model_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"] * 2}))
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight twice"):
        load(str(folder))


def test_tied_embeddings_are_stored_once(tmp_path):
    tied = load(str(save(families.make("llama-tied"), tmp_path))).decoder.weights
    assert tied.head.data_ptr() == tied.embedding.data_ptr()


def test_the_directory_is_kept(folder):
    model = load(str(folder))
    assert model.path == folder
    assert model.tokenizer.eos_token_ids == {255}


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


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.cos_cached"])
def test_tensors_that_follow_from_the_config_are_ignored(folder, name):
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(8)}))
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


@pytest.mark.parametrize("file", ["tokenizer.json", WEIGHTS])
def test_a_folder_in_an_older_layout_is_told_how_to_get_the_new_one(folder, file):
    (folder / file).rename(folder / "older")
    with pytest.raises(ModelFileError, match="save_pretrained"):
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
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(index)
    with pytest.raises(ModelFileError, match=re.escape(INDEX)):
        load(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"],
)
def test_weights_that_are_not_finite_are_refused(folder, name, value):
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[3].fill_(value))
    with pytest.raises(ModelFileError, match=re.escape(f"tensor {name} has numbers that are not finite")):
        load(str(folder))


@pytest.mark.parametrize(
    ("dtype", "value", "wider"),
    [("float16", -7e4, "'float32' or 'bfloat16'"), ("bfloat16", 3.4e38, "'float32'")],
)
def test_weights_beyond_the_dtype_are_refused_with_one_that_holds_them(folder, dtype, value, wider):
    edit_weights(folder, lambda tensors: tensors["model.layers.2.mlp.down_proj.weight"].view(-1)[-1].fill_(value))
    with pytest.raises(
        UnsupportedModelError, match=rf"down_proj.*{dtype} ends at .* set dtype \(--dtype\) to {wider}$"
    ):
        load(str(folder), dtype)
    assert load(str(folder)).decoder.shape.dtype == "float32"


def test_weights_whose_sum_alone_is_too_large_are_taken(folder):
    edit_weights(folder, lambda tensors: tensors["model.layers.0.mlp.up_proj.weight"].fill_(6e4))
    assert load(str(folder), "float16").decoder.weights.layers[0].gate_up.max() == 6e4


def test_sizes_are_compared_with_the_file_before_memory_is_taken(folder):
    edit_json(folder / "config.json", num_attention_heads=2**40, head_dim=16)
    with pytest.raises(ModelFileError, match=r"q_proj\.weight has shape"):
        load(str(folder))


def test_weights_of_other_kinds_are_refused(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.weight holds I8"):
        load(str(folder))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", ["head", "embedding", "both"])
def test_the_head_is_the_one_that_transformers_takes(family, tied, stored, tmp_path):
    """`family` says whether the head that is stored beside the embedding is another matrix or the same."""
    folder = save(families.make(family), tmp_path)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    edit_weights(folder, lambda tensors: tensors.update({head: tensors.get(head, tensors[embedding]).clone()}))
    if stored != "both":
        edit_weights(folder, lambda tensors: tensors.pop(head if stored == "embedding" else embedding))
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    if not tied and stored != "both":  # transformers would draw the other one at random
        missing = f"{head}, .*: set tie_word_embeddings to true" if stored == "embedding" else embedding
        with pytest.raises(ModelFileError, match=f"no tensor {missing}"):
            load(str(folder))
        return
    tokens = list(range(20))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(prompt_logits(load(str(folder)).decoder, tokens), expected, atol=1e-4, rtol=0)


def test_of_two_sets_of_weights_the_single_file_counts_as_in_transformers(folder, tmp_path):
    other = save(families.make("llama", rms_norm_eps=1e-2), tmp_path / "other", max_shard_size="100KB")
    for path in other.glob("model*"):
        path.rename(folder / path.name)
    before = load(str(folder)).decoder.fingerprint
    for path in folder.glob("model*-of-*"):
        path.unlink()
    assert load(str(folder)).decoder.fingerprint == before


@pytest.mark.parametrize(
    "name", [3, None, ["a"], "", ".", "..", "a" * 256, "../model.safetensors", "/etc/passwd", "a/../b", "a//b", "a\0b"]
)
def test_an_index_that_names_no_file_beside_it_is_refused(folder, name):
    (folder / WEIGHTS).rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": name}}))
    with pytest.raises(ModelFileError, match=rf"{INDEX} names .*, which is not the name of a file"):
        load(str(folder))


def test_a_tensor_in_two_files_is_refused(folder):
    (folder / "b.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    with pytest.raises(ModelFileError, match=r"twice, the second time in b\.safetensors"):
        load(str(folder))


OF_TEXT = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja")


@pytest.mark.parametrize("file", ["generation_config.json", "config.json", WEIGHTS, *OF_TEXT])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_is_not_waited_for(folder, file, make):
    (folder / file).unlink(missing_ok=True)
    make(folder / file)
    with pytest.raises(ModelFileError, match=f"{file} is not a"):
        load(str(folder))


@pytest.mark.parametrize("error", [MemoryError("os error 12"), RuntimeError("unable to mmap: Cannot allocate memory")])
def test_weights_that_memory_does_not_hold_are_named_with_their_size(folder, monkeypatch, error):
    def short(*args, **options):
        raise error

    monkeypatch.setattr(safetensors, "safe_open", short)
    with pytest.raises(CapacityError, match=rf"refused memory for the [\d.]+ .iB of .*{WEIGHTS} .*ulimit -v"):
        load(str(folder))


def test_a_config_that_is_nested_deeply_is_refused(folder):
    (folder / "config.json").write_text('{"a": ' * 9999)
    with pytest.raises(ModelFileError, match="nested too deeply"):
        load(str(folder))


def test_a_loaded_model_has_its_weights_in_memory_and_lets_go_of_the_file(tiny_models):
    model = load(str(tiny_models["llama"]))
    gc.collect()
    assert str(tiny_models["llama"]) not in Path("/proc/self/maps").read_text()
    assert model.decoder.weights.embedding.isfinite().all()
