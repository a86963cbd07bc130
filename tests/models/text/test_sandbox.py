"""Templates with bad intent: each ends soon, with a sentence, and without much memory."""

# ruff: noqa: E501  (templates have long lines)

import resource
import time

import pytest

from scoutattention.errors import ModelFileError, PromptError
from scoutattention.models.templates.chat import ChatTemplate

HI = [{"role": "user", "content": "hi", "n": 7}]
GROW = "{% set ns = namespace(x='a') %}{% for i in range(100) %}{% set ns.x = %s %}{% endfor %}{{ ns.x }}"
BOMBS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that print": "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    "loops whose filter never holds": "{% for a in range(9999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a billion rounds": "{% for i in range(10**9) %}x{% endfor %}",
    "a recursive loop": "{% for m in [[1]] recursive %}{{ loop([m, m]) }}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a long text, of constants": "{{ 'a' * 10**9 }}",
    "a long text": "{{ messages[0].content * 10**9 }}",
    "a long list": "{{ (messages * 10**9) | length }}",
    "100 MB in small pieces": "{% for i in range(99999) %}{{ 'a' * 2000 }}{% endfor %}",
    "a text that doubles": GROW.replace("%s", "ns.x + ns.x"),
    "a text that doubles by ~": GROW.replace("%s", "ns.x ~ ns.x"),
    "a text that doubles in a block": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 40 + "{{ x }}",
    "a list that doubles": GROW.replace("%s", "[ns.x, ns.x]"),
    "a mapping that doubles": GROW.replace("%s", "{'a': ns.x, 'b': ns.x}"),
    "dict": GROW.replace("%s", "dict(a=ns.x, b=ns.x)"),
    "lists that are equal": "{% set a = namespace(x=1, y=1) %}{% for i in range(60) %}{% set a.x = [a.x, a.x] %}{% set a.y = [a.y, a.y] %}{% endfor %}{{ a.x == a.y }}",
    "a list that doubles by map": GROW.replace("%s", "range(2)|map(attribute='q', default=ns.x)|list"),
    "an exponent": "{{ 9 ** (9 ** 9) }}",
    "an exponent of a variable": "{{ messages[0].n ** (10 ** 9) }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "a long number as text": "{{ messages[0].n ** 5500 }}",
    "a width of %": "{{ '%1000000000d' % 1 }}",
    "a width of % that is a value": "{{ '%*d' % (10**9, 1) }}",
    "a width of format": "{{ '{:1000000000}'.format(1) }}",
    "a width of format that is a value": "{{ '{:{}}'.format(1, 10**9) }}",
    "many values of format": "{{ ('{0}' * 100000).format('a' * 1000000) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "the filter format": "{{ '%1000000000d' | format(1) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent": "{{ ('a\n' * 100000) | indent(100000) }}",
    "indent by a text": "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace of a method": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ range(99999) | join('a' * 1000000) }}",
    "join of a method": "{{ ('a' * 1000000).join(['b'] * 99999) }}",
    "join of one text": "{{ ([('a' * 1000000)] * 99999) | join }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "tojson by spaces": "{{ [1, 2] | tojson(indent=10**9) }}",
    "tojson by commas": "{{ ([1] * 99999) | tojson(separators=('a' * 100000, ':')) }}",
    "round": "{{ 1.5 | round(10**9) }}",
    "lists of texts": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + ['a' * 1000000] %}{% endfor %}",
    "slices": "{% set s = 'a' * 1000000 %}{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [s[i:]] %}{% endfor %}",
    "a text as a list": "{% for i in range(999) %}{{ ('a' * 4000000) | list | length }}{% endfor %}",
    "a text in groups": "{{ ('a' * 4000000) | groupby('b') }}",
    "a text by attribute": "{{ ('a' * 4000000) | map(attribute='upper') | list }}",
    "a text in parts": "{{ ('a' * 4000000).split('a') | length }}",
    "a text joined": "{{ ' '.join('a' * 4000000) | length }}",
    "a text of texts": "{{ ('a' * 4000000) | select('string') | list | length }}",
    "letters": "{% for c in 'a' * 4000000 %}{% endfor %}",
    "lorem ipsum": "{{ lipsum(10**6) }}",
    "dates": "{{ strftime_now('%1000000000Y') }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "translate": "{{ 'aaa'.translate({97: 'b' * 10}) }}",
    "a list that sorts itself": "{% for i in range(99999) %}{{ range(99999) | sort | first }}{% endfor %}",
    "depth": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
}
RAISES = {
    "TypeError": "{{ messages[0].content + 1 }}",
    "UndefinedError": "{{ nothing.at.all }}",
    "tojson of nothing": "{{ nothing | tojson }}",
    "ZeroDivisionError": "{{ 1 // 0 }}",
    "OverflowError": "{{ 2.0 ** 10000 }}",
    "KeyError": "{{ '{a}'.format() }}",
    "IndexError": "{{ '{} {}'.format(1) }}",
    "ValueError": "{{ 'a'.index('b') }}",
    "an include": "{% include 'other' %}",
    "an attribute of Python": "{{ messages.__class__.__mro__ }}",
    "a change of the messages": "{{ messages.append(1) }}",
    "a name of a namespace": "{% set ns = namespace(__class__=1) %}",
    "raise_exception": "{{ raise_exception('roles\nmust alternate') }}",
    "raise_exception of nothing": "{{ raise_exception() }}",
}


def ends(template):
    """What it says, in how many seconds of the CPU, and how many more bytes the process needed at most."""
    began, size = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((PromptError, ModelFileError)) as raised:
        ChatTemplate(template, {}, "a file").render(HI)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size) * 1024
    return str(raised.value), time.thread_time() - began, grown


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_in_a_second_with_a_sentence(bomb):
    said, seconds, grown = ends(BOMBS[bomb])
    assert "\n" not in said
    assert len(said) < 500
    assert seconds < 2  # 0.5 s are allowed, and one operation may be under way
    assert grown < 400e6


@pytest.mark.parametrize("what", RAISES)
def test_whatever_a_template_raises_is_one_sentence(what):
    said, _, _ = ends(RAISES[what])
    assert said.startswith("the model's chat template ")
    assert "\n" not in said


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ 'a' | urlize }}", "{{ " + "(" * 5000, "{% if 1 %}" * 500, "{{ 9" + "9" * 5000],
)
def test_what_does_not_compile_is_named(source):
    template = ChatTemplate(source, {}, "a file")
    with pytest.raises(PromptError, match=r"^the chat template in a file does not compile: "):
        template.render(HI)


def test_a_template_that_is_too_long_is_refused():
    with pytest.raises(ModelFileError, match="the chat template in a file has 2097152 characters"):
        ChatTemplate("a" * 2**21, {}, "a file")


def test_a_longer_conversation_may_take_longer():
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content | trim }}{{ m.content ~ '' }}{% endfor %}", {}, "a file"
    )
    assert len(template.render([{"role": "user", "content": "x" * 1_000_000}] * 4)) == 8_000_000


def test_thousands_of_messages_are_rendered():
    loop = "{% for m in messages %}{{ (messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list) | length }},{% endfor %}"
    assert len(ChatTemplate(loop, {}, "a file").render(HI * 500).split(",")) == 501
