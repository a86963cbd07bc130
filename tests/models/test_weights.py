import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scoutattention import LLM, SamplingParams, ScoutConfig
from scoutattention.errors import ConfigError, ScoutError, UnsupportedModelError
from scoutattention.kernels.reference_stored import expand
from scoutattention.models.loader import load
from scoutattention.runtime.ranks import ALONE, Alone
from scoutattention.runtime.stored import StoredKind, StoredMatrix

from ..tiny import save
from . import families
from .dense import prompt_logits
from .formats import gguf_files
from .formats.quantised.checkpoints import write

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 250, 7]
ANSWER = SamplingParams(max_tokens=4, temperature=0)


@pytest.fixture
def folder(tmp_path):
    return save(families.make("qwen3"), tmp_path)


def matrices(decoder):
    layers = [
        matrix for layer in decoder.weights.layers for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)
    ]
    return [decoder.weights.embedding, decoder.weights.head, *layers]


@pytest.mark.parametrize(("weights", "bits", "step"), [("int8", 8.5, 1 / 254), ("int4", 5, 1 / 30)])
def test_every_matrix_is_rounded_to_the_nearest_code(weights, bits, step, folder):
    rounded, exact = load(str(folder), weights=weights).decoder, load(str(folder)).decoder
    for matrix, numbers in zip(matrices(rounded), matrices(exact), strict=True):
        assert isinstance(matrix, StoredMatrix)
        assert matrix.nbytes == numbers.numel() * bits / 8
        found = expand(matrix, slice(None), torch.float32).unflatten(1, (-1, 32))
        blocks = numbers.unflatten(1, (-1, 32))
        span = 2 * blocks.abs().amax(-1) if weights == "int8" else blocks.amax(-1) - blocks.amin(-1)
        rounding = 2**-10 * blocks.abs().amax(-1)  # of scales and least numbers
        assert ((found - blocks).abs().amax(-1) <= step * span + rounding).all()


def test_a_matrix_of_zeros_stays_so(folder, tmp_path):
    tensors = {name: tensor for name, tensor in families.make("qwen3").state_dict().items()}
    tensors["model.layers.0.mlp.down_proj.weight"][:, 32:64] = 0
    save_file(tensors, folder / "model.safetensors")
    for weights in ("int8", "int4"):
        down = load(str(folder), weights=weights).decoder.weights.layers[0].down
        assert not expand(down, slice(None), torch.float32)[:, 32:64].any()


def test_int8_changes_little(folder):
    true, found = (
        prompt_logits(load(str(folder), weights=w).decoder, TOKENS).log_softmax(-1) for w in ("auto", "int8")
    )
    assert (true.exp() * (true - found)).sum(-1).max() < 2e-3


def test_a_calibration_of_the_checkpoint_is_that_of_its_rounded_weights(folder):
    assert load(str(folder)).decoder.fingerprint == load(str(folder), weights="int4").decoder.fingerprint


def test_stored_prompts_are_those_of_the_rounded_weights(folder, tmp_path):
    options = {"prefix_cache_dir": str(tmp_path / "kept")}
    prompt = [number % 250 for number in range(100)]
    for weights, cached in (("auto", False), ("auto", True), ("int8", False), ("int8", True)):
        with LLM(str(folder), weights=weights, scout=ScoutConfig(block_size=8, budget=64), **options) as llm:
            assert bool(llm.generate([prompt], ANSWER)[0].cached_tokens) == cached


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_loading_takes_the_memory_of_the_result(weights, tmp_path):
    save(families.make("llama", hidden_size=1024, intermediate_size=2816, num_hidden_layers=8), tmp_path)
    done, most, before = threading.Event(), [0], own_memory()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], own_memory())

    watching = threading.Thread(target=watch)
    watching.start()
    decoder = load(str(tmp_path), weights=weights).decoder
    done.set()
    watching.join()
    size = sum(matrix.nbytes for matrix in matrices(decoder))
    assert most[0] - before < size + 40 * 2**20, "of some numbers at once, and of the last piece of the arena"


def own_memory():
    """Bytes of this process that no file holds."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_bf16_expands_what_is_quantised(tmp_path):
    write(tmp_path, "awq")
    decoder = load(str(tmp_path), weights="bf16").decoder
    assert {matrix.dtype for matrix in matrices(decoder)} == {torch.bfloat16}
    assert decoder.shape.dtype == "bfloat16"


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_ranks_have_their_part_of_the_blocks(weights, tmp_path):
    if weights == "auto":
        write(tmp_path, "gptq-zeros", "qwen2", sizes={"intermediate_size": 128})
    else:
        save(families.make("qwen2", intermediate_size=128), tmp_path)
    whole, *parts = (
        load(str(tmp_path), ranks=ranks, weights=weights).decoder for ranks in (ALONE, Alone(0, 2), Alone(1, 2))
    )
    for name, axis in {"output": 1, "down": 1}.items():
        matrix, mine = numbers_of(whole, name), [numbers_of(part, name) for part in parts]
        assert torch.equal(torch.cat(mine, axis), matrix)
    for part, numbers in enumerate(numbers_of(decoder, "gate_up") for decoder in parts):
        gate, up = numbers_of(whole, "gate_up").chunk(2)
        assert torch.equal(numbers, torch.cat((gate.chunk(2)[part], up.chunk(2)[part])))


def numbers_of(decoder, name):
    return expand(getattr(decoder.weights.layers[1], name), slice(None), torch.float32)


@pytest.mark.slow
def test_ranks_answer_as_one_with_rounded_weights(tmp_path):
    save(families.make("qwen2", intermediate_size=128), tmp_path)
    with LLM(str(tmp_path), weights="int8") as alone:
        expected = alone.generate([TOKENS], ANSWER)[0].token_ids
    with LLM(str(tmp_path), weights="int8", tensor_parallel_size=2, workers=1) as shared:
        assert shared.generate([TOKENS], ANSWER)[0].token_ids == expected


def test_8_bit_floats_may_be_rounded_to_blocks(tmp_path):
    numbers = write(tmp_path, "fp8-blocks")
    down = load(str(tmp_path), weights="int8").decoder.weights.layers[0].down
    exact = numbers["model.layers.0.mlp.down_proj.weight"]
    assert {part.kind for part in down.parts} == {StoredKind.Q8_0}
    assert (expand(down, slice(None), torch.float32) - exact).abs().max() <= exact.abs().max() / 250


def test_what_is_quantised_already_stays(tmp_path):
    write(tmp_path / "gptq", "gptq")
    with pytest.raises(ConfigError, match=r"weights='int8' .* in gptq: set weights \(--weights\) to 'auto'"):
        load(str(tmp_path / "gptq"), weights="int8")
    path = gguf_files.write(tmp_path / "tiny.gguf", families.make("llama"), kinds={"blk.0.ffn_down.weight": "Q8_0"})
    with pytest.raises(ConfigError, match=r"weights='int4' .* are in Q8_0: set weights"):
        load(str(path), weights="int4")


def test_a_gguf_file_of_numbers_is_rounded(tmp_path):
    path = gguf_files.write(tmp_path / "tiny.gguf", families.make("llama"))
    decoder = load(str(path), weights="int8").decoder
    kinds = {part.kind for matrix in matrices(decoder) for part in matrix.parts}
    assert kinds == {StoredKind.Q8_0}


def test_settings_that_do_not_go_together(folder):
    with pytest.raises(ConfigError, match=r"weights='bf16' with dtype='float32' .* set dtype to 'bfloat16'"):
        load(str(folder), weights="bf16", dtype="float32")


def test_rows_that_blocks_do_not_fill_are_named(tmp_path):
    save(families.make("llama", intermediate_size=80), tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"down_proj\.weight has 80 columns, which blocks of 32 do not"):
        load(str(tmp_path), weights="int8")


def test_numbers_that_are_not_finite_are_named(folder):
    tensors = dict(families.make("qwen3").state_dict())
    tensors["model.layers.0.mlp.down_proj.weight"][1, 40] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ScoutError, match=r"down_proj\.weight has numbers that are not finite"):
        load(str(folder), weights="int4")
