"""Chat templates: conversations to prompts, by the Jinja programs that models ship with.

The environment is the one transformers renders these templates in, so that they give the same text here. They run in
the limits of `sandbox`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.utils import Namespace
from typing_extensions import override

from ...errors import ModelFileError, PromptError
from .conversation import read_conversation, read_variables
from .sandbox import Budget, LimitedEnvironment, TemplateLimit, current, dictionary, limited

_LONGEST = 1 << 18
"""Characters of a template's source."""
_ANYTHING = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,  # RecursionError too
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a template can raise: every error that Python code raises by itself."""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks an answer for training; a prompt just contains it."""

    tags = {"generation"}  # noqa: RUF012  (declared so by Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplate:
    """A compiled chat template with the names of the model's special tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        """`special_tokens` are variables of the template, such as bos_token.

        where: the file that errors name.   A template that does not compile says so when it is rendered: the model
        itself runs without it.   Raises ModelFileError where the source is too long.
        """
        if len(source) > _LONGEST:
            raise ModelFileError(f"the chat template in {where} has {len(source)} characters, over {_LONGEST}")
        self._template: Template | None = None
        self._fault = ""
        variables: set[str] = set()
        environment = LimitedEnvironment([_Generation, loopcontrols])
        environment.filters["tojson"] = limited("tojson", _to_json)
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Namespace}
        token = current.set(Budget(0))  # expressions of constants are computed when they are compiled
        try:
            self._template = environment.from_string(source)
            variables = find_undeclared_variables(environment.parse(source))
        except _ANYTHING as error:
            self._fault = f"the chat template in {where} does not compile: {_said(error)}"
        finally:
            current.reset(token)
        self._special_tokens = dict(special_tokens)
        own = {"messages", "add_generation_prompt", *special_tokens, *environment.globals}
        self._variables = variables - own

    def reads(self, name: str) -> bool:
        """Whether the template has a variable of this name, which a caller may give."""
        return name in self._variables

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        name: str = "the prompt",
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for the model's next answer.

        messages, name: see `read_conversation`.   variables: more of the template's, of types that JSON has.
        Raises PromptError, also where the template refuses the messages.
        """
        given = {"tools": None, "documents": None, **read_variables(variables or {})}
        given |= {"messages": read_conversation(messages, name), "add_generation_prompt": True, **self._special_tokens}
        if self._template is None:
            raise PromptError(f"{self._fault}: give a plain prompt (--no-chat)")
        token = current.set(Budget(Budget(0).weigh(given)))
        try:
            return self._template.render(given)
        except TemplateLimit as error:
            raise PromptError(f"the model's chat template was stopped: {error}; give it a plain prompt") from error
        except TemplateError as error:
            raise PromptError(f"the model's chat template refuses these messages: {_said(error)}") from error
        except _ANYTHING as error:
            raise PromptError(f"the model's chat template fails on these messages: {_said(error)}") from error
        finally:
            current.reset(token)


class _Namespace(Namespace):
    """A template's own variables, without names that begin with an underscore, as in transformers."""

    def __init__(self, pairs: Iterable[tuple[object, object]] = (), /, **named: object) -> None:
        values = dictionary(pairs, **named)
        for name in values:
            _check_name(name)
        super().__init__(values)

    @override
    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise TemplateError(f"a namespace has no variables that begin with an underscore, as {name!r} does")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which prompts must not be."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    if len(form) > 100 or any(digit in form for digit in "0123456789"):  # which may be widths
        raise TemplateError("it asks for a date in a form that is too long or has digits")
    return datetime.now().strftime(form)


def _said(error: BaseException) -> str:
    """An error's name and first line; only the line where a template says why it refuses."""
    line = (str(error).splitlines() or [""])[0][:300]
    plain = type(error) is TemplateError or isinstance(error, TemplateSyntaxError)
    return line if plain and line else f"{type(error).__name__}: {line}".rstrip(": ")
