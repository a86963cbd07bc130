"""Rules of how large files, functions and classes may be, and of what a docstring says."""

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from .sources import Source, decorated, functions_of, methods_of

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_ATTRIBUTES = 300, 60, 7, 12
MAKERS = {"__init__", "__post_init__"}
ONLY_REFERS = re.compile(r"See `|`\w+`: see `[^`]*`\.$")


def files_and_functions_are_small(sources: list[Source]) -> Iterator[str]:
    for source in sources:
        lines = len(source.text.splitlines())
        if lines > MAX_FILE_LINES:
            yield f"{source.path}:{lines} is longer than {MAX_FILE_LINES} lines"
        for node, _ in functions_of(source):
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1  # a kernel's signature may be long
            if length > MAX_FUNCTION_LINES:
                yield f"{source.path}:{node.lineno} {node.name} has {length} lines, over {MAX_FUNCTION_LINES}"


def functions_take_few_parameters(sources: list[Source]) -> Iterator[str]:
    """`self` and `cls` are not counted. A kernel of Triton takes every pointer and stride by itself."""
    for source in sources:
        for node, owner in functions_of(source):
            of = node.args
            named = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
            count = len(named) - (owner is not None and not decorated(node, "staticmethod"))
            if count > MAX_PARAMETERS and not decorated(node, "jit"):
                yield f"{source.path}:{node.lineno} {node.name} has {count} parameters, over {MAX_PARAMETERS}"


def classes_have_few_attributes(sources: list[Source]) -> Iterator[str]:
    """Counts fields and every name that is assigned as self.name. A record may have as many fields as a row has."""
    for source, node in classes_of(sources):
        count = len(fields_of(node) | assigned_in(methods_of(node)))
        if count > MAX_ATTRIBUTES and not is_record(node):
            yield f"{source.path}:{node.lineno} {node.name} has {count} attributes, over {MAX_ATTRIBUTES}"


def attributes_are_set_when_an_object_is_made(sources: list[Source]) -> Iterator[str]:
    """Every attribute is a field, or assigned in `__init__` or `__post_init__` of the class or of a base."""
    classes = {node.name: node for _, node in classes_of(sources)}
    for source, node in classes_of(sources):
        for name in sorted(assigned_in(methods_of(node)) - made_by(node, classes)):
            yield f"{source.path}:{node.lineno} {node.name} sets {name} after an object is made"


def docstrings_say_something(sources: list[Source]) -> Iterator[str]:
    """None begins with a reference to another, or is a reference that a parameter's name stands before."""
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if ONLY_REFERS.match(text):
                    yield f"{source.path}:{getattr(node, 'lineno', 1)} only refers to another docstring: {text[:60]}"


def classes_of(sources: Iterable[Source]) -> Iterator[tuple[Source, ast.ClassDef]]:
    for source in sources:
        yield from ((source, node) for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))


def fields_of(node: ast.ClassDef) -> set[str]:
    """Names that are annotated in the class's body, but for its constants and what only `__post_init__` takes."""
    annotated = [member for member in node.body if isinstance(member, ast.AnnAssign)]
    kept = [member for member in annotated if not ast.unparse(member.annotation).startswith(("ClassVar", "InitVar"))]
    return {member.target.id for member in kept if isinstance(member.target, ast.Name)}


def assigned_in(methods: Iterable[ast.AST]) -> set[str]:
    """Names that are assigned as self.name."""
    stored = (node for node in chain.from_iterable(map(ast.walk, methods)) if isinstance(node, ast.Attribute))
    return {node.attr for node in stored if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}


def made_by(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Attributes that a new object has, from the class and from bases that are among the sources."""
    own = fields_of(node) | assigned_in(method for method in methods_of(node) if method.name in MAKERS)
    names = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
    return own.union(*(made_by(classes[name], classes) for name in names if name in classes))


def is_record(node: ast.ClassDef) -> bool:
    """Whether a class is a frozen dataclass, NamedTuple or TypedDict without behaviour.

    Each of its methods is a property, or returns a changed copy: `replace(self, ...)`, or `self._replace(...)`.
    """
    named_tuple = any(ast.unparse(base).endswith(("NamedTuple", "TypedDict")) for base in node.bases)
    frozen = any("dataclass(frozen=True" in ast.unparse(mark) for mark in node.decorator_list)
    return (named_tuple or frozen) and all(decorated(m, "property") or _copies(m) for m in methods_of(node))


def _copies(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    last = method.body[-1]
    returned = ast.unparse(last.value) if isinstance(last, ast.Return) and last.value else ""
    return returned.startswith(("replace(self,", "self._replace("))
