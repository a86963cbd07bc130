"""Models in GGUF files: that they are the models, that they stay in the file, and what is refused."""

import errno
import os

import pytest
import torch

from scoutattention import LLM, EngineConfig, SamplingParams, ScoutConfig
from scoutattention.engine.calibrate import calibrate
from scoutattention.engine.engine import Engine
from scoutattention.engine.scheduler import Sequence
from scoutattention.engine.teacher_forcing import teacher_forced
from scoutattention.errors import CapacityError, ConfigError, ModelFileError, UnsupportedModelError
from scoutattention.kernels.reference_stored import expand
from scoutattention.models.decoder import Decoder
from scoutattention.models.formats.gguf_file import open_gguf
from scoutattention.models.formats.safetensors import Checkpoint
from scoutattention.models.loader import load, read_weights
from scoutattention.runtime.memory import CPU, Arena
from scoutattention.runtime.ranks import ALONE, Alone
from scoutattention.runtime.stored import StoredMatrix

from ...engine.test_calibrate import TOKENS, quiet
from ...runtime.test_ranks import on_ranks
from ...tiny import save
from .. import families
from ..dense import prompt_logits
from .gguf_files import mixed, rounded, write

PROMPT = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(2)).tolist()
LLAMA3 = families.LLAMA3 | {"original_max_position_embeddings": 8192}
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama-tied", {}),
    "llama-llama3": ("llama-llama3", {"rope_parameters": LLAMA3}),
    "llama-bias": ("llama-bias", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
ANSWER = SamplingParams(max_tokens=12, ignore_eos=True)


def matrices(decoder):
    for layer in decoder.weights.layers:
        yield from (layer.qkv, layer.output, layer.gate_up, layer.down)
    yield from (decoder.weights.embedding, decoder.weights.head)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", families.make("llama"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_files_model_is_the_model(name, dtype, tmp_path):
    family, changes = MODELS[name]
    model = families.make(family, **changes)
    kinds = mixed(model)
    loaded = load(str(write(tmp_path / "tiny.gguf", model, kinds=kinds)), dtype)
    assert all(isinstance(matrix, StoredMatrix) for matrix in matrices(loaded.decoder))
    with torch.no_grad():
        expected = rounded(model, kinds)(torch.tensor([PROMPT])).logits[0]
    atol = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.03}[dtype]
    torch.testing.assert_close(prompt_logits(loaded.decoder, PROMPT).float(), expected, atol=atol, rtol=0)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("ab a1")) == "ab a1"
    assert loaded.tokenizer.eos_token_ids == {255}


@pytest.mark.parametrize("name", MODELS)
def test_expanded_weights_are_those_of_a_directory(name, tmp_path):
    family, changes = MODELS[name]
    model = families.make(family, **changes)
    kinds = mixed(model)
    path = str(write(tmp_path / "tiny.gguf", model, kinds=kinds))
    stored = load(path).decoder
    folder = save(rounded(model, kinds), tmp_path / "folder")
    ours, theirs = (
        load(path, in_place=False).decoder,
        Decoder(stored.config, read_weights(Checkpoint(folder), stored.config, CPU)),
    )
    assert ours.weights.files == ()
    for mine, whole in zip(matrices(ours), matrices(theirs), strict=True):
        assert torch.equal(mine, whole)
    for layer in range(3):
        assert torch.equal(stored.query_weight(layer), theirs.query_weight(layer))
        if theirs.weights.layers[layer].qkv_bias is not None:
            assert torch.equal(ours.weights.layers[layer].qkv_bias, theirs.weights.layers[layer].qkv_bias)
    assert stored.fingerprint == ours.fingerprint == theirs.fingerprint


def next_tokens(decoder, kernels):
    """Log-probabilities of the tokens after each of a text, by an engine with full attention."""
    settings = EngineConfig(max_num_seqs=1, kernels=kernels)
    engine = Engine(decoder, ScoutConfig(budget=None, block_size=8), settings)
    logits = [step for step, _ in teacher_forced(engine, TOKENS[:200], 40)]
    engine.close()
    return torch.stack(logits).log_softmax(-1)


@pytest.mark.parametrize("kernels", ["native", "plain"])
def test_the_next_tokens_are_as_likely_as_with_expanded_weights(kernels, tmp_path):
    model = families.make("llama")
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    ours, theirs = (next_tokens(load(path, in_place=in_place).decoder, kernels) for in_place in (True, False))
    assert float((theirs.exp() * (theirs - ours)).sum(-1).mean()) < 1e-4


@pytest.mark.parametrize("kernels", ["native", "plain"])
def test_an_engine_answers_from_blocks_as_from_numbers(kernels, tmp_path):
    model = families.make("llama")
    kinds = mixed(model)
    path = write(tmp_path / "tiny.gguf", model, kinds=kinds)
    scout = ScoutConfig(budget=24, block_size=8)
    settings = {"scout": scout, "kernels": kernels, "device_memory": "slots", "max_num_seqs": 3}
    answers = []
    for one in (path, save(rounded(model, kinds), tmp_path / "folder")):
        with LLM(str(one), **settings) as llm:
            answers.append([out.token_ids for out in llm.generate([PROMPT, PROMPT[:7], PROMPT * 3], ANSWER)])
    assert answers[0] == answers[1]


def test_ranks_have_their_rows_and_columns(tmp_path):
    model = families.make("llama", intermediate_size=128)
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    whole, parts = load(path).decoder, [load(path, ranks=Alone(index, 2)).decoder for index in range(2)]
    assert {part.fingerprint for part in parts} == {whole.fingerprint}
    for layer in range(3):
        for name, axis in (("output", 1), ("down", 1)):
            mine = [numbers(getattr(part.weights.layers[layer], name)) for part in parts]
            assert torch.equal(torch.cat(mine, axis), numbers(getattr(whole.weights.layers[layer], name)))
        gates = torch.stack([numbers(part.weights.layers[layer].gate_up).view(2, 64, 64) for part in parts], 1)
        assert torch.equal(gates.flatten(0, 2), numbers(whole.weights.layers[layer].gate_up))
        q, k, v = numbers(whole.weights.layers[layer].qkv).split([64, 32, 32])
        for index, part in enumerate(parts):
            expected = torch.cat([rows.chunk(2)[index] for rows in (q, k, v)])
            assert torch.equal(numbers(part.weights.layers[layer].qkv), expected)


def numbers(matrix):
    return expand(matrix, slice(None), torch.float32)


def test_ranks_answer_as_one(tmp_path):
    model = families.make("llama", intermediate_size=128)
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    scout = ScoutConfig(budget=None, block_size=8)

    def answer(ranks):
        loaded = load(path, ranks=ranks)
        engine = Engine(loaded.decoder, scout, EngineConfig(tensor_parallel_size=ranks.size, max_num_seqs=1))
        sequence = Sequence(0, PROMPT, ANSWER, 60, loaded.tokenizer)
        engine.add(sequence)
        while engine.busy:
            engine.step()
        engine.close()
        return sequence.output_ids

    expected = answer(ALONE)
    assert on_ranks(2, tmp_path, answer) == [expected, expected]


def test_a_calibration_is_the_one_of_expanded_weights(tmp_path):
    model = families.make("llama")
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    fits = [
        calibrate(load(path, in_place=in_place).decoder, TOKENS, [1], 8, quiet)[0].corrections
        for in_place in (True, False)
    ]
    for stored, expanded in zip(*fits, strict=True):
        torch.testing.assert_close(stored, expanded, atol=1e-3, rtol=1e-3)


def test_ranks_that_would_cut_blocks_are_refused(tmp_path):
    model = families.make("llama")
    path = write(tmp_path / "tiny.gguf", model, kinds={"blk.1.ffn_down.weight": "Q4_0"})
    with pytest.raises(
        ConfigError, match=r"2 ranks cannot share .*layers\.1\.mlp\.down_proj.* cut blocks of 32 .*less"
    ):
        load(str(path), ranks=Alone(1, 2))


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = families.make("llama")
    (tmp_path / "models").mkdir()
    path = write(tmp_path / "models" / "tiny.gguf", model, kinds=mixed(model))
    before = path.read_bytes()
    with LLM(str(path)) as llm:
        llm.generate(PROMPT, ANSWER)
    assert [file.name for file in tmp_path.rglob("*")] == ["models", "tiny.gguf"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 5000), lambda path: os.utime(path, (1, 1))])
def test_a_file_that_changes_while_it_is_in_use_ends_its_answers(change, tmp_path):
    path = write(tmp_path / "tiny.gguf", families.make("llama"))
    with LLM(str(path)) as llm:
        llm.generate(PROMPT, ANSWER)
        change(path)
        with pytest.raises(ModelFileError, match=r"tiny\.gguf was changed while its model was in use: load it again"):
            llm.generate(PROMPT, ANSWER)


def test_a_file_that_is_replaced_stays_the_model(tmp_path):
    path = write(tmp_path / "tiny.gguf", families.make("llama"))
    with LLM(str(path)) as llm:
        before = llm.generate(PROMPT, ANSWER)[0].token_ids
        os.replace(write(tmp_path / "other.gguf", families.make("llama", rms_norm_eps=0.5)), path)
        assert llm.generate(PROMPT, ANSWER)[0].token_ids == before


def test_kernels_of_a_gpu_read_blocks(tmp_path):
    model = families.make("llama")
    path = str(write(tmp_path / "tiny.gguf", model, kinds=mixed(model)))
    answers = []
    for kernels in ("triton", "plain"):
        with LLM(path, kernels=kernels, scout=ScoutConfig(budget=None, block_size=8)) as llm:
            answers.append(llm.generate(PROMPT[:10], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids)
    assert answers[0] == answers[1]


def test_a_gpu_has_blocks_that_its_kernels_read_and_numbers_of_others(tmp_path, monkeypatch):
    model = families.make("llama", hidden_size=256, intermediate_size=256)
    layer = {"attn_q": "Q4_0", "attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q4_1", "ffn_gate": "F16"}
    kinds = {f"blk.1.{name}.weight": kind for name, kind in layer.items()}
    path = str(write(tmp_path / "tiny.gguf", model, kinds=kinds))
    there = load(path).decoder.weights
    monkeypatch.setattr(Arena, "on_gpu", True)
    weights = load(path).decoder.weights
    assert (len(there.files), weights.files) == (1, ())
    assert [part.kind.name for part in weights.layers[1].qkv.parts] == ["Q4_0", "Q8_0"]
    assert [part.kind.name for part in weights.layers[1].output.parts] == ["Q4_1"]
    assert isinstance(weights.layers[1].gate_up, torch.Tensor)
    assert isinstance(weights.embedding, torch.Tensor)
    for name in ("qkv", "output", "gate_up", "down"):
        ours, theirs = getattr(weights.layers[1], name), getattr(there.layers[1], name)
        assert torch.equal(ours if isinstance(ours, torch.Tensor) else numbers(ours), numbers(theirs))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_gpu_answers_from_blocks_as_from_numbers(graphs, tmp_path):
    model = families.make("llama")
    kinds = mixed(model)
    answers = []
    for one in (write(tmp_path / "tiny.gguf", model, kinds=kinds), save(rounded(model, kinds), tmp_path / "folder")):
        with LLM(str(one), device="cuda", graphs=graphs, scout=ScoutConfig(budget=24, block_size=8)) as llm:
            answers.append([out.token_ids for out in llm.generate([PROMPT, PROMPT[:7], PROMPT * 3], ANSWER)])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kept", [0, 3, 24, 200, 3000, 9000, -1])
def test_a_truncated_file_is_named(kept, file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelFileError, match=r"cut\.gguf is truncated"):
        load(str(cut))


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "text.gguf").write_text("this is no model at all, but it is long enough to be read")
    with pytest.raises(ModelFileError, match=r"text\.gguf is truncated or not a GGUF file"):
        load(str(tmp_path / "text.gguf"))


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
def test_what_is_not_supported_is_named(fields, error, named, tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"), **fields)
    with pytest.raises(error, match=named):
        load(str(file))


def test_linear_scaling_is_carried_over(tmp_path):
    fields = {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": 4.0}
    file = write(tmp_path / "tiny.gguf", families.make("llama"), **fields)
    rope = load(str(file)).decoder.config.rope
    assert (rope.kind, rope.factor) == ("linear", 4.0)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("place", ["matrix", "norm", "bias"])
def test_weights_that_are_not_finite_are_named(value, place, tmp_path):
    model = families.make("qwen2")
    layer = model.model.layers[1]
    weight, name = {
        "matrix": (layer.mlp.up_proj.weight, "ffn_up.weight"),
        "norm": (layer.input_layernorm.weight, "attn_norm.weight"),
        "bias": (layer.self_attn.k_proj.bias, "attn_k.bias"),
    }[place]
    with torch.no_grad():
        weight.flatten()[37 if place == "matrix" else 3] = value
    file = write(tmp_path / "tiny.gguf", model)
    with pytest.raises(ModelFileError, match=rf"tensor blk\.1\.{name} has numbers that are infinite or not numbers"):
        load(str(file))


def test_scales_that_are_not_finite_are_named(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama"), kinds={"blk.1.attn_q.weight": "Q8_0"})
    data = bytearray(file.read_bytes())
    stored = open_gguf(file).tensors["blk.1.attn_q.weight"].data.numpy().tobytes()
    place = data.index(stored)
    data[place : place + 2] = b"\x00\x7e"  # a float16 that is not a number
    file.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"blk\.1\.attn_q\.weight has numbers that are infinite"):
        load(str(file))


def test_numbers_beyond_float16_are_named_where_they_are_expanded(tmp_path):
    model = families.make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj\.weight has the number 100000"):
        load(str(write(tmp_path / "tiny.gguf", model)), "float16", in_place=False)


def test_tokens_that_end_an_answer_are_declared_or_known_by_name(tmp_path):
    fields = {
        "tokenizer.ggml.eot_token_id": 250,
        "tokenizer.ggml.eom_token_id": 251,
        "tokenizer.ggml.fim_sep_token_id": 252,
    }
    file = write(tmp_path / "tiny.gguf", families.make("llama"), names={249: "<|im_end|>"}, **fields)
    assert load(str(file)).tokenizer.eos_token_ids == {249, 250, 251, 252, 255}


def test_the_length_of_a_context_takes_no_memory(tmp_path):
    file = write(tmp_path / "tiny.gguf", families.make("llama", max_position_embeddings=2**31))
    llm = LLM(str(file), host_memory="4MiB", max_num_seqs=2)
    store, plan = llm.engine.store, llm.engine.plan
    assert plan.max_len == 2**31
    assert store.pages.table.shape == (2, plan.pages)
    longest = plan.pages * plan.block_size // 2
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    assert [len(output.token_ids) for output in llm.generate([[1] * (longest - 8)] * 2, params)] == [3, 3]
    with pytest.raises(CapacityError):
        llm.generate([1] * (2 * longest + 8), params)
    llm.close()


def test_a_lack_of_address_space_is_named(file, monkeypatch):
    def short(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("scoutattention.runtime.stored_file.mmap.mmap", short)
    with pytest.raises(CapacityError, match=r"refused memory for the [\d.]+ KiB of .*tiny\.gguf"):
        load(str(file))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tiny.gguf").mkdir()
    with pytest.raises(ModelFileError, match=r"tiny\.gguf cannot be read: .*directory"):
        open_gguf(tmp_path / "tiny.gguf")
