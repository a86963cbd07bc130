import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from scoutattention.errors import ModelFileError, PromptError
from scoutattention.models import text
from scoutattention.models.file_fields import read_json

from .backends import byte_backend, write
from .styles import STYLES

CHAT = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Grüße!\n  1 < 2"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
LOOP = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    [{{ message.role }}] {{ message.content | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}[assistant]{% endif %}
"""
JSON = "{{ messages | tojson }}|{{ messages[1] | tojson(indent=2, sort_keys=true) }}|{{ tools is none }}"
TRAINED = """{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}
    {% endfor %}{{ strftime_now('%Y') }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}"""


@pytest.fixture
def tokenizer(tmp_path):
    return text.Tokenizer.from_directory(write(tmp_path))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return text.Tokenizer.from_directory(write(tmp_path_factory.mktemp("text")))


def test_special_tokens_are_added_unless_told_not_to(tokenizer):
    plain = tokenizer.encode("hé", add_special_tokens=False)
    assert len(plain) == 3
    assert tokenizer.encode("hé") == [256, *plain]


@given(st.text())
def test_decoding_undoes_encoding(shared, words):
    assert shared.decode(shared.encode(words)) == words


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path):
    backend = byte_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    write(tmp_path)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(text.Tokenizer.from_directory(tmp_path).encode("123456")) == 7
    assert len(text.Tokenizer.from_directory(tmp_path).encode("1")) == 2


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), min_size=1))
def test_a_stream_gives_whole_characters_as_soon_as_it_can(shared, words):
    ids, stream, given_out = shared.encode(words), shared.stream(), ""
    for count, token_id in enumerate(ids, start=1):
        given_out += stream.step(token_id)
        assert given_out == shared.decode(ids[:count]).rstrip("\ufffd")
    assert (given_out, stream.flush()) == (words, "")


@given(st.lists(st.integers(0, 257)))
def test_a_flushed_stream_has_given_all_of_any_tokens(shared, ids):
    stream = shared.stream()
    pieces = [stream.step(token_id) for token_id in ids]
    assert "".join(pieces) + stream.flush() == shared.decode(ids)
    assert stream.flush() == ""


def test_a_part_of_a_character_waits(shared):
    stream, (_, *ids) = shared.stream(), shared.encode("é")
    assert [stream.step(ids[0]), stream.flush(), stream.flush()] == ["", "\ufffd", ""]


@pytest.mark.parametrize("template", [LOOP, JSON, TRAINED], ids=["loop", "json", "trained"])
@pytest.mark.parametrize("home", ["tokenizer_config.json", "chat_template.jinja", "named"])
def test_chat_is_that_of_transformers(template, home, tmp_path):
    if home == "chat_template.jinja":
        write(tmp_path, "the other place")
        (tmp_path / home).write_text(template)
    else:
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": template}]
        write(tmp_path, named if home == "named" else template)
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = template
    expected = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    ours = text.Tokenizer.from_directory(tmp_path)
    assert ours.has_chat_template
    assert ours.chat(CHAT) == expected


def test_a_template_can_refuse(tmp_path):
    write(tmp_path, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="roles must alternate"):
        text.Tokenizer.from_directory(tmp_path).chat(CHAT)


def test_a_template_has_no_way_out_of_its_sandbox(tmp_path):
    write(tmp_path, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(PromptError, match="unsafe"):
        text.Tokenizer.from_directory(tmp_path).chat(CHAT)


def test_a_template_that_does_not_compile_is_named_where_it_is_needed(tmp_path):
    write(tmp_path, "{% for %}")
    broken = text.Tokenizer.from_directory(tmp_path)
    assert broken.has_chat_template
    assert broken.decode(broken.encode("hi")) == "hi"
    with pytest.raises(
        PromptError, match=r"tokenizer_config\.json does not compile: .*: give a plain prompt \(--no-chat\)"
    ):
        broken.chat(CHAT)


def test_without_a_template_there_is_no_chat(tokenizer):
    assert not tokenizer.has_chat_template
    with pytest.raises(PromptError, match="no chat template"):
        tokenizer.chat(CHAT)


def test_ends_are_gathered_from_every_file(tmp_path):
    write(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert text.Tokenizer.from_directory(tmp_path).eos_token_ids == {7, 8, 9, 257}


def test_only_the_tokenizer_itself_is_needed(tmp_path):
    byte_backend().save(str(tmp_path / "tokenizer.json"))
    alone = text.Tokenizer.from_directory(tmp_path)
    assert (alone.eos_token_ids, alone.has_chat_template) == (frozenset(), False)


def test_json_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelFileError, match=r"tokenizer\.json is not a readable tokenizer"):
        text.Tokenizer.from_directory(tmp_path)


def test_read_json_names_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match=r"has no absent\.json"):
        read_json(tmp_path / "absent.json")


def test_a_stop_text_may_be_a_special_token(shared):
    assert shared.stop_ids(["</s>", "a", "<x>", "</s"]) == {257}
    assert shared.stop_ids(()) == frozenset()


def test_half_a_character_of_utf16_is_refused(shared):
    with pytest.raises(PromptError, match=r"the text has .* at character 1, which is no text"):
        shared.encode("a\ud800")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "<é>"}}}
CONVERSATIONS = {
    "one": [{"role": "user", "content": " Hi & <bye> "}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "turns": CHAT,
    "tools": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "name": "add"},
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\n2"},
        {"role": "user", "content": "Thanks"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
    "reasoning": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "So.", "thinking": "hm"},
        {"role": "user", "content": "How?"},
        {"role": "assistant", "content": "Thus.", "reasoning": "oh", "score": 1.5},
    ],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_known_styles_are_rendered_as_by_transformers(style, name, tmp_path):
    """Where transformers fails, there is a sentence."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=byte_backend(), bos_token="<s>", eos_token="</s>")
    theirs.chat_template = STYLES[style]
    ours = text.Tokenizer.from_directory(write(tmp_path, STYLES[style]))
    try:
        expected = theirs.apply_chat_template(CONVERSATIONS[name], tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError):
        with pytest.raises(PromptError):
            ours.chat(CONVERSATIONS[name])
    else:
        assert ours.chat(CONVERSATIONS[name]) == expected


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("hi", "prompt 2 is a str"),
        ({"role": "user", "content": "hi"}, "prompt 2 is a dict"),
        (None, "prompt 2 is a NoneType"),
        ([], "prompt 2 has no messages"),
        (["hi"], "message 1 of prompt 2 is of type str"),
        ([{"role": "user", "content": "hi"}, {"content": "hi"}], "message 2 of prompt 2 has role=None, which is no"),
        ([{"role": 3, "content": "hi"}], "has role=3, which is no text"),
        ([{"role": "user"}], "has content=None, which is neither a text nor a list of texts"),
        ([{"role": "user", "content": 3}], "has content=3"),
        ([{"role": "user", "content": "hi", "x": ["a\ud800"]}], r"has '\\ud800' at character 1, which is no text"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a part of type 'image'"),
        ([{"role": "user", "content": ["hi"]}], "a part of type 'str'"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "a part of type 'text' .* with text=None, which is no text",
        ),
        ([{"role": "user", "content": "hi", "x": object()}], "holds a object"),
        ([{"role": "user", "content": "hi", "x": {1: 2}}], "holds a dict"),
        ([{"role": "user", "content": "hi", "x": b""}], "holds a bytes"),
    ],
)
def test_messages_are_checked_at_the_door(messages, said, tmp_path):
    write(tmp_path, "{{ messages }}")
    with pytest.raises(PromptError, match=said):
        text.Tokenizer.from_directory(tmp_path).chat(messages, "prompt 2")


def test_messages_that_hold_themselves_are_refused(tmp_path):
    write(tmp_path, "{{ messages }}")
    message = {"role": "user", "content": "hi"}
    message["x"] = message
    with pytest.raises(PromptError, match="nested too deeply"):
        text.Tokenizer.from_directory(tmp_path).chat([message])


def test_a_template_sees_plain_data_only(tmp_path):
    class Loud(str):
        def shout(self):
            return "!"

    write(tmp_path, "{{ messages[0].content.shout() }}")
    with pytest.raises(PromptError, match="shout"):
        text.Tokenizer.from_directory(tmp_path).chat([{"role": "user", "content": Loud("hi")}])
