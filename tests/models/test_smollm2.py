"""The model that installs with pip, against transformers with the same weights."""

import gguf
import pytest
import torch
import transformers

from scoutattention.bench.common.transformers_model import make_model
from scoutattention.models.formats.gguf_config import tensor_name
from scoutattention.models.formats.gguf_file import open_gguf
from scoutattention.models.formats.gguf_tokenizer import tokenizer_files, tokenizer_of
from scoutattention.models.loader import load, open_files
from scoutattention.models.resolve import resolve

from .dense import prompt_logits

TEXT = """Température: \u221212.5°C on 2024-03-01, façade №7 …   four   spaces\t\ttabs
    def add(x, y=10_000):  # naïve
        return x ** 2 + y // 3 if x != 0x1F else "日本語 🙂👩‍👩‍👧 Ωmega"

\r\nI'm sure they'LL say "don't" 3.14159 times <|im_start|>user<|im_end|> ½ ² ٣ ok"""
CHAT = [{"role": "user", "content": "What is the capital of France?"}]
THREAD = [
    {"role": "system", "content": "Answer briefly."},
    *CHAT,
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Spain?\n"},
]


@pytest.fixture(scope="module")
def model():
    return load("smollm2")


@pytest.fixture(scope="module")
def expanded():
    """Its decoder with the weights as numbers."""
    return load("smollm2", in_place=False).decoder


@pytest.fixture(scope="module")
def tokenizer():
    metadata = open_gguf(resolve("smollm2")).metadata
    files = tokenizer_files(metadata)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(metadata), chat_template=files.template[0]
    )
    made.add_special_tokens({name: entry.content for name, entry in files.named.items()})
    return made


def test_logits_are_those_of_transformers(model, expanded):
    theirs = make_model(expanded, open_files(model.path).config)
    ids = model.tokenizer.encode(model.tokenizer.chat(CHAT), add_special_tokens=False)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(prompt_logits(model.decoder, ids), expected, atol=1e-4, rtol=0)


def test_it_knows_the_capital_of_france(model):
    ids = model.tokenizer.encode(model.tokenizer.chat(CHAT), add_special_tokens=False)
    prompt = len(ids)
    while ids[-1] not in model.tokenizer.eos_token_ids or len(ids) == prompt:
        ids.append(int(prompt_logits(model.decoder, ids)[-1].argmax()))
    assert model.tokenizer.decode(ids[prompt:]) == "The capital of France is Paris."


def test_tokens_are_those_of_transformers(model, tokenizer):
    ids = model.tokenizer.encode(TEXT)
    assert ids == tokenizer(TEXT).input_ids
    assert model.tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_digits_are_split_singly_and_spaces_before_them_stand_alone(model):
    ids = model.tokenizer.encode("in 2024")
    assert [model.tokenizer.decode([token]) for token in ids] == ["in", " ", "2", "0", "2", "4"]


@pytest.mark.parametrize("messages", [CHAT, THREAD])
def test_prompts_are_those_of_transformers(model, tokenizer, messages):
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.tokenizer.chat(messages) == expected


@pytest.mark.slow
def test_every_tensor_is_the_dequantised_one(model, expanded):
    stored = make_model(expanded, open_files(model.path).config).state_dict()
    heads = {"attn_q": 9, "attn_k": 3}
    for tensor in gguf.GGUFReader(model.path).tensors:
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        count = heads.get(tensor.name.split(".")[-2])
        if count:
            channels = expected.view(count, 64, -1)
            expected = torch.cat((channels[:, 0::2], channels[:, 1::2]), dim=1).flatten(0, 1)
        assert torch.equal(stored.pop(tensor_name(tensor.name)), expected), tensor.name
    assert list(stored) == ["lm_head.weight"]
