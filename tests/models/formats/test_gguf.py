import os
import subprocess
import sys
import threading

import gguf
import pytest
import torch
from safetensors.torch import load_file

from scoutattention import LLM, SamplingParams
from scoutattention.errors import CacheFolderError, CapacityError, ModelFileError, UnsupportedModelError
from scoutattention.models.formats import gguf as module
from scoutattention.models.formats import gguf_file
from scoutattention.models.formats.gguf import converted
from scoutattention.models.loader import load

from .. import families
from ..dense import prompt_logits
from .gguf_files import write

PROMPT = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(2)).tolist()
LLAMA3 = families.LLAMA3 | {"original_max_position_embeddings": 8192}
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama-tied", {}),
    "llama-llama3": ("llama-llama3", {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", families.make("llama"))


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_is_the_model(name, tmp_path):
    family, changes = MODELS[name]
    model = families.make(family, **changes)
    loaded = load(str(write(tmp_path / "tiny.gguf", model)), cache_dir=tmp_path / "cache")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(prompt_logits(loaded.decoder, PROMPT), expected, atol=1e-4, rtol=0)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("ab a1")) == "ab a1"
    assert loaded.tokenizer.eos_token_ids == {255}


def test_quantised_tensors_are_dequantised_exactly(tmp_path):
    model = families.make("llama")
    names = ("blk.1.attn_q.weight", "blk.2.ffn_down.weight")
    file = write(tmp_path / "tiny.gguf", model, quantized=names)
    ours = load_weights(converted(file, "float32", tmp_path))
    down = model.model.layers[2].mlp.down_proj.weight.detach()
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(down.numpy(), kind), kind)
    assert torch.equal(ours["model.layers.2.mlp.down_proj.weight"], torch.from_numpy(expected))
    query = model.model.layers[1].self_attn.q_proj.weight.detach()
    torch.testing.assert_close(ours["model.layers.1.self_attn.q_proj.weight"], query, atol=0.01, rtol=0)
    assert not torch.equal(ours["model.layers.1.self_attn.q_proj.weight"], query)


def load_weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_a_conversion_is_made_once_for_each_dtype(file, tmp_path, monkeypatch):
    exact, half = converted(file, "float32", tmp_path), converted(file, "bfloat16", tmp_path)
    assert exact != half
    assert {tensor.dtype for tensor in load_weights(half).values()} == {torch.bfloat16}
    monkeypatch.setattr(module, "open_gguf", None)
    assert converted(file, "float32", tmp_path) == exact


def test_a_changed_file_is_converted_again(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"))
    before = converted(file, "float32", tmp_path)
    write(file, families.make("llama", rms_norm_eps=0.5))
    after = converted(file, "float32", tmp_path)
    assert after != before
    os.utime(file, (1, 1))
    assert converted(file, "float32", tmp_path) == after


def test_weights_are_written_in_shards(file, tmp_path, monkeypatch):
    whole = load_weights(converted(file, "float32", tmp_path / "whole"))
    monkeypatch.setattr(module, "SHARD_BYTES", 50_000)
    folder = converted(file, "float32", tmp_path / "shards")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= 65_536 for shard in shards)
    torch.testing.assert_close(load_weights(folder), whole, atol=0, rtol=0)
    assert load(str(folder)).decoder.shape.num_layers == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_conversion_leaves_nothing(error, file, tmp_path, monkeypatch):
    def interrupted(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(module, "save_file", interrupted)
    with pytest.raises(error):
        converted(file, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate"), RuntimeError("can't allocate memory")])
def test_a_lack_of_memory_is_named_and_leaves_nothing(error, file, tmp_path, monkeypatch):
    def short(tensor):
        raise error

    monkeypatch.setattr(gguf_file.StoredTensor, "dequantized", short)
    with pytest.raises(
        CapacityError, match=r"converting .*tiny\.gguf needs more memory than there is: (Unable|the tensor)"
    ):
        converted(file, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_conversions_agree(file, tmp_path, monkeypatch):
    together = threading.Barrier(3, timeout=30)
    publish = module.publish
    monkeypatch.setattr(module, "publish", lambda *about: (together.wait(), publish(*about)))
    results = []
    threads = [threading.Thread(target=lambda: results.append(converted(file, "float32", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [results[0]]
    assert results == results[:1] * 3


@pytest.mark.parametrize("kept", [0, 3, 24, 200, 3000, 9000, -1])
def test_a_truncated_file_is_named(kept, file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"cut\.gguf is truncated"):
        converted(cut, "float32", tmp_path / "cache")


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "text.gguf").write_text("this is no model at all, but it is long enough to be read")
    with pytest.raises(ModelFileError, match=r"text\.gguf is truncated or not a GGUF file"):
        converted(tmp_path / "text.gguf", "float32", tmp_path)


def test_a_missing_package_names_the_extra(file, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "gguf", None)
    with pytest.raises(ModelFileError, match=r"pip install 'scout-attention\[gguf\]'"):
        converted(file, "float32", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(file, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(CacheFolderError, match=r"taken.*set XDG_CACHE_HOME"):
        converted(file, "float32", tmp_path / "taken" / "cache")


FULL = """
import resource, signal, sys
from pathlib import Path
from scoutattention.errors import CacheFolderError
from scoutattention.models.formats.gguf import converted
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    converted(Path(sys.argv[1]), "float32", Path(sys.argv[2]))
except CacheFolderError as error:
    print(error)
"""


@pytest.mark.parametrize("room", ["1000", "100000"], ids=["for the config", "for no weights"])
def test_a_full_disk_is_named_and_leaves_nothing(room, file, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL, file, tmp_path, room], capture_output=True, text=True, check=True, timeout=120
    )
    assert f"cannot keep the converted model in {tmp_path}" in run.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"tokenizer.ggml.model": "t5"}, UnsupportedModelError, "tokenizer.ggml.model='t5'"),
        ({"tokenizer.ggml.pre": "viking"}, UnsupportedModelError, "tokenizer.ggml.pre='viking'"),
        ({"ARCH.expert_count": 8}, UnsupportedModelError, "llama.expert_count=8"),
        ({"ARCH.rope.scaling.type": "su", "ARCH.rope.scaling.factor": 4.0}, UnsupportedModelError, "type 'su'"),
        ({"ARCH.rope.scaling.type": "linear"}, ModelFileError, r"rope\.scaling\.factor"),
        ({"ARCH.rope.dimension_count": 8}, UnsupportedModelError, "llama.rope.dimension_count=8"),
        ({"ARCH.attention.sliding_window": 100}, UnsupportedModelError, "sliding_window=100"),
    ],
)
def test_what_is_not_supported_is_named_before_anything_is_written(fields, error, named, tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"), **fields)
    with pytest.raises(error, match=named):
        converted(file, "float32", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_linear_scaling_is_carried_over(tmp_path):
    fields = {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": 4.0}
    file = write(tmp_path / "tiny.gguf", families.make("llama"), **fields)
    rope = load(str(file), cache_dir=tmp_path).decoder.config.rope
    assert (rope.kind, rope.factor) == ("linear", 4.0)


def test_a_damaged_conversion_is_made_again_with_a_note(file, tmp_path, caplog):
    folder = converted(file, "float32", tmp_path)
    before = {name: tensor.clone() for name, tensor in load_weights(folder).items()}
    (folder / "model-00001.safetensors").write_bytes(b"half of it")
    assert converted(file, "float32", tmp_path) == folder
    assert [record.message for record in caplog.records] == [
        f"the converted model {folder} is damaged: it is converted again"
    ]
    torch.testing.assert_close(load_weights(folder), before, atol=0, rtol=0)
    (folder / "tokenizer.json").unlink()
    assert load(str(file), cache_dir=tmp_path).tokenizer.encode("ab")
    assert list(tmp_path.iterdir()) == [folder]


def test_what_an_earlier_process_left_is_removed(file, tmp_path):
    left = tmp_path / ".converting-gone"
    left.mkdir()
    (left / "lock").touch()
    folder = converted(file, "float32", tmp_path)
    assert list(tmp_path.iterdir()) == [folder]
    left.mkdir()
    (left / "lock").touch()
    assert converted(file, "float32", tmp_path) == folder
    assert list(tmp_path.iterdir()) == [folder]


def with_weight(model, value):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    return model


@pytest.mark.parametrize(
    ("value", "dtype", "named"),
    [
        (float("nan"), "float32", r"tensor blk\.1\.ffn_up\.weight has numbers that are infinite or not numbers"),
        (float("-inf"), "bfloat16", r"tensor blk\.1\.ffn_up\.weight has numbers that are infinite or not numbers"),
        (1e5, "float16", r"blk\.1\.ffn_up\.weight has numbers that float16 does not hold: choose --dtype float32"),
    ],
)
def test_weights_that_are_not_finite_are_named_and_nothing_is_kept(value, dtype, named, tmp_path):
    file = write(tmp_path / "tiny.gguf", with_weight(families.make("llama"), value))
    with pytest.raises(ModelFileError, match=named):
        converted(file, dtype, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_scales_that_are_not_finite_are_named(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"), quantized=("blk.1.attn_q.weight",))
    data = bytearray(file.read_bytes())
    stored = gguf_file.open_gguf(file).tensors["blk.1.attn_q.weight"].data.tobytes()
    place = data.index(stored)
    data[place : place + 2] = b"\x00\x7e"  # a float16 that is not a number
    file.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"blk\.1\.attn_q\.weight has numbers"):
        converted(file, "float32", tmp_path / "cache")


def test_a_model_that_cannot_be_loaded_is_not_kept(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"), **{"tokenizer.chat_template": "a" * 2**21})
    with pytest.raises(ModelFileError, match=r"^\S+tiny\.gguf: the chat template .* characters") as caught:
        converted(file, "float32", tmp_path / "cache")
    assert ".converting" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_copy_of_a_file_is_not_converted_again(file, tmp_path, monkeypatch):
    folder = converted(file, "float32", tmp_path / "cache")
    copy = tmp_path / file.name
    copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(module, "open_gguf", None)
    assert converted(copy, "float32", tmp_path / "cache") == folder


def test_tokens_that_end_an_answer_are_declared_or_known_by_name(tmp_path):
    fields = {
        "tokenizer.ggml.eot_token_id": 250,
        "tokenizer.ggml.eom_token_id": 251,
        "tokenizer.ggml.fim_sep_token_id": 252,
    }
    file = write(tmp_path / "tiny.gguf", families.make("llama"), names={249: "<|im_end|>"}, **fields)
    assert load(str(file), cache_dir=tmp_path).tokenizer.eos_token_ids == {249, 250, 251, 252, 255}


def test_the_length_of_a_context_takes_no_memory(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama", max_position_embeddings=2**31))
    llm = LLM(str(file), cache_dir=tmp_path / "cache", host_memory="4MiB", max_num_seqs=2)
    store, plan = llm.engine.store, llm.engine.plan
    assert plan.max_len == 2**31
    assert store.pages.table.shape == (2, plan.pages)
    longest = plan.pages * plan.block_size // 2
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    assert [len(output.token_ids) for output in llm.generate([[1] * (longest - 8)] * 2, params)] == [3, 3]
    with pytest.raises(CapacityError):
        llm.generate([1] * (2 * longest + 8), params)
    llm.close()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tiny.gguf").symlink_to(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match=r"tiny\.gguf cannot be read: .*No such file"):
        converted(tmp_path / "tiny.gguf", "float32", tmp_path / "cache")
