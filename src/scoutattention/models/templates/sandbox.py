"""Where chat templates run: programs that strangers wrote, with limits of what they call, of time and of memory.

A template's loops, calls, filters, operators, lists and slices go through a `Budget`. It is asked before what makes a
long text of a short one, such as 'a' * 10 ** 9, and is told of everything else that was made.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import wraps
from types import BuiltinMethodType
from typing import Any, TypeVar, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from typing_extensions import override

MOST_CHARACTERS = 1 << 22
SECONDS = 0.5
_BITS = 1 << 14
"""Of the longest number."""
_PART = 16
"""What an element of a list takes, in characters."""

_T = TypeVar("_T")
_FILTERS = set(FILTERS) - {"filesizeformat", "pprint", "striptags", "urlencode", "urlize", "wordwrap", "xmlattr"}
_READ_ONE_BY_ONE = set(
    ("groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "sum", "unique")
)
"""Filters that take a text as a list of its characters."""
# fmt: off
_METHODS = {
    "capitalize", "casefold", "center", "copy", "count", "endswith", "find", "format", "get", "index", "isalnum",
    "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "items",
    "join", "keys", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper", "values", "zfill",
}
# fmt: on
"""Methods of texts, numbers, lists and mappings that templates may call."""


class TemplateLimit(TemplateError):
    """The template would take too much time or memory."""


class Budget:
    """What one run of a template may still use: characters made, and time of the CPU."""

    def __init__(self, given: int) -> None:
        """given: characters of the conversation; a longer one may take longer."""
        self._most = MOST_CHARACTERS + 64 * given
        self._left = self._most
        self._seconds = SECONDS + given * 4e-6
        self._until = time.thread_time() + self._seconds
        self._weights: dict[int, tuple[object, int]] = {}  # of lists and mappings, which no template can change

    def reserve(self, size: int) -> None:
        """Raise TemplateLimit if a text of this many characters is too long."""
        if size > self._left:
            raise TemplateLimit(f"it makes more than {self._most:,} characters")

    def spend(self, size: int) -> None:
        """Count characters that the template produced."""
        self.reserve(size)
        self._left -= size
        if time.thread_time() > self._until:
            raise TemplateLimit(f"it takes more than {self._seconds:.1f} s of the CPU")

    def made(self, value: _T) -> _T:
        """Count a value and give it back."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, list | tuple | dict):
            self.reserve(self.weigh(value))
            self.spend(_PART * len(value))
        elif isinstance(value, int) and value.bit_length() > _BITS:
            raise TemplateLimit(f"it makes a number of more than {_BITS:,} bits")
        else:
            self.spend(1)
        return value

    def weigh(self, value: object) -> int:
        """The characters of a value as text, about, and what is in it as often as it is in it."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, list | tuple | dict):
            return _PART
        known = self._weights.get(id(value))
        if known is None:
            parts: Iterable[object] = value
            if isinstance(value, dict):
                parts = [part for pair in value.items() for part in pair]
            known = value, _PART + sum(self.weigh(part) + _PART for part in parts)
            self._weights[id(value)] = known
        return known[1]


current: ContextVar[Budget] = ContextVar("current")
"""The budget of the template that runs, or is compiled, in this thread."""


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja with limits: `current` has to be set while a template is compiled or rendered."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, extensions: Sequence[type[Extension]]) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        self.filters = {name: limited(name, FILTERS[name]) for name in _FILTERS}
        self.globals["dict"] = dictionary
        del self.globals["lipsum"]

    @override
    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    @override
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current.get()
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    budget.reserve(budget.weigh(many) * times)
        elif operator == "%" and isinstance(left, str):
            budget.reserve(_format_size(budget, left, right))
        elif (
            operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _BITS
        ):
            raise TemplateLimit(f"it makes a number of more than {_BITS:,} bits")
        return budget.made(super().call_binop(context, operator, left, right))

    @override
    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = current.get()
        method = getattr(obj, "__wrapped__", obj)  # str.format comes wrapped
        if isinstance(method, BuiltinMethodType):
            name, owner = method.__name__, method.__self__
            if name not in _METHODS:
                raise SecurityError(f"it calls {type(owner).__name__}.{name}, which chat templates may not call here")
            if name == "join":
                args = (_joined(budget, owner, *args),)
            elif name in _SIZES:
                named = {key: value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars")}
                budget.reserve(_SIZES[name](budget, owner, *args, **named))
        return budget.made(super().call(context, obj, *args, **kwargs))

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of a template, a macro or a block."""
        return "".join(current.get().made(piece) for piece in pieces)

    def tick(self) -> None:
        """A round of a loop begins."""

    def text_of(self, *values: object) -> str:
        """The operator ~."""
        return "".join(map(str, values))

    def counted(self, value: object) -> object:
        """A list, a mapping or a slice, which is counted as the result of this call."""
        return value


class _Counting(NodeTransformer):
    """Has loops call `tick`, and ~, lists, mappings and slices go through calls."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [], node.lineno), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("text_of", node.nodes, node.lineno)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _call("counted", [node], node.lineno) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        target = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if target or not node.find(nodes.Name) else _call("counted", [node], node.lineno)

    visit_Tuple = visit_Dict = visit_List


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=line)


def limited(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """A filter that asks the current budget."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the value, after what Jinja itself passes

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        budget = current.get()
        value, *rest = args[first:]
        if name in _READ_ONE_BY_ONE and isinstance(value, str):
            budget.reserve(_PART * len(value))
        if name == "join":
            args = (*args[:first], _joined(budget, kwargs.get("d", rest[0] if rest else ""), value), *rest)
        elif name in _SIZES:
            budget.reserve(_SIZES[name](budget, value, *rest, **kwargs))
        return budget.made(function(*args, **kwargs))

    return run


def _joined(budget: Budget, separator: object, parts: object) -> list[object]:
    """The parts that are to be joined, after the size of the whole was reserved."""
    if isinstance(parts, str):
        budget.reserve(_PART * len(parts))
    each, size, listed = budget.weigh(separator), 0, []
    for part in cast(Iterable[object], parts):
        size += budget.weigh(part) + each
        budget.reserve(size)
        listed.append(part)
    return listed


def dictionary(pairs: Iterable[tuple[object, object]] = (), /, **named: object) -> dict[object, object]:
    """The function `dict` of templates."""
    values = dict(pairs)
    values.update(named)
    return values


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _format_size(budget: Budget, form: object, *values: object, **named: object) -> int:
    """Of the text that '%' or `format` makes: widths that are written in it, and every value as often as one is."""
    text = str(form)
    widths = sum(int(digits) if len(digits) < 9 else 1 << 40 for digits in re.findall(r"\d+", text))
    if "*" in text or re.search(r"\{[^{}]*\{", text):  # a width is a value
        listed = values[0] if len(values) == 1 and isinstance(values[0], Sequence | dict) else values
        numbers = [*listed.values()] if isinstance(listed, dict) else [*listed, *named.values()]
        widths += sum(abs(_number(value)) for value in numbers) * text.count("{")
        widths += sum(abs(_number(value)) for value in numbers)
    holes = text.count("%") + text.count("{")
    return len(text) + widths + holes * (budget.weigh(values) + budget.weigh(named))


def _padded_size(budget: Budget, value: object, width: object = 80, *rest: object) -> int:
    return budget.weigh(value) + _number(width)


def _replaced_size(budget: Budget, value: object, old: object, new: object, count: object = None) -> int:
    text = str(value)
    return len(text) + text.count(str(old)) * budget.weigh(new)


def _indented_size(budget: Budget, value: object, width: object = 4, *rest: object, **named: object) -> int:
    text = str(value)
    each = len(width) if isinstance(width, str) else _number(width)
    return len(text) + each * (text.count("\n") + 1)


def _json_size(budget: Budget, value: object, *rest: object, **named: object) -> int:
    room = max((_number(given) for given in (*rest, *named.values())), default=0)
    return budget.weigh(value) * (1 + room + budget.weigh((*rest, *named.values())) // _PART)


def _listed_size(budget: Budget, value: object, count: object, fill: object = None) -> int:
    return _number(count) * (_PART + budget.weigh(fill))


def _split_size(budget: Budget, value: object, *rest: object, **named: object) -> int:
    return _PART * len(str(value))


def _rounded_size(budget: Budget, value: object, precision: object = 0, method: object = None) -> int:
    return 0 if abs(_number(precision)) < 300 else 1 << 60


_SIZES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded_size),
    **dict.fromkeys(("batch", "slice"), _listed_size),
    **dict.fromkeys(("split", "rsplit", "splitlines"), _split_size),
    "format": _format_size,
    "replace": _replaced_size,
    "indent": _indented_size,
    "tojson": _json_size,
    "round": _rounded_size,
}
"""The most characters that a filter or method makes, from its arguments."""
