"""What is no prompt, or no request, is refused before anything runs, and says which it is."""

import json

import numpy as np
import pytest
import torch

from scoutattention import LLM, ConfigError, EngineConfig, PromptError, SamplingParams, ScoutConfig

from ..test_generate import PROMPT

FEW = SamplingParams(max_tokens=4, ignore_eos=True)
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tiny_models, tmp_path_factory):
    """A model whose tokenizer has more tokens than there are rows of the embedding, and a chat template."""
    source, path = tiny_models["llama"], tmp_path_factory.mktemp("chat")
    for file in source.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocab = json.loads((path / "config.json").read_text())["vocab_size"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = range(len(tokenizer["model"]["vocab"]), vocab + 1)
    tokenizer["added_tokens"] = [{"id": number, "content": f"<|{number}|>", **flags} for number in names]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with LLM(str(path), scout=ScoutConfig(budget=None, block_size=8)) as made:
        yield made


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "the prompt is of type NoneType: give a text"),
        (b"abc", "the prompt is bytes: decode them"),
        (5, "the prompt is of type int"),
        ([b"abc"], "the prompt is bytes"),
        ([[1, 2], None], "prompt 2 of 2 is of type NoneType"),
        ([[1, 2], []], "prompt 2 of 2 is empty"),
        (["a", ""], "prompt 2 of 2 is empty"),
        ([True, False], "has True at place 0, which is no token id"),
        ([1, 2.0], r"has 2\.0 at place 1, which is no token id"),
        ([np.float32(1)], "which is no token id"),
        ([[1, "a"]], "has 'a' at place 1, which is no token id"),
        ([1, "a"], "the prompts mix prompts and token ids"),
        ([1, [2]], "the prompts mix prompts and token ids"),
        ([[1, 2], [1, -1], [3]], r"prompt 2 of 3 has token id -1, .* vocabulary has \d+ tokens"),
        ([2**70], "has token id 1180591620717411303424"),
        ("a\ud800b", "at character 1, which is no text"),
        ({"role": "user", "content": "hi"}, "is a single mapping: give messages as a list"),
        ([{"role": "user"}], "message 1 of the prompt has content=None, which is neither"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image' in its content: only 'text'"),
        ([{"role": "user", "content": "a"}, "b"], "the prompts mix messages and prompts"),
    ],
)
def test_what_is_no_prompt_is_refused(llm, prompts, message):
    before = llm.stats()
    with pytest.raises(PromptError, match=message):
        llm.generate(prompts, FEW)
    assert llm.stats() == before
    assert not llm.engine.busy


def test_a_token_of_the_text_without_an_embedding_is_refused(llm):
    vocab = llm.engine.runner.decoder.shape.vocab_size
    with pytest.raises(PromptError, match=rf"prompt 2 of 2 has token id {vocab}, .* has {vocab} tokens, 0 to"):
        llm.generate(["a", f"a <|{vocab}|> b"], FEW)
    assert len(llm.generate("a", FEW)[0].token_ids) == 4


@pytest.mark.parametrize(
    "prompts",
    [PROMPT, tuple(PROMPT), iter(PROMPT), np.array(PROMPT), torch.tensor(PROMPT), [np.int32(i) for i in PROMPT]],
    ids=["list", "tuple", "iterator", "array", "tensor", "numbers"],
)
def test_token_ids_may_be_of_any_kind(llm, prompts):
    assert [out.token_ids for out in llm.generate(prompts, FEW)] == [llm.generate([PROMPT], FEW)[0].token_ids]


@pytest.mark.parametrize("kind", [tuple, iter, lambda prompts: (prompt for prompt in prompts)])
def test_prompts_may_be_of_any_kind(llm, kind):
    expected = [llm.generate(prompt, FEW)[0].text for prompt in ("abc", "de")]
    assert [out.text for out in llm.generate(kind(["abc", "de"]), FEW)] == expected
    assert [len(out.token_ids) for out in llm.generate(kind([range(3), [1]]), FEW)] == [4, 4]
    assert llm.generate(kind([]), FEW) == []


def test_a_conversation_is_rendered_by_the_template(llm):
    talk = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    expected = llm.generate("system: be kind\nuser: hi\n>", FEW)[0]
    assert llm.generate(talk, FEW)[0].token_ids == expected.token_ids
    parts = [talk[0], {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert llm.tokenizer.chat(parts) == "system: be kind\nuser: [{'type': 'text', 'text': 'hi'}]\n>"
    assert llm.generate(parts, FEW)[0].prompt_tokens == len(llm.tokenizer.chat(parts))
    both = llm.generate([talk, talk[1:]], FEW)
    assert [out.prompt_tokens for out in both] == [expected.prompt_tokens, len("user: hi\n>")]
    assert "".join(chunk.text for chunk in llm.stream(talk, FEW)) == expected.text
    called = [*talk, {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}]
    assert llm.generate(called, FEW)[0].prompt_tokens == len(llm.tokenizer.chat(called))


def test_a_conversation_needs_a_template(tiny_models):
    with LLM(str(tiny_models["llama"])) as plain, pytest.raises(PromptError, match="has no chat template: give it a"):
        plain.generate([{"role": "user", "content": "hi"}], FEW)


def test_each_prompt_may_have_its_own_params(llm):
    params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (3, 5)]
    assert [len(out.token_ids) for out in llm.generate([[1], [2]], params)] == [3, 5]
    for wrong, message in (
        (params[:1], "1 sampling params for 2 prompts"),
        ({"max_tokens": 3}, "params has a value of type dict: give SamplingParams"),
        ([params[0], 3], "params has a value of type int"),
    ):
        with pytest.raises(ConfigError, match=message):
            llm.generate([[1], [2]], wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": True}, "max_tokens=True is of type bool: give a whole number"),
        ({"max_tokens": 2.0}, r"max_tokens=2\.0 is of type float"),
        ({"max_tokens": -1}, "below the least value 0"),
        ({"temperature": 1e-40}, "temperature=1e-40 is beyond what float32 holds"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"temperature": 10**400}, "temperature=inf is not a finite number"),
        ({"temperature": -1}, "below the least value 0"),
        ({"temperature": "1"}, "temperature='1' is of type str: give a number"),
        ({"top_p": 1e-45}, "top_p=1e-45 is beyond"),
        ({"seed": 2**80}, "seed=1208925819614629174706176 is not from -9223372036854775808 to 18446744073709551615"),
        ({"ignore_eos": 1}, "ignore_eos=1 is of type int: give True or False"),
        ({"stop": b"x"}, "stop=b'x' is of type bytes: give a text"),
        ({"stop": 3}, "stop=3 is of type int: give a text"),
        ({"stop": ["a", 3]}, "stop has 3, which is of type int"),
        ({"stop": ""}, "stop has an empty text"),
        ({"n": 2}, "n=2 answers of temperature 0 would be the same"),
        ({"n": 10**9, "temperature": 1.0}, "n=1000000000 is above the largest value 10000"),
        ({"min_p": 1.5}, r"min_p=1\.5 is above the largest value 1"),
    ],
)
def test_odd_values_of_sampling_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**values)


def test_a_prompt_that_is_too_long_says_what_makes_room(llm, tiny_models):
    own = llm.engine.runner.decoder.shape.max_positions
    with pytest.raises(PromptError, match=f"max_model_len={own} .*as this is the model's own limit, take a model with"):
        llm.generate([1] * own, FEW)
    refused = pytest.raises(PromptError, match=f"or raise max_model_len up to the model's own limit, {own}$")
    with LLM(str(tiny_models["llama"]), max_model_len=16) as short, refused:
        short.generate([1] * 16, FEW)


def test_rotary_settings_as_text_are_refused():
    with pytest.raises(ConfigError, match="is of type str: give a mapping or None"):
        EngineConfig(rope_scaling="{}")


def test_a_stop_text_is_one_stop_string():
    for given, kept in (("END d", ("END d",)), (None, ()), (["a", "b"], ("a", "b")), (iter(["a"]), ("a",))):
        assert SamplingParams(stop=given).stops == kept
    assert hash(SamplingParams(stop=["a"])) == hash(SamplingParams(stop="a"))


def test_a_huge_number_of_tokens_is_as_many_as_there_is_room_for(llm):
    room = llm.engine.plan.max_len
    params = SamplingParams(max_tokens=np.int64(2**62), ignore_eos=True, seed=2**64 - 1, temperature=1e-37)
    prompt = [1] * (room - 5)
    assert len(llm.generate(prompt, params)[0].token_ids) == 5
