"""The sources as the rules see them: paths, texts and syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """One file: its path under the package, its text and its tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        return "scoutattention." + self.path.removesuffix(".py").replace("/", ".")


def read_sources(root: Path) -> list[Source]:
    paths = sorted(path for path in root.rglob("*.py"))
    return [Source(str(p.relative_to(root)), p.read_text(), ast.parse(p.read_text())) for p in paths]


def functions_of(source: Source) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.ClassDef | None]]:
    """Every function of a file, with the class whose method it is."""
    owners = {
        method: node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef) for method in methods_of(node)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, owners.get(node)


def methods_of(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """A class's own methods."""
    return [member for member in node.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)]


def decorated(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str) -> bool:
    """Whether a decorator has this name, or one that ends with it, as `triton.jit` ends with jit."""
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
    return any(ast.unparse(mark).rpartition(".")[2] == name for mark in marks)
